"""Stiffness along training."""

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
from experiments.lib.training import minibatch
from experiments.lib.training.minibatch import Recipe
from experiments.lib.training.settings import train_settings

if TYPE_CHECKING:
    from experiments.stiffness import Config


def measure(
    recipe: Recipe, count: int, params: Any, model_state: Any, data: Any, key: Any
) -> dict[str, jax.Array]:
    """Stiffness of pairs of training examples, and of a training with a test example."""
    del key
    losses_fn, classes = minibatch.losses_fn(recipe), recipe.classes
    batch = minibatch.training_batch(recipe, data, count)
    labels, other_labels = data.targets[:count], data.test_targets[:count]
    other = (data.test_inputs[:count], losses.encode(recipe.loss, other_labels, classes))
    stiffness = functools.partial(
        flatjax.stiffness, losses_fn, params, batch, model_state, labels=labels, num_classes=classes
    )
    train, test = stiffness(), stiffness(other=other, other_labels=other_labels)
    logits = minibatch.model_of(recipe)(params, batch[0], model_state)
    members = jax.nn.one_hot(labels, classes)
    means = (members.T @ logits) / jnp.maximum(members.sum(0), 1)[:, None]
    spread = jnp.square(logits - members @ means).sum() / jnp.square(logits - logits.mean(0)).sum()
    return {
        "cos_within": train.cosine.within,
        "cos_between": train.cosine.between,
        "sign_within": train.sign.within,
        "sign_between": train.sign.between,
        "classes": train.cosine.classes,
        "test_cos_within": test.cosine.within,
        "test_cos_between": test.cosine.between,
        "logit_spread": spread,
    }


def training(config: Config, out: Path) -> Callable[[], dict[str, dict[str, np.ndarray]]]:
    """The first part as a piece of work; it returns the records, by learning rate."""

    def records() -> dict[str, dict[str, np.ndarray]]:
        say("stiffness along training", enabled=not config.quiet)
        seeds = list(config.seed_range())
        data = minibatch.load_seeds(
            config.data, seeds, train_size=config.train_size, flat=config.recipe.flat
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
