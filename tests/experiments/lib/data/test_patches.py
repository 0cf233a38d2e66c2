"""Patches on images: how many have one, what is in it, and that all else stays as it was."""

import jax
import numpy as np
import pytest

from experiments.lib.data.patches import add_patches, make_patches
from experiments.lib.data.views import FIRST, SECOND

N = 100
IMAGES = np.random.RandomState(0).normal(size=(N, 9, 8, 3)).astype(np.float32)
TARGETS = np.arange(N) % 4
PLACE = np.s_[:, 3:6, 2:5]  # a 3 x 3 square in the middle of 9 x 8


@pytest.fixture(scope="module")
def patches():
    return make_patches(jax.random.key(0), size=3, channels=3, num_classes=4)


@pytest.fixture(scope="module")
def data(patches):
    return add_patches(jax.random.key(1), IMAGES, TARGETS, patches, patched=0.8, alone=0.25)


def test_counts_and_what_is_left_alone(data):
    np.testing.assert_array_equal(np.bincount(data.views), [20, 20, 60])
    np.testing.assert_array_equal(data.inputs[data.views == FIRST], IMAGES[data.views == FIRST])
    outside = np.ones((9, 8), bool)
    outside[PLACE[1:]] = False
    with_image = data.views != SECOND
    np.testing.assert_array_equal(
        data.inputs[with_image][:, outside], IMAGES[with_image][:, outside]
    )
    assert not data.inputs[~with_image][:, outside].any()
    np.testing.assert_array_equal(data.targets, TARGETS)
    assert data.inputs.dtype == np.float32


def test_a_patch_is_z_plus_or_minus_that_of_its_class(data, patches):
    common, of_class = np.asarray(patches.common), np.asarray(patches.of_class)
    assert np.abs(of_class).max() <= 0.1
    signs, strengths = [], []
    for view, target, patch in zip(data.views, TARGETS, data.inputs[PLACE], strict=True):
        if view == FIRST:
            continue
        # The three numbers of strength * (z + sign * zeta), by least squares.
        basis = np.stack([common.ravel(), of_class[target].ravel()], 1)
        (strength, signed), rest, *_ = np.linalg.lstsq(basis, patch.ravel(), rcond=None)
        assert rest < 1e-8  # float32 residuals of numbers of order one, squared
        signs.append(signed / strength)
        strengths.append((view, strength))
    # 1e-3: zeta is a tenth of z, and float32 errors grow by the condition of the basis.
    np.testing.assert_allclose(np.abs(signs), 1, atol=1e-3)
    assert {np.sign(s) for s in signs} == {-1, 1}
    both = [s for view, s in strengths if view != SECOND]
    alone = np.array([s for view, s in strengths if view == SECOND])
    np.testing.assert_allclose(both, 1, atol=1e-5)  # float32
    assert (np.abs(alone - 1) > 1e-3).all()


def test_scales_are_those_of_the_paper():
    patches = make_patches(jax.random.key(0), size=20, channels=4, num_classes=10)
    # Four standard deviations of the deviation of 1,600 normal numbers: 4 / sqrt(3200) = 7 %.
    assert patches.common.std() == pytest.approx(1.25, rel=0.07)
    # 16,000 uniform ones: the deviation of a uniform number in [-a, a] is a / sqrt(3).
    assert np.abs(patches.of_class).max() == pytest.approx(0.1, rel=1e-3)
    assert patches.of_class.mean() == pytest.approx(0, abs=4 * 0.1 / (3 * 16000) ** 0.5)
    images = np.zeros((400, 20, 20, 4), np.float32)
    alone = add_patches(
        jax.random.key(1), images, np.zeros(400, int), patches, patched=1, alone=1
    ).inputs
    strengths = np.linalg.norm(alone.reshape(400, -1), axis=1) / np.linalg.norm(patches.common)
    # Four standard deviations of the mean of 400 uniform numbers in [0, 1.75], 0.1; the class's
    # part of the patch adds less than a hundredth.
    assert strengths.mean() == pytest.approx(0.875, abs=0.11)
    assert strengths.max() == pytest.approx(1.75, rel=0.03)


def test_patches_that_do_not_fit_are_refused(patches):
    key = jax.random.key(0)
    for images, message in ((IMAGES[..., :1], "do not fit"), (IMAGES[:, :2], "larger than images")):
        with pytest.raises(ValueError, match=message):
            add_patches(key, images, TARGETS, patches)
    with pytest.raises(ValueError, match="patched and alone are fractions"):
        add_patches(key, IMAGES, TARGETS, patches, patched=1.2)
