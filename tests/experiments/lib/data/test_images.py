"""Subsets, wrong labels, normalisation, batches: all functions of the seeds alone."""

import numpy as np
import pytest

from experiments.lib.data.images import DataConfig, load_data

pytestmark = pytest.mark.usefixtures("data_dir")


@pytest.fixture(scope="module")
def digits(data_dir):
    del data_dir
    return load_data(DataConfig(label_noise=0.2))


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_same_batches(these, those):
    for a, b in zip(these, those, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


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


def test_test_and_validation_labels_stay_clean():
    data = load_data(DataConfig(label_noise=1.0, validation_size=100))
    assert not data.test.noisy.any()
    assert not data.validation.noisy.any()
    assert (len(data.train), len(data.validation)) == (1400, 100)


def test_wrong_labels_depend_on_their_seed_only(digits):
    same = load_data(DataConfig(label_noise=0.2, flip=True, crop=1))
    other = load_data(DataConfig(label_noise=0.2, data_seed=1))
    np.testing.assert_array_equal(same.train.arrays().targets, digits.train.arrays().targets)
    assert (other.train.noisy != digits.train.noisy).any()


def test_train_and_validation_do_not_overlap():
    data = load_data(DataConfig(train_size=1000, validation_size=500))
    together = np.concatenate([data.train.arrays().inputs, data.validation.arrays().inputs])
    # The digits hold no duplicate images (checked here), so distinct rows mean disjoint parts.
    assert len(np.unique(together.reshape(1500, -1), axis=0)) == 1500


def test_pixel_normalisation_centres_each_pixel_and_shares_one_scale(digits):
    inputs = digits.train.arrays().inputs
    assert inputs.dtype == np.float32
    # A mean of 1500 float32 values of order 1: rounding of 1e-7, squared away over the sum.
    np.testing.assert_allclose(inputs.mean(0), 0, atol=1e-5)
    raw = digits.train.pixels_and_labels(np.arange(1500))[0].astype(np.float64)
    np.testing.assert_allclose(inputs, (raw - raw.mean(0)) / raw.std(), atol=1e-5)


def test_channel_normalisation_makes_unit_channels():
    inputs = load_data(DataConfig(normalize="channel")).train.arrays().inputs.astype(np.float64)
    np.testing.assert_allclose([inputs.mean(), inputs.std()], [0, 1], atol=1e-6)


def test_batches_are_epochs_of_all_examples(digits):
    first, second = (
        np.concatenate([b["index"] for b in take(i, 15)])
        for i in [digits.batches(100, seed=3), digits.batches(100, seed=4)]
    )
    np.testing.assert_array_equal(np.sort(first), np.arange(1500))
    assert (first != second).any()


def test_batches_hold_what_their_index_says(digits):
    arrays = digits.train.arrays()
    batch = next(digits.batches(64, seed=0))
    np.testing.assert_array_equal(batch["inputs"], arrays.inputs[batch["index"]])
    np.testing.assert_array_equal(batch["targets"], arrays.targets[batch["index"]])
    assert batch["inputs"].dtype == np.float32
    assert batch["targets"].dtype == np.int32


def test_each_epoch_is_shuffled_anew_unless_fixed(digits):
    moving = take(digits.batches(750, seed=0), 4)
    fixed = take(digits.batches(750, seed=0, reshuffle=False), 4)
    assert (moving[0]["index"] != moving[2]["index"]).any()
    assert_same_batches(fixed[:2], fixed[2:])
    assert_same_batches(fixed[:2], moving[:2])


def test_full_batches_keep_the_order_of_the_arrays(digits):
    batch = next(digits.batches(None, seed=0))
    np.testing.assert_array_equal(batch["index"], np.arange(1500))


@pytest.mark.parametrize("augmented", [False, True])
def test_an_iterator_resumes_from_its_state(digits, augmented):
    if augmented:
        digits = digits._replace(config=DataConfig(flip=True, crop=2, mixup=0.5))
    iterator = digits.batches(64, seed=0)
    take(iterator, 30)  # into the second epoch
    state = iterator.get_state()
    expected = take(iterator, 5)
    fresh = digits.batches(64, seed=0)
    fresh.set_state(state)
    assert_same_batches(take(fresh, 5), expected)


def test_processes_share_the_same_global_batches(digits):
    digits = digits._replace(config=DataConfig(flip=True, crop=2, mixup=0.5))
    whole = next(digits.batches(64, seed=0))
    parts = [next(digits.batches(64, seed=0, process=(p, 4))) for p in range(4)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in whole}
    assert_same_batches([joined], [whole])


def test_reading_from_disk_gives_the_same_batches(digits):
    options = {"label_noise": 0.2, "crop": 1}
    memory = load_data(DataConfig(**options))
    disk = load_data(DataConfig(**options, in_memory_gib=0.0))
    assert_same_batches(take(disk.batches(32, seed=0), 2), take(memory.batches(32, seed=0), 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: load_data(DataConfig(train_size=1501)), "the train split has 1500 examples"),
        (lambda d: load_data(DataConfig(test_size=298)), "the test split has 297 examples"),
        (lambda d: DataConfig(label_noise=1.5), r"label_noise is a fraction in \[0, 1\], got 1.5"),
        (lambda d: DataConfig(normalize="both"), "normalize must be pixel, channel or none"),
        (lambda d: DataConfig(crop=-1), "must not be negative"),
        (lambda d: d.batches(2000, seed=0), r"batch_size must lie in 1 .. 1500"),
        (lambda d: d.batches(50, seed=0, process=(0, 4)), "50 does not split over 4 processes"),
    ],
)
def test_bad_options_are_refused(digits, call, message):
    with pytest.raises(ValueError, match=message):
        call(digits)
