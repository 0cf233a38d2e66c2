"""How wide the minima of squared error are, where all is memorised and at the end.

found = widths(config, folder, data, records, vectors)
found["normalised"]                                                 # (seeds, 2)
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

import flatjax
from experiments.lib.data.small import SmallData
from experiments.lib.training import curvature, minibatch, recipes
from experiments.lib.training.recipes import Recipe


def squared(config: Any) -> Recipe:
    """The recipe with squared error."""
    return dataclasses.replace(config.recipe, loss="squared_error")


def flattened(params: Any, model_state: Any, data: SmallData, key: Any) -> dict[str, jax.Array]:
    """What is recorded of squared error: all parameters, as one vector."""
    del model_state, data, key
    return {"params": jax.flatten_util.ravel_pytree(params)[0]}


def widths(
    config: Any, folder: Path, data: SmallData, records: dict[str, np.ndarray], vectors: Any
) -> dict[str, np.ndarray]:
    """The two measures where all is memorised and at the end, (seeds, 2), at the same loss."""
    seeds = list(config.seed_range())
    params, state = recipes.init_runs(squared(config), data, seeds)
    shape = jax.tree.map(lambda a: a[0], params)
    unravel = jax.flatten_util.ravel_pytree(shape)[1]
    at = np.stack([memorised(records), np.full(len(seeds), vectors.shape[1] - 1)], 1)
    chosen = np.take_along_axis(vectors, at[:, :, None], 1).reshape(2 * len(seeds), -1)
    start = jax.vmap(unravel)(jnp.asarray(chosen)), jax.tree.map(lambda a: a.repeat(2, 0), state)
    twice = minibatch.repeat(data, 2)
    recipe = dataclasses.replace(squared(config), stop_loss=config.matched_loss)
    matched = minibatch.train_arm(
        folder, recipe, twice, np.repeat(seeds, 2),
        lambda seed, hyper: optax.adam(0.1 * config.learning_rate), start=start,
        quiet=config.quiet,
    )  # fmt: skip
    each = [
        measures(config, *curvature.run_of((matched.params, twice), k)) for k in range(len(chosen))
    ]
    found = {name: np.array([m[name] for m in each]).reshape(-1, 2) for name in each[0]}
    last = matched.records
    found["matched_loss"] = last["train_loss"][:, -1].reshape(-1, 2)
    found["matched_test"] = last["test_accuracy"][:, -1].reshape(-1, 2)
    found["reached"] = matched.reached.reshape(-1, 2)
    return found


def measures(config: Any, params: Any, data: SmallData) -> dict[str, float]:
    """Of one point: normalised sharpness, learning coefficient, largest eigenvalue."""
    recipe = squared(config)
    batch, loss = recipes.training_batch(recipe, data), recipes.losses_fn(recipe)
    hessian = flatjax.hessian(loss, params, batch)
    diagonal = curvature.gauss_newton_diagonal(recipes.model_of(recipe), params, batch[0])
    sharpness = flatjax.sharpness(hessian, key=jax.random.key(0)).value
    n = len(data.targets)
    coefficient = flatjax.local_learning_coefficient(
        loss, params, [batch], key=jax.random.key(1), num_data=n, localization=100.0,
        # Half of what is stable: beta n lambda + localization times the step is to be below 2.
        step_size=float(0.5 / (n / np.log(n) * sharpness + 100.0)), preconditioner=None,
        num_steps=config.chain_steps, num_burnin=config.chain_steps // 2,
    )  # fmt: skip
    return {
        "normalised": float(flatjax.normalized_sharpness(params, diagonal).value),
        "coefficient": float(coefficient.value),
        "r_hat": float(np.max(coefficient.r_hat)),
        "sharpness": float(sharpness),
    }


def first(records: dict[str, np.ndarray], name: str, level: float) -> np.ndarray:
    """The record at which a number is first so high; -1 where it never is."""
    high = records[name] >= level
    return np.where(high.any(1), high.argmax(1), -1)


def memorised(records: dict[str, np.ndarray]) -> np.ndarray:
    """The record from which the training set is fitted."""
    return np.maximum(first(records, "train_accuracy", 0.99), 0)
