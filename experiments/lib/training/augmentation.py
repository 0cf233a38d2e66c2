"""Augmentation of images inside a compiled update."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def moved(key: jax.Array, images: jax.Array, *, flip: bool, crop: int) -> jax.Array:
    """Images mirrored and shifted at random, each in its own way.

    Args:
      key: a PRNG key.
      images: (n, height, width, channels).
      flip: mirror left to right with probability 1/2.
      crop: shift by -crop to crop pixels either way; what comes in is zero.

    Returns:
      Images of the same shape.
    """
    which, where = jax.random.split(key)
    if flip:
        mirrored = jax.random.bernoulli(which, shape=(len(images), 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    if crop:
        padded = jnp.pad(images, ((0, 0), (crop, crop), (crop, crop), (0, 0)))
        corners = jax.random.randint(where, (len(images), 2), 0, 2 * crop + 1)

        def cut(image, corner):
            return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

        images = jax.vmap(cut)(padded, corners)
    return images
