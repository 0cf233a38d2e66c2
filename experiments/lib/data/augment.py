"""Image augmentation on NumPy batches: horizontal flip, padded crop, mixup.

Every draw is made for the whole global batch and sliced afterwards, so that the augmented data
are the same however many processes share the work.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Augmentation(NamedTuple):
    """What is done to a training batch.

    Attributes:
      flip: mirror each image left to right with probability 1/2.
      crop: pad by this many zero pixels on each side and crop back at a random place; 0 is off.
      mixup: blend with a partner by weights from Beta(mixup, mixup); 0 is off. Zhang et al.,
        "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """

    flip: bool = False
    crop: int = 0
    mixup: float = 0.0


class Draws(NamedTuple):
    """The random choices for a batch of n, each of leading axis n or None where off."""

    flip: np.ndarray | None
    corner: np.ndarray | None
    mixing: np.ndarray | None
    partner: np.ndarray | None

    def rows(self, where: slice) -> Draws:
        """The choices for some rows of the batch."""
        return Draws(*(None if d is None else d[where] for d in self))


def draw(augmentation: Augmentation, rng: np.random.RandomState, size: int) -> Draws:
    """Draws the choices for a batch of `size` examples; `partner` indexes the whole batch."""
    flip, crop, mixup = augmentation
    return Draws(
        flip=rng.rand(size) < 0.5 if flip else None,
        corner=rng.randint(0, 2 * crop + 1, size=(size, 2)) if crop else None,
        mixing=rng.beta(mixup, mixup, size=size).astype(np.float32) if mixup else None,
        partner=rng.permutation(size) if mixup else None,
    )


def transform_images(images: np.ndarray, draws: Draws, crop: int) -> np.ndarray:
    """Flips and crops a batch of images, (n, h, w, c) of any dtype, as drawn."""
    if draws.flip is not None:
        images = np.where(draws.flip[:, None, None, None], images[:, :, ::-1], images)
    if draws.corner is not None:
        n, height, width, _ = images.shape
        padded = np.pad(images, ((0, 0), (crop, crop), (crop, crop), (0, 0)))
        rows = draws.corner[:, :1] + np.arange(height)
        columns = draws.corner[:, 1:] + np.arange(width)
        images = padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return images


def mix(
    inputs: np.ndarray,
    labels: np.ndarray,
    partner_inputs: np.ndarray,
    partner_labels: np.ndarray,
    mixing: np.ndarray,
    num_classes: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Blends each example with its partner; the targets become probabilities, (n, classes)."""
    eye = np.eye(num_classes, dtype=np.float32)
    weight = mixing.reshape(-1, *([1] * (inputs.ndim - 1)))
    blended = weight * inputs + (1 - weight) * partner_inputs
    targets = mixing[:, None] * eye[labels] + (1 - mixing[:, None]) * eye[partner_labels]
    return blended, targets
