"""Two models whose risk is known in closed form: weak features, and ridge regression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CHUNK = 500
"""Draws that are held in memory at once."""


def weak_theory(beta: np.ndarray, size: int, samples: int, noise: float, less: int = 1) -> float:
    """The expected risk of least squares with the first `size` of all Gaussian features.

    Theorem 1 of Belkin, Hsu and Xu. The features that are left out act as noise of their own. From
    the mean of an inverse Wishart matrix comes `less`, 1, in the denominators.
    """
    kept, left = np.square(beta[:size]).sum(), np.square(beta[size:]).sum()
    if abs(size - samples) <= less:
        return np.inf
    if size < samples:
        return (left + noise**2) * (1 + size / (samples - size - less))
    unseen = kept * (1 - samples / size)
    return unseen + (left + noise**2) * (1 + samples / (size - samples - less))


def weak_risk(
    betas: np.ndarray, sizes: Sequence[int], samples: int, noise: float, draws: int, seed: int
) -> np.ndarray:
    """Mean over draws of the risk of the least squares solution of least norm.

    Args:
      betas: (models, features) true coefficients.
      sizes: numbers of features that are used, the first ones.
      samples: n, of each draw.
      noise: standard deviation of the targets' noise.
      draws: of inputs and noise.
      seed: of these.

    Returns:
      (models, sizes): the expected squared error of a new example, given the solution exact.
    """
    rng, total = np.random.default_rng([seed, 1]), np.zeros((len(betas), len(sizes)))
    for start in range(0, draws, CHUNK):
        count = min(CHUNK, draws - start)
        inputs = rng.standard_normal((count, samples, betas.shape[1]))
        targets = inputs @ betas.T + noise * rng.standard_normal((count, samples, 1))
        for j, size in enumerate(sizes):
            used = inputs[..., :size]
            across = used.transpose(0, 2, 1)
            if size <= samples:
                found = np.linalg.solve(across @ used, across @ targets)
            else:
                found = across @ np.linalg.solve(used @ across, targets)
            off = np.square(found - betas[:, :size].T).sum((0, 1))
            total[:, j] += off + count * np.square(betas[:, size:]).sum(1)
    return total / draws + noise**2


def ridge_theory(dimensions: int, size: float, norm: float, noise: float) -> float:
    """The risk of ridge regression under its best ridge, in the limit of many dimensions.

    Dobriban and Wager (Annals of Statistics 2018): sigma^2 (1 + g m), with g = d / n and the
    Stieltjes transform m of the spectrum of the inputs' covariance at minus ridge / n.
    """
    ratio = dimensions / size
    ridge = ratio * (noise / norm) ** 2
    gap = 1 - ratio + ridge
    stieltjes = (np.sqrt(gap**2 + 4 * ratio * ridge) - gap) / (2 * ratio * ridge)
    return noise**2 * (1 + ratio * stieltjes)


def ridge_risk(
    beta: np.ndarray,
    sizes: Sequence[int],
    ridges: np.ndarray,
    noise: float,
    draws: int,
    seed: int,
) -> np.ndarray:
    """Mean over draws of the risk of ridge regression, |X b - y|^2 + r |b|^2, with Gaussian inputs.

    The examples of a smaller size are the first of a larger one.

    Args:
      beta: (d,) true coefficients.
      sizes: numbers of examples.
      ridges: (ridges,).
      noise: standard deviation of the targets' noise.
      draws: of inputs and noise.
      seed: of these.

    Returns:
      (sizes, ridges).
    """
    rng, total = np.random.default_rng([seed, 2]), np.zeros((len(sizes), len(ridges)))
    for start in range(0, draws, CHUNK):
        count = min(CHUNK, draws - start)
        inputs = rng.standard_normal((count, max(sizes), len(beta)))
        drawn = noise * rng.standard_normal((count, max(sizes), 1))
        for j, size in enumerate(sizes):
            used, across = inputs[:, :size], inputs[:, :size].transpose(0, 2, 1)
            values, vectors = np.linalg.eigh(across @ used)
            back = vectors.transpose(0, 2, 1)
            true, forced = back @ beta, (back @ (across @ drawn[:, :size]))[..., 0]
            for k, ridge in enumerate(ridges):
                off = (ridge * true - forced) / (values + ridge)
                total[j, k] += np.square(off).sum()
    return total / draws + noise**2
