"""Stiffness along training, and how the gradients of the logits cluster."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatjax
from experiments.lib.nets import losses
from experiments.lib.runs.progress import say
from experiments.lib.training import minibatch, recipes
from experiments.lib.training.recipes import Recipe
from experiments.lib.training.settings import train_settings

if TYPE_CHECKING:
    from experiments.stiffness import Config

INPUTS = 20
"""Whose logits' gradients are compared: as many as there are classes for each."""


def measure(
    recipe: Recipe, count: int, params: Any, model_state: Any, data: Any, key: Any
) -> dict[str, jax.Array]:
    """Stiffness of pairs of training examples, and of a training with a test example."""
    del key
    losses_fn, classes = recipes.losses_fn(recipe), recipe.classes
    batch = recipes.training_batch(recipe, data, count)
    labels, other_labels = data.targets[:count], data.test_targets[:count]
    other = (data.test_inputs[:count], losses.encode(recipe.loss, other_labels, classes))
    stiffness = functools.partial(
        flatjax.stiffness, losses_fn, params, batch, model_state, labels=labels, num_classes=classes
    )
    train, test = stiffness(), stiffness(other=other, other_labels=other_labels)
    logit = logit_gradients(recipe, params, model_state, batch[0][:INPUTS])
    return {
        "cos_within": train.cosine.within,
        "cos_between": train.cosine.between,
        "sign_within": train.sign.within,
        "sign_between": train.sign.between,
        "classes": train.cosine.classes,
        "test_cos_within": test.cosine.within,
        "test_cos_between": test.cosine.between,
        "same": share_of_one_class(labels, labels, distinct=True),
        "test_same": share_of_one_class(labels, other_labels, distinct=False),
        "same_logit": logit.cosine.within,
        "other_logit": logit.cosine.between,
    }


def logit_gradients(recipe: Recipe, params: Any, model_state: Any, inputs: Any) -> Any:
    """How alike the gradients of the logits of some inputs are, by which logit it is."""
    model_fn, classes = recipes.model_of(recipe), recipe.classes

    def one_logit(params, batch, model_state):
        inputs, which = batch
        found = model_fn(params, inputs, model_state)
        return jnp.take_along_axis(found, which[:, None], axis=1)[:, 0]

    which = jnp.tile(jnp.arange(classes), len(inputs))
    batch = (jnp.repeat(inputs, classes, axis=0), which)
    return flatjax.stiffness(
        one_logit, params, batch, model_state, labels=which, num_classes=classes
    )


def share_of_one_class(labels: Any, others: Any, *, distinct: bool) -> jax.Array:
    """The share of the pairs that have one class; of an example with itself or not."""
    same = labels[:, None] == others[None, :]
    if distinct:
        count = len(labels)
        return (same.sum() - count) / (count * (count - 1))
    return same.mean()


def training(config: Config, out: Path) -> Callable[[], dict[str, dict[str, np.ndarray]]]:
    """The first part as a piece of work; it returns the records, by learning rate."""

    def records() -> dict[str, dict[str, np.ndarray]]:
        say("stiffness along training", enabled=not config.quiet)
        seeds = list(config.seed_range())
        data = minibatch.load_seeds(
            config.data,
            seeds,
            train_size=config.train_size,
            flat=config.recipe.flat,
            num_classes=config.recipe.classes,
        )
        found = train_settings(
            out / "stiffness",
            config.recipe,
            data,
            seeds,
            lambda seed, rate: optax.sgd(rate),
            {rate: rate for rate in config.rates},
            measure=functools.partial(measure, config.recipe, config.pairs),
            quiet=config.quiet,
        )
        return {f"{rate:g}": runs.records for rate, runs in found.items()}

    return records
