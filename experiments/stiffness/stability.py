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
from experiments.lib.training import curvature, minibatch
from experiments.lib.training.minibatch import Recipe, Trained
from experiments.lib.training.settings import train_settings
from flatjax import loops

if TYPE_CHECKING:
    from experiments.stiffness import Config


Found = dict[str, dict[str, np.ndarray]]


def sgd_ends(config: Config, out: Path) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """The batch sizes as pieces of work; each returns where SGD ends: (seeds, learning rates)."""
    seeds = list(config.seed_range())
    data = minibatch.load_seeds(
        config.data, seeds, train_size=config.stable_size, flat=config.stable.flat
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
            chunk=3,
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
    losses_fn, run_of = minibatch.losses_fn(recipe), curvature.run_of
    results = [
        [
            flatjax.linear_stability(
                losses_fn,
                run_of(runs.params, index),
                minibatch.training_batch(recipe, run_of(data, index)),
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


def one_dimension(seed: int, walkers: int, steps: int = 500) -> dict[str, float]:
    """The fractions that stay at x = 1, or leave it for 0, in the paper's example."""

    def example_loss(x, curvature):
        return jnp.minimum(x**2, curvature * (x - 1) ** 2)

    curvatures = jnp.array([0.1, 1.9])
    slope = jax.vmap(jax.grad(example_loss), in_axes=(None, 0))
    start, draw = jax.random.split(jax.random.key(seed))
    x0 = 1 + 1e-3 * jax.random.normal(start, (walkers,))

    @jax.jit
    def ends(eta, stochastic):
        def step(x, key):
            slopes = jax.vmap(lambda x: slope(x, curvatures))(x)
            which = jax.random.randint(key, (walkers, 1), 0, 2)
            one = jnp.take_along_axis(slopes, which, axis=1)[:, 0]
            return x - eta * jnp.where(stochastic, one, slopes.mean(1)), None

        return loops.scan(step, x0, jax.random.split(draw, steps))[0]

    near = lambda x, y: float((jnp.abs(x - y) < 0.05).mean())  # noqa: E731
    return {
        "one-dimension-stays": near(ends(0.5, True), 1),
        "one-dimension-leaves": near(ends(0.7, True), 0),
        "one-dimension-descent-stays": near(ends(0.7, False), 1),
    }
