"""The small data sets and networks: exactly so many wrong labels, disjoint splits, scales."""

import jax
import numpy as np
import pytest

from experiments.lib.small import apply_mlp, init_mlp, shuffled_batches, small_data, stack_seeds


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


def test_kernels_have_the_variance_of_their_fan_in():
    params = init_mlp(jax.random.key(0), (400, 100, 10), scale=0.6)
    for name, fan_in in (("layer_0", 400), ("layer_1", 100)):
        kernel = params[name]["kernel"]
        # 1,000 draws and more: 2 per cent, three of them.
        assert kernel.std() == pytest.approx(0.6 / fan_in**0.5, rel=0.07)
        assert not params[name]["bias"].any()


def test_the_last_layer_is_linear():
    params = init_mlp(jax.random.key(0), (3, 4, 2))
    x = np.ones((1, 3), np.float32)
    hidden = np.tanh(x @ params["layer_0"]["kernel"])
    # Two products in float32.
    np.testing.assert_allclose(
        apply_mlp(params, x), hidden @ params["layer_1"]["kernel"], rtol=1e-5
    )


def test_an_epoch_of_minibatches_has_no_example_twice():
    index = np.asarray(shuffled_batches(jax.random.key(0), 11, 4))
    assert index.shape == (2, 4)
    assert len(np.unique(index)) == 8
    assert index.max() < 11
