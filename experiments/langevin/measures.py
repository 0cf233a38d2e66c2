"""The numbers of the claims: `measure(runs, config)`, one number per seed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.langevin import theory
from experiments.langevin.parts import HESSIAN, NOISES, START, WELLS, centres, edges, scale

if TYPE_CHECKING:
    from experiments.langevin import Config
    from experiments.lib.lab import Runs

SMALL = 0.02
"""eta h up to which Boltzmann's law is asked for: there the step changes it by a hundredth."""


def farthest(found: Any, expected: Any) -> np.ndarray:
    """Of every seed the largest relative distance from what is expected."""
    found = np.asarray(found)
    return abs(found / expected - 1).reshape(len(found), -1).max(1)


def noise_off(kind: str, *, finite: bool) -> Any:
    """The measure of a claim: how far S times a variance is from theory."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        factor = theory.finite_population(config.digits, config.batch_sizes)[:, None]
        return farthest(runs["noise"][kind], factor if finite else 1.0)

    return measure


def grid(config: Config) -> tuple[np.ndarray, ...]:
    """Rates, batch sizes, curvatures and momenta of the quadratic, (settings, curvatures)."""
    rates, sizes, momenta = np.array(config.settings, float).T[..., None]
    return tuple(np.broadcast_arrays(rates, sizes, np.array(config.curvatures), momenta))


def variance_off(formula: Callable[..., Any]) -> Any:
    """The measure of a claim: how far any variance on the quadratic is from a formula."""
    return lambda runs, config: farthest(runs["quadratic"]["variance"], formula(*grid(config)))


def boltzmann_off(small: bool) -> Any:
    """The measure of a claim: how far variances without momentum are from Boltzmann's law."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        rates, sizes, curvatures, momenta = grid(config)
        chosen = (momenta == 0) & ((rates * curvatures <= SMALL) == small)
        expected = theory.boltzmann_variance(rates, sizes, curvatures)
        return farthest(runs["quadratic"]["variance"][:, chosen], expected[chosen])

    return measure


def spread(of: Callable[[Any, Any], Any]) -> Any:
    """The measure of a claim: largest variance over smallest, of settings that share a number.

    They are compared along the flattest direction, where eta h is small for all of them.
    """

    def measure(runs: Runs, config: Config) -> np.ndarray:
        groups: dict[float, list[int]] = {}
        for k, (rate, batch_size, momentum) in enumerate(config.settings):
            if momentum == 0:
                groups.setdefault(round(of(rate, batch_size), 9), []).append(k)
        flattest = int(np.argmin(config.curvatures))
        rows = runs["quadratic"]["variance"][:, :, flattest]
        each = [rows[:, g].max(1) / rows[:, g].min(1) for g in groups.values()]
        return np.max(each, axis=0) - 1

    return measure


def temperature_off(*, momentum: bool) -> Any:
    """The measure of a claim: how far h Var is from the temperature of the momentum."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        rates, sizes, curvatures, momenta = grid(config)
        chosen = (momenta > 0) & (rates * curvatures <= SMALL)
        expected = theory.boltzmann_variance(rates, sizes, curvatures, momenta * momentum)
        return farthest(runs["quadratic"]["variance"][:, chosen], expected[chosen])

    return measure


def covariance_off(formula: Callable[..., np.ndarray]) -> Any:
    """The measure of a claim: how far covariances in the plane are from a formula."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        expected = np.array([formula(HESSIAN, noise, config.plane_rate) for noise in NOISES])
        deviations = np.sqrt(np.einsum("kii->ki", expected))
        off = (runs["plane"]["covariance"] - expected) / np.einsum(
            "ki,kj->kij", deviations, deviations
        )
        return abs(off).max((1, 2, 3))

    return measure


def circulates(kind: int) -> Any:
    """The measure of a claim: circulation with noise of a kind, over theory's of the first."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        covariance = theory.stationary_covariance(HESSIAN, NOISES[0], config.plane_rate)
        expected = theory.circulation(HESSIAN, covariance, config.plane_rate)
        return runs["plane"]["circulation"][:, kind] / expected

    return measure


@functools.cache
def solution(config: Config, factor: float = 1.0) -> np.ndarray:
    """The Fokker-Planck equation at the times of the histograms, (times, bins)."""
    noise = factor * config.particle_noise
    return theory.fokker_planck(WELLS, noise, edges(config), START, config.times)


def over_the_floor(factor: float) -> Any:
    """The measure of a claim: total variation from the equation over that of sampling."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        floor = theory.sampling_floor(solution(config), config.particles)
        off = theory.total_variation(runs["density"]["histograms"], solution(config, factor))
        return (off / floor).mean(1)

    return measure


def odds(runs: Runs) -> np.ndarray:
    """p_A / p_B by noise, extrapolated to steps of no length, (seeds, noises)."""
    fine, coarse = np.moveaxis(runs["wells"]["shares"] / (1 - runs["wells"]["shares"]), -1, 0)
    return fine**2 / coarse


def odds_off(formula: Callable[[float], float]) -> Any:
    """The measure of a claim: how far the odds of the wells are from a formula of the noise."""
    return lambda runs, config: farthest(odds(runs), [formula(n) for n in config.noises])


def slope(kind: int) -> Any:
    """The measure of a claim: slope of log density against log g."""

    def measure(runs: Runs, config: Config) -> list[float]:
        x = np.log(scale(config, centres(config)))
        found = np.maximum(runs["walk"]["densities"][:, kind], 1e-12)
        return [np.polyfit(x, np.log(row), 1)[0] for row in found]

    return measure
