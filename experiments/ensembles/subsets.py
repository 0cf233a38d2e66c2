"""The losses of all ensembles of some networks, exact means over their subsets.

found = measured(logits, targets, sizes=[1, 2, 3], halvings=[1, 2])
found["nll"]                                                         # (sizes,)
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from scipy.special import comb, log_softmax

import flatjax


def expected_nll(log_p: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    r"""The loss of n members, the mean over all subsets of n, for each n of `sizes`.

    With $\log x = \int (e^{-c t} - e^{-x t}) / t \, dt + \log c$ and t = e^u the mean over subsets
    passes to $e^{-x t}$, whose mean over subsets of n is an elementary symmetric polynomial: a
    recursion over the members. The integrand is smooth in u, so that its trapezoidal sum at steps
    of 1/2 is right to eight digits.

    Args:
      log_p: every member's log-probability of the target, (members, examples).
      sizes: at most as many as there are members.

    Returns:
      The losses, (sizes,); NaN where a member has diverged.
    """
    if not np.isfinite(log_p).all():
        return np.full(len(sizes), np.nan)
    largest, step = log_p.max(0), 0.5
    p = np.exp(log_p - largest)
    mean, count = p.mean(0), len(p)
    # From where the integrand is 1e-9, its terms in t having the mean zero, to where all vanish.
    u = np.arange(-np.log(count) - 12, 4 - np.log(max(p.min(), 1e-30)), step)
    t = np.exp(u)[:, None]
    symmetric = np.zeros((max(sizes) + 1, len(u), p.shape[1]))
    symmetric[0] = 1
    for k in range(1, count + 1):
        x = np.exp(-t * p[k - 1])
        for n in range(min(k, max(sizes)), 0, -1):
            symmetric[n] += n / k * (x * symmetric[n - 1] - symmetric[n])
    integrals = [step * (np.exp(-n * mean * t) - symmetric[n]).sum(0) for n in sizes]
    return np.array([-(np.log(mean) + i + largest).mean() for i in integrals])


def best_of(losses: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The least loss among n members, the mean over all subsets of n, for each n of `sizes`."""
    ordered, after = np.sort(losses), np.arange(len(losses))[::-1]
    return np.array([comb(after, n - 1) @ ordered / comb(len(losses), n) for n in sizes])


def measured(
    logits: np.ndarray, targets: np.ndarray, sizes: Sequence[int], halvings: Sequence[int]
) -> dict[str, np.ndarray]:
    """The losses of all ensembles of some members, logits (members, examples, classes).

    The calibrated one is the mean over the parts of a partition, for each of the `halvings`.
    """
    log_p = log_softmax(np.asarray(logits, float), -1)
    log_p = np.take_along_axis(log_p, targets[None, :, None], -1)[..., 0]
    p, key = np.exp(log_p), jax.random.key(0)
    calibrated = [
        np.mean([
            flatjax.calibrated_nll(logits[i : i + n], targets, key=key).value
            for i in range(0, len(logits), n)
        ])
        for n in halvings
    ]  # fmt: skip
    return {
        "nll": expected_nll(log_p, sizes),
        "best": best_of(-log_p.mean(1), sizes),
        "calibrated": np.array(calibrated),
        "b": (p.var(0, ddof=1) / (2 * p.mean(0) ** 2)).mean(),
        "b_log": log_p.var(0, ddof=1).mean() / 2,
    }
