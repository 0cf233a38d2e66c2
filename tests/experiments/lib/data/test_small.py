"""The small data sets: exactly so many wrong labels, disjoint splits, minibatches."""

import types

import jax
import numpy as np
import pytest

from experiments.lib.data import images
from experiments.lib.data.small import first_examples, shuffled_batches, small_data, stack_seeds
from experiments.lib.runs.errors import BadData


def test_exactly_so_many_labels_are_wrong_and_nothing_else_moves():
    data = small_data("digits", seed=3, train_size=200, label_noise=0.23, test_size=50)
    clean = small_data("digits", seed=3, train_size=200, test_size=50)
    wrong = data.targets != data.clean_targets
    assert wrong.sum() == data.noisy.sum() == 46
    assert set(np.unique(data.targets)) <= set(range(10))
    np.testing.assert_array_equal(data.clean_targets, clean.targets)
    np.testing.assert_array_equal(data.inputs, clean.inputs)
    np.testing.assert_array_equal(data.test_targets, clean.test_targets)
    other = small_data("digits", seed=4, train_size=200, label_noise=0.23, test_size=50)
    assert (other.inputs != data.inputs).any()


def test_both_splits_are_centred_at_the_training_mean_and_share_no_image():
    data = small_data("digits", seed=0, train_size=300)
    assert len(data.inputs) + len(data.test_inputs) == 1797
    # 1e-5: float32 means of 300 numbers of order one.
    np.testing.assert_allclose(data.inputs.mean(0), 0, atol=1e-5)
    # Nearly every pixel is blank in some image of each split, and blank is minus the mean.
    blank = data.inputs.min(0)[data.inputs.min(0) < 0]
    same = data.test_inputs.min(0)[data.inputs.min(0) < 0] == blank
    assert same.mean() > 0.9
    both = np.concatenate([data.inputs, data.test_inputs])
    assert len(np.unique(both.round(4), axis=0)) == 1797
    assert stack_seeds([data, data]).inputs.shape == (2, 300, 64)
    with pytest.raises(ValueError, match="leave none to test on"):
        small_data("digits", seed=0, train_size=1797)


def test_more_classes_than_the_network_has_outputs_are_refused(monkeypatch):
    many = types.SimpleNamespace(num_classes=100)
    monkeypatch.setattr(images, "load_data", lambda config: many)
    with pytest.raises(BadData, match="cifar100 has 100 classes, the network 10 outputs"):
        small_data("cifar100", seed=0, train_size=5)
    with pytest.raises(BadData, match="digits has 10 classes, the network 9 outputs"):
        small_data("digits", seed=0, train_size=5, num_classes=9)


def test_the_first_examples_of_one_run_and_of_all():
    data = small_data("digits", seed=0, train_size=6)
    found = first_examples(data, 2)
    np.testing.assert_array_equal(found.inputs, data.inputs[:2])
    np.testing.assert_array_equal(found.targets, data.targets[:2])
    np.testing.assert_array_equal(found.clean_targets, data.clean_targets[:2])
    assert found.test_inputs is data.test_inputs
    stacked = first_examples(stack_seeds([data, data]), 2, axis=1)
    np.testing.assert_array_equal(stacked.inputs[1], data.inputs[:2])
    assert first_examples(data, None).inputs.shape == data.inputs.shape


def test_an_epoch_of_minibatches_has_no_example_twice():
    index = np.asarray(shuffled_batches(jax.random.key(0), 11, 4))
    assert index.shape == (2, 4)
    assert len(np.unique(index)) == 8
    assert index.max() < 11
