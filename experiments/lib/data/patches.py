"""Real images with patches that can be memorised: the order in which the two are learned.

    patches = make_patches(jax.random.key(0))
    train = add_patches(jax.random.key(1), images, targets, patches)
    patch_only = add_patches(jax.random.key(2), images, targets, patches, patched=1, alone=1)

Li, Wei and Ma, "Towards Explaining the Regularization Effect of Initial Large Learning Rate in
Training Neural Networks", 2019. The first view of an example is its image, the second its patch.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from experiments.lib.data.views import FIRST, SECOND, Views, share_out


class Patches(NamedTuple):
    """The fixed part of `add_patches`.

    Attributes:
      common: z, (size, size, channels), in the patches of all classes.
      of_class: zeta, (classes, size, size, channels).
    """

    common: jax.Array
    of_class: jax.Array


def make_patches(
    key: jax.Array, *, size: int = 7, channels: int = 3, num_classes: int = 10
) -> Patches:
    """Draws z of standard deviation 1.25 and, for each class, zeta uniform in [-0.1, 0.1]."""
    common_key, class_key = jax.random.split(key)
    shape = (size, size, channels)
    of_class = jax.random.uniform(class_key, (num_classes, *shape), minval=-0.1, maxval=0.1)
    return Patches(1.25 * jax.random.normal(common_key, shape), of_class)


def add_patches(
    key: jax.Array,
    images: np.ndarray,
    targets: np.ndarray,
    patches: Patches,
    *,
    patched: float = 0.8,
    alone: float = 0.2,
) -> Views:
    r"""Puts the patch $z \pm \zeta_y$, with a random sign, into the centre of some images.

    Args:
      key: a PRNG key.
      images: (n, height, width, channels) float, normalised.
      targets: (n,) integers, y.
      patches: of `make_patches`.
      patched: the fraction of the images with a patch.
      alone: the fraction of these where the image is replaced by zeros, and the patch multiplied
        by 1.75 times a uniform number in [0, 1].
    """
    size = patches.common.shape[0]
    if not (0 <= patched <= 1 and 0 <= alone <= 1):
        raise ValueError(f"patched and alone are fractions in [0, 1], got {patched} and {alone}")
    if images.ndim != 4 or images.shape[3] != patches.common.shape[2]:
        raise ValueError(f"patches of shape {patches.common.shape} do not fit {images.shape}")
    if size > min(images.shape[1:3]):
        raise ValueError(f"patches of size {size} are larger than images {images.shape[1:3]}")
    keys = jax.random.split(key, 3)
    views = share_out(keys[0], len(images), (1 - patched, patched * alone, patched * (1 - alone)))
    sign = np.asarray(jax.random.rademacher(keys[1], (len(images), 1, 1, 1)), np.float32)
    patch = np.asarray(patches.common) + sign * np.asarray(patches.of_class)[targets]
    strength = 1.75 * np.asarray(jax.random.uniform(keys[2], (len(images), 1, 1, 1)))
    patch = np.where((views == SECOND)[:, None, None, None], strength, 1) * patch
    top, left = ((n - size) // 2 for n in images.shape[1:3])
    place = np.s_[:, top : top + size, left : left + size]
    inputs = np.where((views == SECOND)[:, None, None, None], 0, images).astype(np.float32)
    inputs[place] = np.where((views == FIRST)[:, None, None, None], inputs[place], patch)
    return Views(inputs, np.asarray(targets, np.int32), views)
