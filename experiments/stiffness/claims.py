"""What is claimed, and the number of every claim."""

from __future__ import annotations

import numpy as np

from experiments.lib.verdicts.claims import Claim, by_name
from experiments.lib.verdicts.statistics import rank_correlation

Found = dict[str, dict[str, np.ndarray]]

_FORT = "Fort et al. 2019"
_WU = "Wu, Ma & E 2018"
_SOON = 1  # the first record after the start

CLAIMS = by_name(
    Claim(
        name="within",
        statement="Cosine of two gradients of one class, the least of all records.",
        paper=_FORT, low=0.25, reason="0.375 to 0.419 on seeds 0-4",
    ),
    Claim(
        name="between",
        statement="Cosine of two gradients of different classes, the largest of all records.",
        paper=_FORT, high=0.05, reason="-0.00747 to -0.000953 on seeds 0-4",
    ),
    Claim(
        name="sign-within",
        statement="Sign stiffness within a class, the least after the first record.",
        paper=_FORT, low=0.75, reason="0.859 to 0.928 on seeds 0-4",
    ),
    Claim(
        name="sign-between",
        statement="Sign stiffness between classes, the largest after the first record.",
        paper=_FORT, high=0.05, reason="-0.331 to -0.3 on seeds 0-4",
    ),
    Claim(
        name="test-within",
        statement="Cosine of a training and a test gradient of one class, the least.",
        paper=_FORT, low=0.2, reason="0.381 to 0.405 on seeds 0-4",
    ),
    Claim(
        name="test-like-train",
        statement="Cosine within a class at the end: training and test over training only.",
        paper=_FORT, low=0.8, high=1.1, reason="0.931 to 1.04 on seeds 0-4",
    ),
    Claim(
        name="stable",
        statement="The stability condition's left side where SGD ends, the largest of all.",
        paper=_WU, high=1.0, reason="0.848 to 0.995 on seeds 0-4",
    ),
    Claim(
        name="small-batches-uniform",
        statement="Non-uniformity with the smallest batches over the full batch, at large eta.",
        paper=_WU, high=0.95, reason="0.373 to 0.454 on seeds 0-4",
    ),
    Claim(
        name="small-batches-flat",
        statement="Sharpness with the smallest batches over the full batch, at large eta.",
        paper=_WU, high=0.95, reason="0.402 to 0.52 on seeds 0-4",
    ),
    Claim(
        name="flat-is-uniform",
        statement="Rank correlation of sharpness and non-uniformity over all minima.",
        paper=_WU, low=0.8, reason="0.943 to 1 on seeds 0-4",
    ),
    Claim(
        name="one-dimension-stays",
        statement="SGD that stays at the non-uniform minimum at eta = 0.5, left side 0.81.",
        paper=_WU, low=0.99, reason="exact: every factor is 0.9 in magnitude",
    ),
    Claim(
        name="one-dimension-leaves",
        statement="SGD that leaves it for the uniform minimum at eta = 0.7, left side 1.75.",
        paper=_WU, low=0.99, reason="exact: the mean logarithm of the factors is 0.18",
    ),
    Claim(
        name="one-dimension-descent-stays",
        statement="Gradient descent that stays there at eta = 0.7.",
        paper=_WU, low=0.99, reason="exact: the factor is -0.4",
    ),
)  # fmt: skip


def numbers(training: list[dict[str, np.ndarray]], minima: Found) -> dict[str, np.ndarray]:
    """The measured number of every claim of the first two parts, one a seed."""
    records = training[0]
    small, full = (list(minima.values())[i] for i in (0, -1))
    reached = np.array([m["reached"] for m in minima.values()]).all((0, 2))
    tops = np.concatenate([m["sharpness"] for m in minima.values()], axis=1)
    spreads = np.concatenate([m["non_uniformity"] for m in minima.values()], axis=1)

    def ratio(name):
        return np.where(reached, small[name][:, -1] / full[name][:, -1], np.nan)

    def correlation(a, b):
        return np.array([rank_correlation(x, y) for x, y in zip(a, b, strict=True)])

    return {
        "within": records["cos_within"].min(1),
        "between": records["cos_between"].max(1),
        "sign-within": records["sign_within"][:, _SOON:].min(1),
        "sign-between": records["sign_between"][:, _SOON:].max(1),
        "test-within": records["test_cos_within"].min(1),
        "test-like-train": records["test_cos_within"][:, -1] / records["cos_within"][:, -1],
        "stable": np.array([m["value"].max(1) for m in minima.values()]).max(0),
        "small-batches-uniform": ratio("non_uniformity"),
        "small-batches-flat": ratio("sharpness"),
        "flat-is-uniform": correlation(tops, spreads),
    }
