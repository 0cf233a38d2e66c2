"""Random features of images, and their ridge and ridgeless least squares, in double precision."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

KINDS = ("Fourier", "ReLU")
SCALES = {"Fourier": 0.2, "ReLU": 0.125}
"""Standard deviation of the weights; of `Fourier` the inverse bandwidth of the Gaussian kernel."""
CUT = 1e-10
"""Singular values below this share of the largest count as zero."""


class Draw(NamedTuple):
    """Random weights (d, N) and phases (N,) of as many features as are ever needed."""

    weights: np.ndarray
    phases: np.ndarray


def draw(kind: str, inputs: int, count: int, rng: np.random.Generator) -> Draw:
    """Draws the weights of `count` features."""
    weights = SCALES[kind] * rng.standard_normal((inputs, count))
    return Draw(weights, rng.uniform(0, 2 * np.pi, count))


def features(kind: str, drawn: Draw, inputs: np.ndarray, count: int) -> np.ndarray:
    """The first `count` features of inputs (n, d), scaled so that their kernel has a limit."""
    projected = inputs @ drawn.weights[:, :count]
    if kind == "Fourier":
        return np.sqrt(2 / count) * np.cos(projected + drawn.phases[:count])
    return np.maximum(projected, 0) / np.sqrt(count)


def limit_kernel(kind: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The kernel of infinitely many features: Gaussian, or the arc-cosine one of first order."""
    scale, products = SCALES[kind] ** 2, a @ b.T
    squares = np.square(a).sum(1)[:, None], np.square(b).sum(1)[None, :]
    if kind == "Fourier":
        return np.exp(-scale * (sum(squares) - 2 * products) / 2)
    norms = np.sqrt(squares[0] * squares[1])
    angles = np.arccos(np.clip(products / norms, -1, 1))
    return scale * norms * (np.sin(angles) + (np.pi - angles) * np.cos(angles)) / (2 * np.pi)


class LeastSquares:
    """All ridge solutions of one matrix of features, from one singular value decomposition.

    That of ridge r minimises |features a - targets|^2 + r |a|^2; that of ridge 0 is the solution of
    least norm.
    """

    def __init__(self, train: np.ndarray, targets: np.ndarray):
        """Takes the features (n, N) and the targets (n, ...) of the training examples."""
        left, values, right = np.linalg.svd(train, full_matrices=False)
        kept = values > CUT * values[0]
        self.values, self.right = values[kept], right[kept]
        self.projected = np.tensordot(left[:, kept], targets, (0, 0))

    def coefficients(self, ridge: float = 0.0) -> np.ndarray:
        """The coefficients in the basis of the right singular vectors, (rank, ...)."""
        shrunk = self.values / (self.values**2 + ridge)
        return shrunk.reshape(-1, *[1] * (self.projected.ndim - 1)) * self.projected

    def predictions(self, inputs: np.ndarray, ridges: list[float]) -> np.ndarray:
        """The outputs for features (m, N), for every ridge: (ridges, m, ...)."""
        rotated = inputs @ self.right.T
        return np.stack([np.tensordot(rotated, self.coefficients(r), 1) for r in ridges])


def risk(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Mean over examples of the squared distance between outputs and targets.

    Args:
      predictions: (..., m, settings, classes).
      targets: (m, settings, classes).

    Returns:
      (..., settings).
    """
    return np.square(predictions - targets).sum(-1).mean(-2)
