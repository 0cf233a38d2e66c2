"""Flip, crop and mixup against what they say they do."""

import numpy as np

from experiments.lib.data import augment


def draws(rng, size, **options):
    return augment.draw(augment.Augmentation(**options), np.random.RandomState(rng), size)


def test_without_options_nothing_happens():
    images = np.arange(2 * 3 * 3 * 1).reshape(2, 3, 3, 1)
    np.testing.assert_array_equal(augment.transform_images(images, draws(0, 2), 0), images)


def test_a_flip_mirrors_the_drawn_images_only():
    images = np.random.RandomState(0).rand(50, 4, 5, 3)
    drawn = draws(1, 50, flip=True)
    assert 0 < drawn.flip.sum() < 50
    flipped = augment.transform_images(images, drawn, 0)
    np.testing.assert_array_equal(flipped[drawn.flip], images[drawn.flip][:, :, ::-1])
    np.testing.assert_array_equal(flipped[~drawn.flip], images[~drawn.flip])


def test_a_crop_is_a_window_of_the_padded_image():
    images = np.random.RandomState(0).rand(40, 4, 5, 2)
    drawn = draws(2, 40, crop=2)
    assert set(drawn.corner.ravel()) == {0, 1, 2, 3, 4}
    cropped = augment.transform_images(images, drawn, 2)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for image, whole, (top, left) in zip(cropped, padded, drawn.corner, strict=True):
        np.testing.assert_array_equal(image, whole[top : top + 4, left : left + 5])


def test_mixup_blends_inputs_and_labels_alike():
    rng = np.random.RandomState(0)
    # One-hot images of the labels: what is blended in the one shows in the other.
    labels = rng.randint(0, 4, size=30)
    images = np.eye(4, dtype=np.float32)[labels].reshape(30, 2, 2, 1)
    drawn = draws(3, 30, mixup=0.7)
    partner = drawn.partner
    inputs, targets = augment.mix(images, labels, images[partner], labels[partner], drawn.mixing, 4)
    np.testing.assert_array_equal(inputs.reshape(30, 4), targets)
    # Two float32 weights w and 1 - w: their sum is 1 to one rounding.
    np.testing.assert_allclose(targets.sum(1), 1, atol=2e-7)
    assert (targets.max(1) < 1).any()


def test_rows_of_the_draws_are_the_draws_of_the_rows():
    whole = draws(4, 12, flip=True, crop=1, mixup=1.0)
    part = whole.rows(slice(4, 8))
    for all_rows, rows in zip(whole, part, strict=True):
        np.testing.assert_array_equal(all_rows[4:8], rows)
