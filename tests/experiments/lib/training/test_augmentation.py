"""Images inside a compiled update: mirrored and shifted, nothing else."""

import jax
import numpy as np
import pytest

from experiments.lib.training import augmentation

IMAGES = np.arange(1.0, 64 * 12 + 1, dtype=np.float32).reshape(64, 4, 3, 1)


def _shifted(image, down, right):
    """The pixel at (i, j) comes from (i + down, j + right); zero from outside."""
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    return padded[2 + down : 6 + down, 2 + right : 5 + right]


@pytest.mark.parametrize(("flip", "crop"), [(True, 0), (False, 2), (True, 2), (False, 0)])
def test_every_image_is_one_of_its_own(flip, crop):
    moved = augmentation.moved(jax.random.key(0), IMAGES, flip=flip, crop=crop)
    seen = set()
    for image, result in zip(IMAGES, np.asarray(moved), strict=True):
        made = {
            (mirrored, down, right): _shifted(image[:, ::-1] if mirrored else image, down, right)
            for mirrored in {False, flip}
            for down in range(-crop, crop + 1)
            for right in range(-crop, crop + 1)
        }
        (found,) = (how for how, other in made.items() if np.array_equal(other, result))
        seen.add(found)
    # Of 64 images one mirroring or one shift of an axis is missed with probability 6e-6.
    assert {how[0] for how in seen} == {False, flip}
    for axis in (1, 2):
        assert {how[axis] for how in seen} == set(range(-crop, crop + 1))
