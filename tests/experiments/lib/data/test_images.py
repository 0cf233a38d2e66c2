"""Subsets, wrong labels, normalisation: all functions of the seeds alone."""

import numpy as np
import pytest

from experiments.lib.data.images import DataConfig, load_data

pytestmark = pytest.mark.usefixtures("data_dir")


@pytest.fixture(scope="module")
def digits(data_dir):
    del data_dir
    return load_data(DataConfig(label_noise=0.2))


def test_the_digits_are_scikit_learns(digits):
    from sklearn.datasets import load_digits

    assert (len(digits.train), len(digits.test)) == (1500, 297)
    pixels, labels = zip(
        digits.train.pixels_and_labels(np.arange(1500)),
        digits.test.pixels_and_labels(np.arange(297)),
        strict=True,
    )
    ours = np.column_stack([np.concatenate(pixels).reshape(-1, 64) / 15, np.concatenate(labels)])
    bunch = load_digits()
    theirs = np.column_stack([bunch.data, bunch.target])
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.333, 1.0])
def test_exactly_the_asked_fraction_of_labels_is_wrong(fraction):
    arrays = load_data(DataConfig(label_noise=fraction, train_size=300)).train.arrays()
    assert arrays.noisy.sum() == round(fraction * 300)
    # A wrong label always differs from the true one, and the others are untouched.
    np.testing.assert_array_equal(arrays.targets != arrays.clean_targets, arrays.noisy)
    assert arrays.targets.min() >= 0
    assert arrays.targets.max() < 10


def test_test_labels_stay_clean():
    assert not load_data(DataConfig(label_noise=1.0)).test.noisy.any()


def test_wrong_labels_depend_on_their_seed_only(digits):
    same = load_data(DataConfig(label_noise=0.2, test_size=10))
    other = load_data(DataConfig(label_noise=0.2, data_seed=1))
    np.testing.assert_array_equal(same.train.arrays().targets, digits.train.arrays().targets)
    assert (other.train.noisy != digits.train.noisy).any()


def test_pixel_normalisation_centres_each_pixel_and_shares_one_scale(digits):
    inputs = digits.train.arrays().inputs
    assert inputs.dtype == np.float32
    # A mean of 1500 float32 values of order 1: rounding of 1e-7, squared away over the sum.
    np.testing.assert_allclose(inputs.mean(0), 0, atol=1e-5)
    raw = digits.train.pixels_and_labels(np.arange(1500))[0].astype(np.float64)
    np.testing.assert_allclose(inputs, (raw - raw.mean(0)) / raw.std(), atol=1e-5)


def test_reading_from_disk_gives_the_same_arrays(digits):
    disk = load_data(DataConfig(label_noise=0.2, in_memory_gib=0.0))
    for ours, theirs in zip(disk.train.chunk(3, 9), digits.train.chunk(3, 9), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_data(DataConfig(train_size=1501)), "the train split has 1500 examples"),
        (lambda: load_data(DataConfig(test_size=298)), "the test split has 297 examples"),
        (lambda: DataConfig(label_noise=1.5), r"label_noise is a fraction in \[0, 1\], got 1.5"),
    ],
)
def test_bad_options_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
