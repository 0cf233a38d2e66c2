"""Numbers of claims on the laws, the sphere, and training with weight decay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.lib.verdicts.statistics import rank_correlation

if TYPE_CHECKING:
    from experiments.lib.lab import Runs
    from experiments.scale_invariance import Config


def law(name: str) -> Any:
    """The measure of a claim on one of the laws."""
    return lambda runs, config: runs["laws"][name]


def identities(runs: Runs, config: Config) -> np.ndarray:
    """The largest error of the four identities."""
    names = ("value", "gradient", "hessian", "orthogonal")
    return np.max([runs["laws"][name] for name in names], axis=0)


def on_rate(config: Config, regime: int) -> str:
    """The arm of a regime: 0 converges, 1 is the chaotic equilibrium, 2 diverges."""
    return f"sphere {config.regimes[regime]:g}"


def trend(regime: int) -> Any:
    """The measure of a claim: the mean loss of the last quarter over that of the second one."""

    def measured(runs: Runs, config: Config) -> np.ndarray:
        quarters = np.array_split(runs[on_rate(config, regime)]["loss"][:, 1:], 4, axis=1)
        return quarters[3].mean(1) / quarters[1].mean(1)

    return measured


def last_quarter(name: str, regime: int) -> Any:
    """The measure of a claim on the mean of a record over the last quarter."""
    return lambda runs, config: np.array_split(
        runs[on_rate(config, regime)][name][:, 1:], 4, axis=1
    )[3].mean(1)


def turning(regime: int) -> Any:
    """The measure of a claim: the angle of a step on the sphere over a right angle.

    A step eta g from a unit vector to which g is orthogonal turns it by arctan(eta |g|).
    """

    def measured(runs: Runs, config: Config) -> np.ndarray:
        squares = last_quarter("squared_gradients", regime)(runs, config)
        return np.arctan(config.regimes[regime] * np.sqrt(squares)) / (np.pi / 2)

    return measured


def destabilised(arm: str) -> Any:
    """The measure of a claim: how often the loss rises from near its usual value tenfold."""

    def measured(runs: Runs, config: Config) -> np.ndarray:
        return np.array([jumps(losses) for losses in runs[arm]["loss"]])

    return measured


def jumps(losses: np.ndarray, factor: float = 10.0) -> float:
    """How often a series rises beyond `factor` times its late median, from below twice of it."""
    usual, count, calm = np.median(losses[len(losses) // 2 :]), 0, False
    for loss in losses:
        if calm and loss > factor * usual:
            count, calm = count + 1, False
        elif loss < 2 * usual:
            calm = True
    return float(count)


def edge(arm: str, rate: str) -> Any:
    """The measure of a claim: the largest eigenvalue over 2 / eta, the last quarter's mean."""

    def measured(runs: Runs, config: Config) -> np.ndarray:
        records = runs[arm]
        sharpness = records["effective_sharpness"] / records["norm"] ** 2
        return np.array_split(sharpness, 4, axis=1)[3].mean(1) * getattr(config, rate) / 2

    return measured


def peak(values: np.ndarray) -> int:
    """Where the effective sharpness is largest after the start, which is random."""
    return 1 + int(np.argmax(values[1:]))


def falls(arm: str) -> Any:
    """The measure of a claim: rank correlation of time and effective sharpness, from its peak."""
    return lambda runs, config: np.array([
        rank_correlation(np.arange(len(v) - peak(v)), v[peak(v) :]) if len(v) - peak(v) > 2 else 0.0
        for v in runs[arm]["effective_sharpness"]
    ])  # fmt: skip


def rises(arm: str) -> Any:
    """The measure of a claim: the largest effective sharpness over the first record's."""
    return lambda runs, config: np.array(
        [v[peak(v)] / v[1] for v in runs[arm]["effective_sharpness"]]
    )


def follows(arm: str) -> Any:
    """The measure of a claim: slope of the logarithms of effective sharpness against |w|^2."""

    def slope(norms: np.ndarray, values: np.ndarray) -> float:
        half = len(norms) // 2
        x, y = np.log(norms[half:] ** 2), np.log(values[half:])
        return float(np.cov(x, y)[0, 1] / x.var(ddof=1))

    return lambda runs, config: np.array(
        [slope(*rows) for rows in zip(*(runs[arm][n] for n in ("norm", "effective_sharpness")),
                                      strict=True)]
    )  # fmt: skip


def second_and_last(arm: str, name: str) -> Any:
    """(runs) -> the means of a record over the second quarter and over the last one, by seed."""

    def measured(runs: Runs) -> tuple[np.ndarray, np.ndarray]:
        quarters = np.array_split(runs[arm][name][:, 1:], 4, axis=1)
        return quarters[1].mean(1), quarters[3].mean(1)

    return measured


def sharpens(arm: str) -> Any:
    """The measure of a claim: effective sharpness in the last quarter over the second one."""

    def measured(runs: Runs, config: Config) -> np.ndarray:
        before, after = second_and_last(arm, "effective_sharpness")(runs)
        return after / before

    return measured


def gains(quarter: int) -> Any:
    """The measure of a claim: test accuracy of the annealed runs less that of the others."""
    return lambda runs, config: np.subtract(
        *(second_and_last(arm, "test_accuracy")(runs)[quarter]
          for arm in ("annealed", "not annealed"))
    )  # fmt: skip


def improves(arm: str) -> Any:
    """The measure of a claim: test loss in the last quarter over that in the second one."""

    def measured(runs: Runs, config: Config) -> np.ndarray:
        before, after = second_and_last(arm, "test_loss")(runs)
        return after / before

    return measured


def smooth(values: np.ndarray) -> np.ndarray:
    """Means over five neighbours."""
    width = min(5, len(values))
    return np.convolve(values, np.full(width, 1 / width), mode="valid")
