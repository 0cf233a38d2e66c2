"""What is run, part by part: each returns the arrays of one seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.langevin import chains, theory
from experiments.langevin.gradients import batch_noise

if TYPE_CHECKING:
    from experiments.langevin import Config

WELLS = theory.Wells()
START = 0.0
"""Where the particles start: near the barrier."""
HESSIAN = np.diag([2.0, 0.5])
NOISES = np.array([[[1.0, 0.8], [0.8, 1.0]], np.eye(2)])
"""Covariances of the noise in the plane: correlated, and isotropic."""


def quadratic(config: Config, seed: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """`variance` of the weights by setting and curvature."""
    found = []
    for rate, batch_size, momentum in config.settings:
        relaxation = 1 / (rate * min(config.curvatures))
        found.append(chains.quadratic(
            rng, config.curvatures, rate, batch_size, momentum, chains=config.chains,
            warm_up=round(4 * relaxation), steps=round(config.relaxations * relaxation),
        ))  # fmt: skip
    return {"variance": np.array(found)}


def plane(config: Config, seed: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Covariances, circulations and moves by kind of noise."""
    each = [
        chains.plane(
            rng, HESSIAN, noise, config.plane_rate, chains=config.plane_chains,
            warm_up=round(8 / (config.plane_rate * HESSIAN.diagonal().min())),
            steps=config.plane_steps, edges=plane_edges(config),
        )
        for noise in NOISES
    ]  # fmt: skip
    return {name: np.stack([found[name] for found in each]) for name in each[0]}


def plane_edges(config: Config) -> np.ndarray:
    """Bins along both axes, to two and a half standard deviations, (2, bins + 1)."""
    reach = 2.5 * np.sqrt(theory.boltzmann_variance(config.plane_rate, 1, HESSIAN.diagonal()))
    return np.linspace(-reach, reach, 12, axis=1)


def density(config: Config, seed: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """`histograms` of particles by time."""
    found = chains.histograms(
        rng, WELLS, config.particle_noise, config.particle_rate, particles=config.particles,
        start=START, times=config.times, edges=edges(config),
    )  # fmt: skip
    return {"histograms": found}


def edges(config: Config) -> np.ndarray:
    """The bins of the particles, to where next to none of them comes."""
    reach = 5 * np.sqrt(config.particle_noise / 2 / np.array(WELLS.curvatures))
    return np.linspace(WELLS.centres[0] - reach[0], WELLS.centres[1] + reach[1], config.bins + 1)


def wells(config: Config, seed: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """`shares` of the time in well A, by noise, with (eta, S) and with twice both."""
    found = [
        chains.occupation(
            rng, WELLS, noise, config.well_rate, chains=config.well_chains, warm_up=time / 2,
            time=time,
        )
        for noise, time in zip(config.noises, config.well_times, strict=True)
    ]  # fmt: skip
    return {"shares": np.array(found)}


def walk(config: Config, seed: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """`densities` of the walk of SGD, and of Stratonovich's."""
    found = [
        chains.walk(
            rng, lambda x: scale(config, x), walkers=config.walkers, warm_up=400,
            steps=config.walk_steps, bins=config.walk_bins, midpoint=midpoint,
        )
        for midpoint in (False, True)
    ]  # fmt: skip
    return {"densities": np.array(found)}


def scale(config: Config, x: Any) -> Any:
    """The size g(x) of the noise along the valley."""
    return config.walk_scale * (1 + 2 * np.sin(np.pi * np.asarray(x)) ** 2)


def centres(config: Config) -> np.ndarray:
    """The middles of the bins of the walk."""
    return (np.arange(config.walk_bins) + 0.5) / config.walk_bins


PARTS: dict[str, Callable[..., dict[str, np.ndarray]]] = {
    "noise": batch_noise, "quadratic": quadratic, "plane": plane, "density": density,
    "wells": wells, "walk": walk,
}  # fmt: skip
