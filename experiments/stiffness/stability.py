"""Where SGD ends, against the bound of linear stability; and an example in one dimension."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatjax
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.runs.progress import say
from experiments.lib.training import curvature, minibatch, recipes
from experiments.lib.training.minibatch import Trained
from experiments.lib.training.recipes import Recipe
from experiments.lib.training.settings import train_settings
from flatjax import loops

if TYPE_CHECKING:
    from experiments.stiffness import Config


Found = dict[str, dict[str, np.ndarray]]


def sgd_ends(config: Config, out: Path) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """The batch sizes as pieces of work; each returns where SGD ends: (seeds, learning rates)."""
    seeds = list(config.seed_range())
    data = minibatch.load_seeds(
        config.data,
        seeds,
        train_size=config.stable_size,
        flat=config.stable.flat,
        num_classes=config.stable.classes,
    )

    def ends(size: int) -> dict[str, np.ndarray]:
        say(f"minima of SGD with batches of {size}", enabled=not config.quiet)
        epochs = max(1, config.stable_steps * size // config.stable_size)
        recipe = dataclasses.replace(
            config.stable, batch_size=size, epochs=epochs, record_every=max(1, epochs // 12)
        )
        folder = out / f"batch_{size}"
        found = train_settings(
            folder,
            recipe,
            data,
            seeds,
            lambda seed, rate: optax.sgd(rate),
            {rate: rate for rate in config.stable_rates},
            quiet=config.quiet,
        )
        end = kept_arrays(folder / "stability.npz", lambda: stability(recipe, found, data, size))
        end["reached"] = np.stack([runs.reached for runs in found.values()], axis=1)
        for name in ("test_accuracy", "train_loss", "epoch"):
            end[name] = np.stack([runs.records[name][:, -1] for runs in found.values()], axis=1)
        return end

    return {str(size): functools.partial(ends, size) for size in config.batch_sizes}


def stability(recipe: Recipe, found: dict[float, Trained], data: Any, size: int):
    """Sharpness, non-uniformity and the stability condition of all runs: (seeds, rates)."""
    losses_fn, run_of = recipes.losses_fn(recipe), curvature.run_of
    results = [
        [
            flatjax.linear_stability(
                losses_fn,
                run_of(runs.params, index),
                recipes.training_batch(recipe, run_of(data, index)),
                run_of(runs.model_state, index),
                learning_rate=rate,
                batch_size=size,
                key=jax.random.key(0),
                tol=1e-2,
                max_products=60,
            )
            for rate, runs in found.items()
        ]
        for index in range(len(data.targets))
    ]
    names = ("value", "sharpness", "non_uniformity", "bound")
    return {n: np.array([[float(getattr(r, n)) for r in row] for row in results]) for n in names}


CURVATURES = (0.1, 1.9)
"""Half the second derivatives of the two examples at the non-uniform minimum x = 1."""
GROWTH_RATES = (0.4, 0.5, 0.55, 0.6)
"""Learning rates on both sides of 0.5525, where the mean square begins to grow."""
LEAVES = 0.7
"""A learning rate at which the logarithm grows too."""


def growth(rate: float) -> float:
    """The factor of E (x - 1)^2 in one step of SGD near x = 1."""
    return sum((1 - 2 * rate * c) ** 2 for c in CURVATURES) / len(CURVATURES)


def one_dimension(seed: int, walkers: int, steps: int = 30) -> dict[str, Any]:
    """The paper's example: losses x^2 and c (x - 1)^2, whichever is smaller, with two c.

    Args:
      seed: of the walkers.
      walkers: how many for the mean squares; a hundredth of them shows who leaves.
      steps: over which the mean squares grow.

    Returns:
      `growth` over its law for every rate, `descent` the same of gradient descent; `leaves` and
      `descent_leaves`, the fractions that end at x = 0 instead of 1.
    """
    with jax.enable_x64(True):  # that 30 steps of growth stay near the minimum
        keys = jax.random.split(jax.random.key(seed), 3)
        start = 1 + 1e-9 * jax.random.normal(keys[0], (walkers,))
        few, long = 1 + 1e6 * (start[: max(walkers // 100, 20)] - 1), 20 * steps

        def grown(rate, stochastic):
            ends = _walk(keys[1], start, rate, steps, stochastic)
            spread = jnp.square(ends - 1).mean() / jnp.square(start - 1).mean()
            return float(spread ** (1 / steps)) / growth(rate)

        def left(stochastic):
            return float((abs(_walk(keys[2], few, LEAVES, long, stochastic)) < 0.05).mean())

        return {
            "growth": [grown(rate, True) for rate in GROWTH_RATES],
            "descent": [grown(rate, False) for rate in GROWTH_RATES],
            "leaves": left(True),
            "descent_leaves": left(False),
        }


@functools.partial(jax.jit, static_argnums=3)
def _walk(key, start, rate, steps, stochastic):
    """Where SGD from `start` ends, or gradient descent."""

    def example_loss(x, curvature):
        return jnp.minimum(x**2, curvature * (x - 1) ** 2)

    slope = jax.vmap(jax.vmap(jax.grad(example_loss), (None, 0)), (0, None))

    def step(x, key):
        slopes = slope(x, jnp.array(CURVATURES))
        which = jax.random.randint(key, (len(x), 1), 0, len(CURVATURES))
        one = jnp.take_along_axis(slopes, which, axis=1)[:, 0]
        return x - rate * jnp.where(stochastic, one, slopes.mean(1)), None

    return loops.scan(step, start, jax.random.split(key, steps))[0]


def most_uniform(rate: float, batch_size: int, size: int) -> float:
    """The largest non-uniformity at which SGD can stay, whatever the sharpness."""
    if batch_size >= size:
        return float("inf")
    return float(np.sqrt(batch_size * (size - 1) / (size - batch_size))) / rate
