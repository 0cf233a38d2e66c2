"""The numbers of the claims: of one seed's records, or of those of descent and flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from experiments.edge_of_stability import Config

Own = dict[str, np.ndarray]

FITTED = 1e-3
"""The training loss from which on a network stands nearly still and its sharpness with it."""


def crossing(ratio: np.ndarray) -> int | None:
    """The first measurement at which the sharpness is above the edge."""
    above = np.flatnonzero(ratio > 1)
    return int(above[0]) if len(above) else None


def settled(config: Config, own: Own, of: str = "ratio") -> np.ndarray:
    """Sharpness over threshold in the second half of the time at the edge.

    That is from the first crossing (of SGD, which need not cross: from the start) to `FITTED`.
    """
    first = crossing(own["ratio"]) or 0
    fitted = np.flatnonzero(own["loss"] < FITTED)
    end = fitted[0] // config.every if len(fitted) else len(own["ratio"])
    end = max(end, first + 2)
    return own[of][(first + end) // 2 : end]


def level(config: Config, own: Own) -> float:
    """Their mean."""
    return float(settled(config, own).mean())


def plain_level(config: Config, own: Own) -> float:
    """The same with gradient descent's threshold at that learning rate."""
    return float(settled(config, own, "plain_ratio").mean())


def last_half(config: Config, flow: Own) -> np.ndarray:
    """Sharpness over threshold in the last half of the run."""
    return flow["ratio"][len(flow["ratio"]) // 2 :]


def rises(own: Own) -> np.ndarray:
    """Which steps raise the loss."""
    return np.diff(own["loss"]) > 0


def rises_of_crossing(after: int) -> Callable[..., float | None]:
    """The steps that raise the loss up to the crossing, or in as many after it."""

    def number(config: Config, own: Own) -> float | None:
        first = crossing(own["ratio"])
        if first is None:
            return None
        # One update later an instability may show in the loss; none before.
        count = first * config.every
        return float(rises(own)[after * count : (after + 1) * count].sum())

    return number


def worst_rise(parts: int | None) -> Callable[..., float]:
    """The largest ratio of the loss at the edge, in means over so many parts, to that before."""

    def number(config: Config, own: Own) -> float:
        loss = own["loss"][(crossing(own["ratio"]) or 0) * config.every :]
        means = np.array([part.mean() for part in np.array_split(loss, parts or len(loss))])
        return float((means[1:] / means[:-1]).max())

    return number


def grows(to: float, since: float) -> Callable[..., float | None]:
    """Distance of descent and flow over the way of the flow, at two multiples of the crossing."""

    def number(config: Config, own: Own, flow: Own) -> float | None:
        first = crossing(own["ratio"])
        relative = flow["distance"] / flow["moved"]
        far, near = (min(round(times * (first or 0)), len(relative) - 1) for times in (to, since))
        return relative[far] / relative[near] if 0 < near < far else None

    return number


def digits_off(name: str) -> Callable[..., float]:
    """log10 of quadratic model over loss after the steps on both."""
    return lambda config, own: np.log10(abs(own[name][1, -1]) / own[name][0, -1])


def of_largest(config: Config, own: Own) -> float:
    """The last sharpness over the largest."""
    return own["ratio"][-1] / own["ratio"].max()
