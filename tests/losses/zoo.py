"""Outputs and targets for every loss, and the losses written out by hand in NumPy."""

from typing import Any, NamedTuple

import numpy as np

import flatjax


class Case(NamedTuple):
    """A loss on data.

    Attributes:
      loss: the loss.
      outputs: float64, ``(n, ..., features)``.
      targets: what the loss takes.
      values: the loss of every position by the textbook formula.
    """

    loss: flatjax.OutputLoss
    outputs: np.ndarray
    targets: Any
    values: np.ndarray


def log_softmax(z):
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def cases(shape: tuple[int, ...] = (5,), classes: int = 4) -> dict[str, Case]:
    """The three losses, softmax with all kinds of targets, on positions of this shape."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(*shape, classes))
    ids = rng.integers(0, classes, shape)
    probabilities = rng.dirichlet(np.ones(classes), shape)
    real = rng.normal(size=z.shape)
    labels = rng.integers(0, 2, z.shape).astype(float)
    p = 1 / (1 + np.exp(-z))
    picked = np.take_along_axis(log_softmax(z), ids[..., None], axis=-1)[..., 0]
    spread = -log_softmax(z).mean(axis=-1)
    smoothed = flatjax.softmax_cross_entropy(label_smoothing=0.3)
    return {
        "softmax_ids": Case(flatjax.softmax_cross_entropy, z, ids, -picked),
        "smoothed_ids": Case(smoothed, z, ids, -0.7 * picked + 0.3 * spread),
        "smoothed_probabilities": Case(
            smoothed,
            z,
            2 * probabilities,
            -1.4 * (probabilities * log_softmax(z)).sum(axis=-1) + 0.6 * spread,
        ),
        "softmax_probabilities": Case(
            flatjax.softmax_cross_entropy,
            z,
            probabilities,
            -(probabilities * log_softmax(z)).sum(axis=-1),
        ),
        "squared_error": Case(flatjax.squared_error, z, real, 0.5 * ((z - real) ** 2).sum(axis=-1)),
        "sigmoid": Case(
            flatjax.sigmoid_binary_cross_entropy,
            z,
            labels,
            -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum(axis=-1),
        ),
    }
