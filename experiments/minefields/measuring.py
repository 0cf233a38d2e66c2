"""How wide minima are along filter-normalised directions, and a map of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatjax
from experiments.lib.data.small import SmallData, first_examples
from experiments.lib.training import recipes
from experiments.lib.training.curvature import run_of
from experiments.lib.training.minibatch import Trained
from experiments.minefields.training import vector

if TYPE_CHECKING:
    from experiments.minefields import Config


def units(params: Any) -> Any:
    """The preconditioner under which directions have the norms of the params' filters.

    Of a Gaussian direction; biases stay where they are.
    """
    each = flatjax.filter_normalize(jax.tree.map(jnp.ones_like, params), params)
    moving = sum(int((a > 0).sum()) for a in jax.tree.leaves(each))
    return jax.tree.map(lambda a: jnp.where(a > 0, 1 / (moving * a**2), jnp.inf), each)


def radii(config: Config, params: Any, batch: Any, model_state: Any, key: jax.Array) -> np.ndarray:
    """The radii, (directions,); NaN where the loss is above the threshold from the start."""
    recipe = config.recipe
    if not recipes.mean_loss(recipe, params, batch, model_state) < config.threshold:
        return np.full(config.directions, np.nan)
    found = flatjax.log_volume(
        recipes.losses_fn(recipe), params, batch, model_state, key=key,
        threshold=config.threshold, num_directions=config.directions, preconditioner=units(params),
    )  # fmt: skip
    return np.asarray(found.radii)


def of_quadratic(config: Config, params: Any, key: jax.Array, level: float) -> np.ndarray:
    """Radii of a quadratic with a curvature of one along every filter-normalised direction."""
    curvature = units(params)

    def quadratic(w, batch, curvature):
        del batch
        each = jax.tree.map(lambda w, h: jnp.where(jnp.isinf(h), 0, h * w**2).sum(), w, curvature)
        return 0.5 * optax.tree.sum(each)

    found = flatjax.log_volume(
        quadratic, jax.tree.map(jnp.zeros_like, params), None, curvature, key=key,
        threshold=level, num_directions=config.directions, preconditioner=curvature,
    )  # fmt: skip
    return np.asarray(found.radii)


def end(config: Config, trained: Trained, good: Trained, data: SmallData) -> dict[str, Any]:
    """Accuracies, radii and distances where the runs of an arm end."""
    measured = first_examples(data, config.measured, axis=1)
    found = [
        radii(
            config,
            run_of(trained.params, i),
            recipes.training_batch(config.recipe, run_of(measured, i)),
            run_of(trained.model_state, i), jax.random.key(i),
        )
        for i in range(len(data.targets))
    ]  # fmt: skip
    names = ("train_accuracy", "test_accuracy", "train_loss", "norm")
    away = vectors(trained) - vectors(good)
    return {name: trained.records[name][:, -1] for name in names} | {
        "untrained": trained.records["train_accuracy"][:, 0],
        "distance": np.linalg.norm(away, axis=1),
        "radii": np.array(found),
    }


def exact(config: Config, good: Trained) -> dict[str, Any]:
    """How far radii of a quadratic are from sqrt(2 threshold), and those of a level 1 % higher.

    Also the distance from the start to the good minimum.
    """
    theory = (2 * config.threshold) ** 0.5

    def error(level: float) -> list[float]:
        found = (
            of_quadratic(config, run_of(good.params, i), jax.random.key(i), level)
            for i in range(len(good.reached))
        )
        return [float(np.abs(r / theory - 1).max()) for r in found]

    path = good.records["weights"]
    return {
        "quadratic": error(config.threshold),
        "other_quadratic": error(1.01 * config.threshold),
        "length": np.linalg.norm(path[:, -1] - path[:, 0], axis=1),
    }


def of_map(good: Trained, others: Sequence[Trained]) -> dict[str, Any]:
    """The principal plane of the path to the good minimum and of the bad ones, seen from there.

    Of every run the coordinates and the distance off the plane of the path, (runs, records, ...),
    and of where the other arms end, (runs, arms, ...).
    """
    path, bad = good.records["weights"], np.stack([vectors(found) for found in others], 1)
    found: dict[str, list[Any]] = {
        name: [] for name in ("way", "way_off", "others", "others_off", "explained")
    }
    for points, ends in zip(path, bad, strict=True):
        plane = flatjax.principal_directions(
            jnp.concatenate([ends, points])  # the good minimum is the last, the origin
        )
        for name, shown in (("way", points), ("others", ends)):
            projection = flatjax.project(jnp.asarray(shown), plane)
            found[name].append(projection.coordinates)
            found[f"{name}_off"].append(projection.distance)
        found["explained"].append(plane.explained)
    return {name: np.stack(values) for name, values in found.items()}


def vectors(trained: Trained) -> np.ndarray:
    """Where all runs end, (runs, size)."""
    return np.asarray(jax.vmap(vector)(trained.params))
