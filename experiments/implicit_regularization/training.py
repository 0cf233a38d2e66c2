"""SGD with a large step, a small step, and a small step with the explicit term."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax

import flatjax
from experiments.lib.runs.progress import say
from experiments.lib.training import minibatch, penalties
from experiments.lib.training.minibatch import Recipe

if TYPE_CHECKING:
    from experiments.implicit_regularization import Config


def measure(recipe: Recipe, params: Any, data: Any, key: Any) -> dict[str, jax.Array]:
    """Trace of the Fisher information, and the mean squared norm of the batches' gradients."""
    inputs, targets = minibatch.training_batch(recipe, data)
    size = recipe.batch_size or len(inputs)
    count = len(inputs) // size
    part = lambda a: a[: count * size].reshape(count, size, *a.shape[1:])  # noqa: E731
    gradient = jax.grad(functools.partial(minibatch.mean_loss, recipe))
    each = jax.vmap(gradient, in_axes=(None, 0))(params, (part(inputs), part(targets)))
    squares = optax.tree.norm(each, squared=True) / count
    return {**penalties.measure(recipe)(params, data, key), "squared_gradients": squares}


def arms(config: Config, out: Path) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """The three arms as pieces of work; each returns its records.

    They are at the same times: steps times step length.
    """
    seeds = list(config.seed_range())
    data = minibatch.load_seeds(
        config.data, seeds, train_size=config.train_size, label_noise=config.label_noise
    )
    slow = dataclasses.replace(
        config.recipe,
        epochs=config.recipe.epochs * config.factor,
        record_every=config.recipe.record_every * config.factor,
    )
    large, small = config.large_rate, config.large_rate / config.factor

    def explicit(seed, _):
        # On minibatches: the expected square of their gradients is ISGR's term.
        return optax.chain(flatjax.implicit_gradient_regularization(large), optax.sgd(small))

    optimizers = {
        "large step": (config.recipe, lambda seed, _: optax.sgd(large)),
        "small step": (slow, lambda seed, _: optax.sgd(small)),
        "explicit": (slow, explicit),
    }

    def one(arm: str) -> dict[str, np.ndarray]:
        recipe, make = optimizers[arm]
        say(arm, enabled=not config.quiet)
        return minibatch.train_arm(
            out / arm.replace(" ", "_"),
            recipe,
            data,
            seeds,
            make,
            measure=functools.partial(measure, recipe),
            quiet=config.quiet,
        ).records

    return {arm: functools.partial(one, arm) for arm in optimizers}
