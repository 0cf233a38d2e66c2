"""Chains of SGD side by side, on examples whose losses differ by a linear term: L(x) - z_i x.

So the gradient noise of a batch is the mean of its z, whose moments are known exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import ndtri

from experiments.langevin.theory import Wells

EXAMPLES = 256
"""So many that a random byte names one."""


def gaussian_examples() -> np.ndarray:
    """Examples z at the quantiles of a Gaussian, with mean zero and variance one."""
    z = ndtri((np.arange(EXAMPLES) + 0.5) / EXAMPLES)
    return z / z.std()


def random_examples(rng: np.random.Generator, dimension: int) -> np.ndarray:
    """Examples z drawn at random, then moved to mean zero and covariance one, (examples, dim)."""
    z = rng.standard_normal((EXAMPLES, dimension))
    z -= z.mean(0)
    return z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / EXAMPLES)).T


def batch_means(
    rng: np.random.Generator, examples: np.ndarray, chains: int, batch_size: int = 1
) -> np.ndarray:
    """The mean z of a batch of each chain, drawn with replacement."""
    chosen = rng.integers(0, EXAMPLES, (batch_size, chains), dtype=np.uint8)
    return examples.take(chosen, axis=0).sum(0) / batch_size


def quadratic(
    rng: np.random.Generator, curvatures: Any, rate: float, batch_size: int, momentum: float,
    *, chains: int, warm_up: int, steps: int,
) -> np.ndarray:  # fmt: skip
    """Mean x^2 of SGD on h x^2 / 2 by curvature h; the noise of a single example is one.

    Args:
      rng: draws the examples and the batches.
      curvatures: h of each coordinate.
      rate: eta.
      batch_size: S.
      momentum: b of heavy ball, v' = b v - eta g and x' = x + v'.
      chains: side by side, all from zero.
      warm_up: steps that are not measured.
      steps: measured after them.
    """
    examples, curvatures = random_examples(rng, len(curvatures)), np.asarray(curvatures)
    x = np.zeros((chains, len(curvatures)))
    velocity, squares = np.zeros_like(x), np.zeros(len(curvatures))
    for step in range(warm_up + steps):
        gradient = x * curvatures - batch_means(rng, examples, chains, batch_size)
        velocity *= momentum
        velocity -= rate * gradient
        x += velocity
        if step >= warm_up:
            squares += np.einsum("ij,ij->j", x, x)
    return squares / (steps * chains)


def plane(
    rng: np.random.Generator, hessian: np.ndarray, noise: np.ndarray, rate: float,
    *, chains: int, warm_up: int, steps: int, edges: np.ndarray,
) -> dict[str, np.ndarray]:  # fmt: skip
    """SGD on x'Hx / 2 with noise of covariance C: covariance, circulation and where it drifts.

    Args:
      rng: draws the examples and the batches of one.
      hessian: H, (2, 2) and diagonal.
      noise: C, (2, 2).
      rate: eta.
      chains: side by side, all from zero.
      warm_up: steps that are not measured.
      steps: measured after them.
      edges: of the bins of the figure along each axis, (2, bins + 1).

    Returns:
      `covariance` (2, 2); `circulation`, the mean of x_1 x'_2 - x_2 x'_1; `moves` (2, bins, bins),
      the sums of x' - x over the steps whose midpoint is in a bin, per step of a chain.
    """
    examples = random_examples(rng, 2) @ np.linalg.cholesky(noise).T
    x, bins = np.zeros((chains, 2)), edges.shape[1] - 1
    covariance, moves, turned = np.zeros((2, 2)), np.zeros((2, bins, bins)), 0.0
    for step in range(warm_up + steps):
        new = x - rate * (x @ hessian - batch_means(rng, examples, chains))
        if step >= warm_up:
            covariance += new.T @ new
            turned += x[:, 0] @ new[:, 1] - x[:, 1] @ new[:, 0]
            middle = (x + new).T / 2
            inside = (abs(middle) < edges[:, -1:]).all(0)
            i, j = (np.searchsorted(*pair) - 1 for pair in zip(edges, middle, strict=True))
            cells = (i * bins + j)[inside]
            for axis, change in enumerate((new - x).T):
                found = np.bincount(cells, change[inside], bins * bins)
                moves[axis] += found.reshape(bins, bins)
        x = new
    count = steps * chains
    return {
        "covariance": covariance / count,
        "circulation": np.array(turned / count),
        "moves": moves / count,
    }


def histograms(
    rng: np.random.Generator, wells: Wells, noise: float, rate: float,
    *, particles: int, start: float, times: Any, edges: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Shares of the particles in bins at some times (steps times eta), (times, bins).

    SGD with batches of one: sigma^2 is the noise over the rate.
    """
    examples = gaussian_examples() * np.sqrt(noise / rate)
    x, found, done = np.full(particles, start), [], 0
    for stop in np.rint(np.asarray(times) / rate).astype(int):
        for _ in range(stop - done):
            x -= rate * (wells.gradient(x) - batch_means(rng, examples, particles))
        done = stop
        found.append(np.histogram(x, edges)[0] / particles)
    return np.array(found)


