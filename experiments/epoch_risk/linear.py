"""Gradient descent on a linear model, its risk and the formula of many examples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Problem(NamedTuple):
    """Targets <x, theta> + sigma z, of inputs x with independent Gaussian entries.

    Attributes:
      scales: (d,) standard deviations of the entries.
      theta: (d,) true coefficients.
      samples: n, examples.
      noise: sigma.
    """

    scales: np.ndarray
    theta: np.ndarray
    samples: int
    noise: float


def formula(problem: Problem, steps: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The expected risk less sigma^2 after so many steps from zero, for n much larger than d.

    The loss is the sum of squares over 2 n. With the covariance of infinitely many inputs each
    coordinate is by itself: its error is multiplied by 1 - eta s^2 in each step, and the noise,
    whose mean product with the input has the variance s^2 sigma^2 / n, moves where it ends. So the
    bias falls and the variance rises, each coordinate in its own time.

    Args:
      problem: the model.
      steps: (d,) step sizes eta.
      times: (times,) numbers of steps.
    """
    left = (1 - steps * problem.scales**2) ** times[:, None]
    bias = np.square(problem.scales * problem.theta * left)
    return (bias + problem.noise**2 / problem.samples * (1 - left) ** 2).sum(1)


def simulated(
    problem: Problem, steps: np.ndarray, times: np.ndarray, draws: int, noises: int, seed: int
) -> np.ndarray:
    """Mean risk less sigma^2 of gradient descent over draws of inputs and of noises for each.

    Its steps are linear maps, theta moves by -eta (S (theta - theta*) - v) with the inputs' second
    moments S and v their mean product with the noise. In coordinates of theta / sqrt(eta) the map
    is symmetric, so all steps are taken at once in its eigenvectors.
    """
    rng, total = np.random.default_rng(seed), np.zeros(len(times))
    root, n = np.sqrt(steps), problem.samples
    for _ in range(draws):
        inputs = rng.standard_normal((n, len(root))) * problem.scales
        forced = inputs.T @ (problem.noise * rng.standard_normal((n, noises))) / n
        rates, vectors = np.linalg.eigh(root[:, None] * (inputs.T @ inputs / n) * root)
        start = -vectors.T @ (problem.theta / root)
        end = vectors.T @ (root[:, None] * forced) / rates[:, None]
        back = problem.scales[:, None] * root[:, None] * vectors
        for i, time in enumerate(times):
            left = ((1 - rates) ** time)[:, None]
            error = back @ (left * start[:, None] + (1 - left) * end)
            total[i] += np.square(error).sum() / noises
    return total / draws


def extrema(times: np.ndarray, risk: np.ndarray) -> tuple[list[float], list[float]]:
    """The times of the local minima and of the local maxima inside.

    Between the points a parabola in the logarithm of time is laid through three of them.
    """
    log, rises = np.log(times), np.diff(risk) > 0
    found: tuple[list[float], list[float]] = ([], [])
    for i in np.flatnonzero(rises[1:] != rises[:-1]) + 1:
        curvature, slope, _ = np.polyfit(log[i - 1 : i + 2] - log[i], risk[i - 1 : i + 2], 2)
        found[int(curvature < 0)].append(float(np.exp(log[i] - slope / (2 * curvature))))
    return found
