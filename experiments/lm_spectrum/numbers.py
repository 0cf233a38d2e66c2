"""The numbers of the claims, one for each seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import wasserstein_distance

from experiments.lib.verdicts.statistics import rank_correlation
from experiments.lm_spectrum.decoder import TYPES

if TYPE_CHECKING:
    from experiments.lib.lab import Runs


def above(lower: str, upper: str, traces: str = "traces") -> Any:
    """The measure of a claim: the difference of two traces per parameter over their sum.

    Of a negative trace over the sum of the magnitudes, so that it lies between -1 and 1.
    """

    def measure(runs: Runs, config: Any) -> np.ndarray:
        a, b = (per_parameter(runs, traces)[:, TYPES.index(kind)] for kind in (lower, upper))
        return (b - a) / (abs(a) + abs(b))

    return measure


def per_parameter(runs: Runs, traces: str = "traces") -> np.ndarray:
    """The traces of the blocks over their sizes, (seeds, types)."""
    return runs["end"][traces] / runs["end"]["sizes"]


def last_half(arm: str, name: str) -> Any:
    """The measure of a claim: the mean of a record over the last half of an arm."""

    def measure(runs: Runs, config: Any) -> np.ndarray:
        values = runs[arm][name]
        return values[:, values.shape[1] // 2 :].mean(1)

    return measure


def critical_share(unit: str) -> Any:
    """The measure of a claim: critical sharpness over another, geometric mean over both arms."""

    def measure(runs: Runs, config: Any) -> np.ndarray:
        arms = [runs["batches"], runs["full batch"]]
        logs = [np.log(arm["critical"] / arm[unit]).mean(1) for arm in arms]
        return np.exp(np.mean(logs, 0))

    return measure


def follows(order: slice) -> Any:
    """The measure of a claim: how the critical follows the preconditioned sharpness in rank."""

    def measure(runs: Runs, config: Any) -> np.ndarray:
        arms = [runs["batches"], runs["full batch"]]
        rows = [
            [rank_correlation(c[order], p) for c, p in zip(a["critical"], a["preconditioned"],
                                                           strict=True)] for a in arms
        ]  # fmt: skip
        return np.mean(rows, 0)

    return measure


def of_end(first: str, second: str) -> Any:
    """The measure of a claim: a number of the spectrum over another."""
    return lambda runs, config: runs["end"][first] / runs["end"][second]


def total(blocks: slice) -> Any:
    """The measure of a claim: the traces of some types of blocks over that of the whole."""
    return lambda runs, config: runs["end"]["traces"][:, blocks].sum(1) / runs["end"]["trace"]


def decades(nodes: np.ndarray, unit: float) -> np.ndarray:
    """Eigenvalues on an axis that is in decades where they are large, linear below `unit`."""
    return np.arcsinh(nodes / (2 * unit)) / np.log(10)


def distance(runs: Runs, one: tuple[int, int], other: tuple[int, int]) -> float:
    """Between the spectra of two blocks, each a seed and a type, in decades.

    The first Wasserstein distance between densities of `decades`, in units of a hundredth of the
    mean eigenvalue of the first seed's whole Hessian.
    """
    end = runs["end"]
    unit = abs(end["trace"][0]) / end["sizes"][0].sum() / 100
    nodes, weights = end["nodes"], end["weights"]
    places = [(seed, 1 + kind) for seed, kind in (one, other)]
    given = [decades(nodes[p], unit) for p in places], [weights[p] for p in places]
    if not all(np.isfinite(part).all() for pair in given for part in pair):
        return np.nan
    return float(wasserstein_distance(*given[0], *given[1]))


def heterogeneity(runs: Runs, config: Any) -> np.ndarray:
    """The measure of a claim: between types of a seed over that between seeds of a type."""
    return between_types(runs) / between_seeds(runs, 1)


def homogeneous(runs: Runs, config: Any) -> np.ndarray:
    """Its null: the same types of a seed and the one after the next in place of other types."""
    return between_seeds(runs, 2) / between_seeds(runs, 1)


def between_types(runs: Runs) -> np.ndarray:
    """The mean distance of two types of blocks of a seed."""
    count = len(TYPES)
    pairs = [(a, b) for a in range(count) for b in range(a)]
    seeds = range(len(runs["end"]["sizes"]))
    return np.array([np.mean([distance(runs, (s, a), (s, b)) for a, b in pairs]) for s in seeds])


def between_seeds(runs: Runs, step: int) -> np.ndarray:
    """The mean distance of a type of a seed from that of another; NaN where there is no other."""
    count = len(runs["end"]["sizes"])
    if count <= step:
        return np.full(count, np.nan)
    kinds = range(len(TYPES))
    return np.array(
        [np.mean([distance(runs, (s, k), ((s + step) % count, k)) for k in kinds])
         for s in range(count)]
    )  # fmt: skip


def kept(runs: Runs, config: Any) -> Runs:
    """What is kept beside the claims: all but the densities."""
    end = {n: values for n, values in runs["end"].items() if n not in ("nodes", "weights")}
    return runs | {"end": end}
