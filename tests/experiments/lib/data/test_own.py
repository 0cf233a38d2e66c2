"""A user's own arrays: what is taken as it is, and what is refused at the door."""

import numpy as np
import pytest

from experiments.lib.data.held_back import split_rows
from experiments.lib.data.own import is_own, load_own
from experiments.lib.data.small import small_data
from experiments.lib.runs.errors import BadData

X = np.arange(60, dtype=np.uint8).reshape(10, 6)
Y = np.arange(10) % 3


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "mine.npz", **arrays)
        return tmp_path / "mine.npz"

    return write


def test_bytes_are_divided_by_255_and_floats_taken_as_they_are(npz):
    given = load_own(npz(inputs=X, targets=Y, test_inputs=X[:2], test_targets=Y[:2]))
    for found, raw in ((given.inputs, X), (given.test_inputs, X[:2])):
        np.testing.assert_array_equal(found, raw.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(given.targets, Y)
    assert (given.num_classes, given.inputs.dtype, given.targets.dtype) == (3, "float32", "int32")
    floats = load_own(npz(inputs=X / 7.0, targets=Y, test_inputs=X[:2] / 7.0, test_targets=Y[:2]))
    assert (given.pixels, floats.pixels) == (True, False)
    np.testing.assert_array_equal(floats.inputs, (X / 7.0).astype(np.float32))


def test_without_test_arrays_a_part_is_held_back_by_the_seed(npz):
    path = npz(inputs=X.reshape(10, 1, 2, 3), targets=Y)
    split = load_own(path, test_fraction=0.3, seed=1)
    assert (split.inputs.shape, split.test_inputs.shape) == ((7, 1, 2, 3), (3, 1, 2, 3))
    both = np.concatenate([split.inputs, split.test_inputs])[:, 0, 0, 0] * 255
    np.testing.assert_array_equal(np.sort(both.round()), X[:, 0])
    # Inputs and targets stay together: the first pixel of example i is 6 i.
    np.testing.assert_array_equal(split.targets, split.inputs[:, 0, 0, 0] * 255 / 6 % 3)
    other = load_own(path, test_fraction=0.3, seed=2)
    assert (other.test_inputs != split.test_inputs).any()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs": X}, "lacks targets"),
        ({"inputs": X, "targets": Y, "test_inputs": X}, "lacks test_targets"),
        ({"inputs": X, "targets": Y, "test_input": X}, "has test_input too"),
        ({"inputs": X.reshape(10, 2, 3), "targets": Y}, "add a last axis of channels"),
        ({"inputs": X[0], "targets": Y}, r"must be \(n, d\) or"),
        ({"inputs": X[:0], "targets": Y[:0]}, r"has shape \(0, 6\)"),
        ({"inputs": X.astype(np.int32), "targets": Y}, "must be uint8 or floats, is int32"),
        ({"inputs": X, "targets": Y + 0.0}, "must be integers, is float64"),
        ({"inputs": X, "targets": Y[:9]}, r"must have shape \(10,\), .* has \(9,\)"),
        ({"inputs": X, "targets": Y[:, None]}, r"has \(10, 1\)"),
        ({"inputs": X, "targets": Y - 1}, "counted from 0, has -1"),
        ({"inputs": X, "targets": Y + 1}, "counted from 0, the smallest is 1: subtract it"),
        ({"inputs": X * [[np.nan]] * 10, "targets": Y}, "not finite .* in 10 examples, the first"),
        ({"inputs": X * 1e300, "targets": Y}, "not finite"),
        ({"inputs": X.astype(object), "targets": Y}, "cannot be read"),
        (
            {"inputs": X, "targets": Y, "test_inputs": X[:, :5], "test_targets": Y},
            r"have shape \(5,\) in test_inputs, \(6,\) in inputs",
        ),
        (
            {"inputs": X, "targets": Y, "test_inputs": X / 7.0, "test_targets": Y},
            "must both be uint8 or both be floats",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(npz, arrays, message):
    path = npz(**arrays)
    with pytest.raises(BadData, match=message) as caught:
        load_own(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(BadData, match="there is no file"):
        load_own(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(BadData, match=r"is no \.npz file"):
        load_own(tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", X)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(BadData, match=r"is no \.npz file"):
        load_own(tmp_path / "one.npz")
    np.savez_compressed(tmp_path / "cut.npz", inputs=X, targets=Y)
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:60] + b"damaged" + whole[67:])
    with pytest.raises(BadData, match="cannot be read as plain arrays"):
        load_own(tmp_path / "cut.npz")


def test_a_split_needs_something_on_both_sides():
    train, test = split_rows(5, 0.01, 0, "it")
    assert (len(train), len(test)) == (4, 1)
    with pytest.raises(BadData, match="it: 2 in all, 2 held back"):
        split_rows(2, 0.9, 0, "it")
    with pytest.raises(ValueError, match=r"in \(0, 1\), got 0"):
        split_rows(5, 0, 0, "it")


def test_own_bytes_are_standardised_and_own_floats_taken_as_they_are(npz):
    images = np.random.RandomState(0).randint(0, 256, (12, 2, 3, 1)).astype(np.uint8)
    others = {"targets": np.arange(12) % 3, "test_targets": Y[:4]}
    path = str(npz(inputs=images, test_inputs=images[:4], **others))
    data = small_data(path, seed=1, train_size=9, flat=False)
    chosen = images[np.random.RandomState(1).permutation(12)[:9]].astype(np.float64)
    mean, scale = chosen.mean(0), chosen.std()
    # Float32 numbers of order one, after divisions by 255 and by the deviation.
    np.testing.assert_allclose(data.inputs, (chosen - mean) / scale, atol=1e-5)
    np.testing.assert_allclose(data.test_inputs, (images[:4] - mean) / scale, atol=1e-5)
    assert data.inputs.dtype == data.test_inputs.dtype == np.float32
    blank = str(npz(inputs=np.full_like(images, 7), test_inputs=images[:4], **others))
    assert not small_data(blank, seed=1, train_size=9).inputs.any()
    floats = images / 7.0
    data = small_data(str(npz(inputs=floats, test_inputs=floats[:4], **others)), seed=1,
                      train_size=9, flat=False)  # fmt: skip
    np.testing.assert_array_equal(data.inputs, (chosen / 7).astype(np.float32))
    np.testing.assert_array_equal(data.test_inputs, floats[:4].astype(np.float32))


def test_own_data_enter_an_experiment_by_their_path(npz, capsys):
    images = X.reshape(10, 1, 2, 3) / 255
    path = str(npz(inputs=images, targets=Y, test_inputs=images, test_targets=Y))
    data = small_data(path, seed=1, train_size=8, label_noise=0.5, test_size=4)
    assert "has 3 classes, the network 10 outputs: --recipe.classes 3" in capsys.readouterr().err
    small_data(path, seed=2, train_size=8, num_classes=3)
    assert capsys.readouterr().err == ""
    assert (data.inputs.shape, data.test_inputs.shape) == ((8, 6), (4, 6))
    assert data.noisy.sum() == 4
    assert set(data.targets) <= {0, 1, 2}
    np.testing.assert_array_equal(data.clean_targets, (data.inputs[:, 0] * 255 / 6).round() % 3)
    with pytest.raises(BadData, match="has 10 examples to train on, not 11: set --train-size 10"):
        small_data(path, seed=0, train_size=11)
    with pytest.raises(
        BadData, match=r"has 3 classes, the network 2 outputs: set --recipe\.classes 3"
    ):
        small_data(path, seed=0, train_size=8, num_classes=2)
    assert not is_own("digits")
    assert not is_own("group/config")