def occupation(
    rng: np.random.Generator, wells: Wells, noise: float, rate: float,
    *, chains: int, warm_up: float, time: float,
) -> np.ndarray:  # fmt: skip
    """The share of SGD left of the barrier, with (eta, S) = (rate, 1) and with (2 rate, 2).

    Both see the same examples: a step of the second the two of two steps of the first. So what
    they differ by, the bias of the step size, is known better than either share.

    Args:
      rng: draws the batches.
      wells: the potential.
      noise: eta sigma^2 / S, of both.
      rate: eta of the first.
      chains: side by side, half of them from each minimum.
      warm_up: time, in steps times eta, that is not measured.
      time: measured after it.

    Returns:
      Both shares, (2,).
    """
    # In single precision, twice as fast: rounding is far below the step.
    examples = (gaussian_examples() * np.sqrt(noise / rate)).astype(np.float32)
    fine, at = np.resize(wells.centres, chains).astype(np.float32), wells.barrier()
    coarse, left = fine.copy(), np.zeros(2)
    first, count = (round(t / (2 * rate)) for t in (warm_up, time))
    for step in range(first + count):
        one, other = (batch_means(rng, examples, chains) for _ in range(2))
        fine -= rate * (wells.gradient(fine) - one)
        fine -= rate * (wells.gradient(fine) - other)
        coarse -= 2 * rate * (wells.gradient(coarse) - (one + other) / 2)
        if step >= first:
            left += np.count_nonzero(fine < at), np.count_nonzero(coarse < at)
    return left / (count * chains)


def walk(
    rng: np.random.Generator, scale: Callable[[Any], Any],
    *, walkers: int, warm_up: int, steps: int, bins: int, midpoint: bool = False,
) -> np.ndarray:  # fmt: skip
    """Density on the circle [0, 1) of a walk along a valley of no slope, by noise g(x) z alone.

    A step of SGD takes the noise where it starts, which is Ito's integral of dx = g(x) dW.

    Args:
      rng: draws the batches of one.
      scale: g.
      walkers: side by side, spread evenly at first.
      warm_up: steps that are not measured.
      steps: measured after them, every eighth.
      bins: of the density.
      midpoint: the mean of the noise at both ends of the step instead, which is Stratonovich's.
    """
    examples, x = gaussian_examples(), (np.arange(walkers) + 0.5) / walkers
    counts = np.zeros(bins)
    for step in range(warm_up + steps):
        z = batch_means(rng, examples, walkers)
        g = scale(x)
        x = (x + (g + scale(x + g * z)) / 2 * z if midpoint else x + g * z) % 1
        if step >= warm_up and step % 8 == 0:
            counts += np.bincount((x * bins).astype(int) % bins, minlength=bins)
    return counts * bins / counts.sum()
