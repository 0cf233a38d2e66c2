"""The noise of minibatch gradients of a network on digits, by drawing many batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import kurtosis

import flatjax
from experiments.lib.data import small
from experiments.lib.training import curvature, recipes

if TYPE_CHECKING:
    from experiments.langevin import Config


def centred_gradients(config: Config, seed: int) -> np.ndarray:
    """Gradients of the examples less their mean, along their principal axes, (examples, axes).

    The network is untrained; the axis of the largest variance comes first.
    """
    recipe, data = config.recipe, small.small_data("digits", seed=seed, train_size=config.digits)
    start, _ = recipes.init_runs(recipe, small.stack_seeds([data]), jnp.array([seed], jnp.uint32))
    batch = recipes.training_batch(recipe, data)
    each = flatjax.per_example_gradients(
        recipes.losses_fn(recipe), curvature.run_of(start, 0), batch
    )
    leaves = (np.asarray(a, np.float64) for a in jax.tree.leaves(each))
    rows = np.concatenate([a.reshape(config.digits, -1) for a in leaves], axis=1)
    left, sizes, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    return left * sizes


def batch_counts(
    rng: np.random.Generator, examples: int, batch_size: int, draws: int, *, replace: bool
) -> np.ndarray:
    """How often each example is in each of so many batches, (draws, examples)."""
    if replace:
        return rng.multinomial(batch_size, np.full(examples, 1 / examples), draws)
    return rng.permuted(np.tile(np.arange(examples) < batch_size, (draws, 1)), axis=1)


def batch_noise(config: Config, seed: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Moments of batch gradients over those of the examples, by batch size.

    Returns:
      `with` and `without` replacement, (batch sizes, 2), S times the variance over that of the
      examples: in all, and along the leading axis; `tails`, (batch sizes,), S times the excess
      kurtosis with replacement over that of the examples, along the axis where it is largest.
    """
    gradients = centred_gradients(config, seed)
    variances = np.square(gradients).mean(0)
    own = kurtosis(gradients[:, : config.digits // 2])  # the last axes are rounding
    heavy = int(np.argmax(own))
    found: dict[str, list] = {"with": [], "without": [], "tails": []}
    for size in config.batch_sizes:
        for name in ("with", "without"):
            counts = batch_counts(rng, config.digits, size, config.draws, replace=name == "with")
            noise = counts @ gradients / size
            squares = size * np.square(noise).mean(0)
            found[name].append([squares.sum() / variances.sum(), squares[0] / variances[0]])
            if name == "with":
                found["tails"].append(size * kurtosis(noise[:, heavy]) / own[heavy])
    return {name: np.array(values) for name, values in found.items()}
