"""The numbers of the claims, one per seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.lib.lab import Runs
from experiments.random_features.exact import ridge_theory, weak_theory
from experiments.random_features.least_squares import KINDS

if TYPE_CHECKING:
    from experiments.random_features import Config

NORM = 1.0
"""|beta| in both models of theory."""

WEAK = ("equal", "best first")
"""The orders of the weak features."""


def weak_betas(config: Config) -> np.ndarray:
    """The true coefficients: all equal, and falling as 1 / j."""
    falling = 1 / np.arange(1, max(config.weak_sizes) + 1)
    betas = np.stack([np.ones_like(falling), falling])
    return NORM * betas / np.linalg.norm(betas, axis=1, keepdims=True)


def theory_ridges() -> np.ndarray:
    """The ridges of ridge regression: ten to a factor of ten."""
    return np.geomspace(0.1, 1000, 41)


def best_ridge(config: Config, size: int | None = None) -> int:
    """Which ridge is next to that of theory; or, of so many examples, to sigma^2 n / |beta|^2."""
    ridge = config.ridge_noise**2 * (size or config.dimensions) / NORM**2
    return int(abs(np.log(theory_ridges() / ridge)).argmin())


def peak(kind: str, name: str) -> Any:
    """The measure of a claim: N where a number is largest over n, of the farthest of all noises."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        places = np.array(config.counts)[runs[kind][name].argmax(-1)] / config.train_size
        farthest = abs(np.log(places)).argmax(1)[:, None]
        return np.take_along_axis(places, farthest, 1)[:, 0]

    return measure


def at_threshold(rows: np.ndarray, config: Config) -> np.ndarray:
    """Numbers (..., counts) where features are as many as examples."""
    return rows[..., config.counts.index(config.train_size)]


def below(rows: np.ndarray, config: Config) -> np.ndarray:
    """Numbers (..., counts) where features are fewer than examples."""
    return rows[..., np.array(config.counts) < config.train_size]


def height(kind: str, name: str) -> Any:
    """The measure of a claim: log10 of the risk at N = n over its least before; clean labels."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        rows = runs[kind][name][:, 0]
        return np.log10(at_threshold(rows, config) / below(rows, config).min(-1))

    return measure


def second_descent(kind: str, noise: int) -> Any:
    """The measure of a claim: the last test risk over the least with N < n."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        rows = runs[kind]["test"][:, noise]
        return rows[:, -1] / below(rows, config).min(-1)

    return measure


def norm_falls(runs: Runs, config: Config) -> np.ndarray:
    """The least of both kinds and all noises: log10 of the norm at N = n over the last."""
    each = [
        np.log10(at_threshold(runs[k]["norm"], config) / runs[k]["norm"][..., -1]) for k in KINDS
    ]
    return np.min(each, axis=(0, 2))


def norm_falls_before(runs: Runs, config: Config) -> np.ndarray:
    """The null: the norm at the last N < n in place of that at N = n."""
    each = [
        np.log10(below(runs[k]["norm"], config)[..., -1] / runs[k]["norm"][..., -1]) for k in KINDS
    ]
    return np.min(each, axis=(0, 2))


def train_risk(runs: Runs, config: Config) -> np.ndarray:
    """The largest training risk from 1.06 n features on, of both kinds and all noises."""
    beyond = np.array(config.counts) >= 1.06 * config.train_size
    return np.max([runs[kind]["train"][..., beyond] for kind in KINDS], axis=(0, 2, 3))


def train_risk_before(runs: Runs, config: Config) -> np.ndarray:
    """The null: with the most features that are fewer than the examples."""
    return np.max([below(runs[kind]["train"], config)[..., -1] for kind in KINDS], axis=(0, 2))


def largest_rise(name: str) -> Any:
    """The measure of a claim: the largest ratio of risks at one N and the N before, less 1.

    Of both kinds, with none and with some of the labels wrong.
    """

    def measure(runs: Runs, config: Config) -> np.ndarray:
        rows = np.stack([runs[kind][name][:, :-1] for kind in KINDS])
        return (rows[..., 1:] / rows[..., :-1] - 1).max((0, 2, 3))

    return measure


def more_data(name: str) -> Any:
    """The measure of a claim: log10 of the risk of n = N examples over that of a third as many."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        sizes, n = np.array(config.sample_sizes), config.train_size
        few = int(abs(np.log(3 * sizes / n)).argmin())
        rows = runs["samples"][name][:, 0]
        return np.log10(rows[:, list(sizes).index(n)] / rows[:, few])

    return measure


def weak_off(less: int) -> Any:
    """The measure of a claim: the largest relative distance from theory of weak features."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        sizes, n = config.weak_sizes, config.weak_samples
        off = []
        for name, beta in zip(WEAK, weak_betas(config), strict=True):
            theory = [weak_theory(beta, p, n, config.weak_noise, less) for p in sizes]
            off.append(abs(runs["weak"][name] / theory - 1))
        return np.max(off, axis=0)[:, abs(np.array(sizes) - n) >= 4].max(1)

    return measure


def ridge_off(runs: Runs, config: Config) -> np.ndarray:
    """The most steps between the best of the ridges and that of theory."""
    return abs(runs["ridge"]["test"].argmin(-1) - best_ridge(config)).max(1)


def ridge_off_per_example(runs: Runs, config: Config) -> np.ndarray:
    """The null: were the best ridge that of theory with n in place of d."""
    other = np.array([best_ridge(config, size) for size in config.ridge_sizes])
    return abs(runs["ridge"]["test"].argmin(-1) - other).max(1)


def ridge_rise(which: int | None) -> Any:
    """The measure of a claim: the largest ratio of a risk and that of fewer examples."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        rows = runs["ridge"]["test"][..., best_ridge(config) if which is None else which]
        return (rows[:, 1:] / rows[:, :-1]).max(1)

    return measure


def ridge_risk_off(which: int | None) -> Any:
    """The measure of a claim: the largest relative distance from theory of ridge regression."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        rows = runs["ridge"]["test"][..., best_ridge(config) if which is None else which]
        d, noise = config.dimensions, config.ridge_noise
        theory = [ridge_theory(d, size, NORM, noise) for size in config.ridge_sizes]
        return abs(rows / theory - 1).max(1)

    return measure
