"""What is trained, in pieces of independent work, and what is measured where it ends.

pieces(config, out)["sam"]()["SAM", 0.2]["sharpness"]                       # (seeds,)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import flatjax
from experiments.lib.data.small import SmallData, first_examples
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.training import curvature, recipes
from experiments.lib.training.cost import GRADIENTS, within
from experiments.lib.training.descent import descent
from experiments.lib.training.minibatch import Trained
from experiments.lib.training.recipes import Recipe
from experiments.lib.training.settings import load_grid, train_grid
from experiments.lib.training.validation import final
from experiments.sam_vs_sgd.tasks import load_tasks

Runs = dict[tuple[str, float | str], dict[str, np.ndarray]]
"""Arm, and fraction of wrong labels or further task; what it is at the end, (seeds, ...)."""

NOISES = (0.0, 0.2)
POSITIONS = np.linspace(-1.0, 1.0, 21)
LONGER = "SGD, as dear as SAM"
ENDS = ("test_accuracy", "test_loss", "train_loss", "noisy_fit", "epoch", "norm")
"""The records of which the last is kept."""


def arms(config: Any) -> dict[str, tuple[float, dict[str, float]]]:
    """By kind: the norm, and the radii by arm."""
    *small, large = config.rhos
    return {
        "sgd": (2.0, {"SGD": 0.0}),
        "random": (2.0, {"random": large}),
        "sam": (2.0, {f"rho {rho:g}": rho for rho in small} | {"SAM": large}),
        "sam_15": (1.5, {"p 1.5": config.rho_15}),
        "sam_inf": (float("inf"), {"p inf": config.rho_inf}),
    }


def pieces(config: Any, out: Path) -> dict[str, Callable[[], Runs]]:
    """A piece for every kind of arm, and one for the further tasks."""
    sizes = {"train_size": config.train_size, "test_size": config.test_size}
    data = load_grid(config.data, config.recipe, config.seed_range(), NOISES, **sizes)
    one = functools.partial(of_kind, config, out, data)
    work = {kind: functools.partial(one, kind) for kind in arms(config)}
    return {**work, "tasks": functools.partial(of_tasks, config, out)}


def of_kind(config: Any, out: Path, data: Mapping[float, SmallData], kind: str) -> Runs:
    """Where the arms of a kind end; with SAM also SGD that goes on until it has cost as much."""
    found = trained(config, out / kind, kind, data, arms(config)[kind][1])
    ended = {
        (arm, noise): kept_arrays(
            out / kind / f"end_{arm.replace(' ', '_')}_{noise:g}.npz",
            lambda runs=runs, noise=noise: end(config, runs, data[noise]),
        )
        for (arm, noise), runs in found.items()
    }
    return ended | (longer(config, out, data, found) if kind == "sam" else {})


def trained(
    config: Any,
    folder: Path,
    kind: str,
    data: Mapping[Any, SmallData],
    radii: Mapping[str, float],
    recipe: Recipe | None = None,
) -> dict[tuple[str, Any], Trained]:
    """Every arm of a kind on each of some data."""
    recipe, p = recipe or config.recipe, arms(config)[kind][0]

    def optimizer(seed, rho):
        heads = {"sgd": optax.identity, "random": lambda: random_steps(rho, seed)}
        head = heads.get(kind, lambda: flatjax.sam(rho, ascent=flatjax.Ascent(p=p)))
        return optax.chain(head(), descent(config.descent, recipe, config.train_size))

    seeds = config.seed_range()
    return train_grid(folder, recipe, data, seeds, optimizer, radii, quiet=config.quiet)


def longer(
    config: Any, out: Path, data: Mapping[float, SmallData], sam: Mapping[Any, Trained]
) -> Runs:
    """SGD without a loss to stop at, and what it is when it has cost as much as SAM at its end."""
    ratio = GRADIENTS["SAM"] / GRADIENTS["SGD"]
    epochs = {noise: ratio * final(sam["SAM", noise].records, "epoch") for noise in data}
    most = round(max(budget.max() for budget in epochs.values()))
    # Few epochs between two records: a run is read at the last within its budget.
    every = max(1, config.recipe.record_every // 5)
    recipe = dataclasses.replace(config.recipe, epochs=most, record_every=every, stop_loss=None)
    found = trained(config, out / "longer", "sgd", data, {LONGER: 0.0}, recipe)
    runs: Runs = {}
    for (arm, noise), each in found.items():
        among = within(each.records, epochs[noise])
        along = {f"{name}_along": each.records[name] for name in ("epoch", "test_accuracy")}
        reached = {"reached": stopped(config, sam["SAM", noise])}
        runs[arm, noise] = last(each, among) | along | reached
    return runs


def of_tasks(config: Any, out: Path) -> Runs:
    """Where SGD, SAM and random steps end on the further tasks."""
    data, runs = load_tasks(config), {}
    for kind in ("sgd", "random", "sam") if data else ():
        *_, (arm, rho) = arms(config)[kind][1].items()
        found = trained(config, out / f"tasks_{kind}", kind, data, {arm: rho})
        runs |= {of: last(each) | {"reached": stopped(config, each)} for of, each in found.items()}
    return runs


def random_steps(rho: Any, seed: Any) -> optax.GradientTransformationExtraArgs:
    """SAM but for the ascent: the gradient a distance rho away in a random direction."""

    def update(updates, key, params, *, grad_fn, **extra):
        del updates, extra
        key, now = jax.random.split(key)
        direction = optax.tree.random_like(now, params, jax.random.normal)
        length = rho / optax.tree.norm(direction)
        return grad_fn(optax.tree.add_scale(params, length, direction)), key

    return optax.GradientTransformationExtraArgs(lambda params: jax.random.key(seed), update)


def last(runs: Trained, among: Any = True) -> dict[str, np.ndarray]:
    """What is recorded last, or last among some records."""
    return {name: final(runs.records, name, among) for name in ENDS}


def stopped(config: Any, runs: Trained) -> np.ndarray:
    """Which runs are at the training loss; without one to stop at every run is at its end."""
    return runs.reached | (config.recipe.stop_loss is None)


def end(config: Any, runs: Trained, data: SmallData) -> dict[str, np.ndarray]:
    """Curvature, SAM sharpness and a line through the loss surface, where the runs end."""
    recipe = config.recipe
    losses_fn = recipes.losses_fn(recipe)
    data = first_examples(data, config.measured, axis=1)
    found = curvature.curvature_of_runs(recipe, runs, data, top=5)
    rises, largest, lines = [], [], []
    for index in range(len(data.targets)):
        point, state = curvature.run_of((runs.params, runs.model_state), index)
        batch = recipes.training_batch(recipe, curvature.run_of(data, index))
        rise = flatjax.sam_sharpness(
            losses_fn, point, batch, state, rho=config.measured_rho, ascent_steps=10
        )
        rises.append(float(rise.value))
        largest.append(float(rise.loss + rise.value))
        # The same random numbers for every arm, scaled to the filters of its own weights.
        direction = flatjax.filter_normalized_direction(point, key=jax.random.key(index))
        line = flatjax.loss_along(
            losses_fn, point, batch, state, direction=direction, positions=POSITIONS
        )
        lines.append(np.asarray(line.losses))
    weights = sum(a[0].size for a in jax.tree.leaves(runs.params))
    found |= {"sam_sharpness": np.array(rises), "largest_loss": np.array(largest)}
    found |= {"line": np.array(lines), "weights": np.full(len(rises), weights)}
    return found | last(runs) | {"reached": stopped(config, runs)}
