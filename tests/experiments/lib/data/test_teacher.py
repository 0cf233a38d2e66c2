"""Data labelled by a teacher: its labels, exactly so many wrong, isotropic inputs."""

import jax
import numpy as np
import pytest

from experiments.lib.data.teacher import taught

KERNEL = np.random.RandomState(0).normal(size=(5, 4)).astype(np.float32)
SIZES = {"dimension": 5, "train_size": 300, "test_size": 100}


def teacher(inputs):
    return inputs @ KERNEL


def test_labels_are_the_teachers_but_for_exactly_so_many():
    data = taught(jax.random.key(0), teacher, **SIZES, label_noise=0.25)
    clean = taught(jax.random.key(0), teacher, **SIZES)
    np.testing.assert_array_equal(data.clean_targets, (data.inputs @ KERNEL).argmax(1))
    np.testing.assert_array_equal(data.test_targets, (data.test_inputs @ KERNEL).argmax(1))
    assert data.noisy.sum() == 75
    assert not clean.noisy.any()
    np.testing.assert_array_equal(data.inputs, clean.inputs)
    # All three other classes occur among the wrong ones.
    assert set((data.targets - data.clean_targets)[data.noisy] % 4) == {1, 2, 3}
    other = taught(jax.random.key(1), teacher, **SIZES)
    assert (other.inputs != clean.inputs).any()


def test_two_linear_teachers_differ_in_the_share_of_their_angle():
    """Inputs are isotropic: two half spaces whose normals are 60 degrees apart differ in 1/3."""
    normals = np.array([[1, 0, 0], [0.5, 0.75**0.5, 0]], np.float32)
    labels = [
        taught(
            jax.random.key(0),
            lambda x, n=n: np.stack([np.zeros(len(x)), x @ n], 1),
            dimension=3,
            train_size=4000,
            test_size=1,
        ).targets
        for n in normals
    ]
    # Four standard deviations of a share of 4,000: 4 sqrt(2/9 / 4000) = 0.03.
    assert (labels[0] != labels[1]).mean() == pytest.approx(1 / 3, abs=0.03)


def test_what_is_no_teacher_is_refused():
    for bad, message in (
        (lambda x: x[:, 0], r"returned shape \(400,\)"),
        (lambda x: x[:, :1], r"returned shape \(400, 1\)"),
        (lambda x: x[:9], r"returned shape \(9, 5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            taught(jax.random.key(0), bad, **SIZES)
    with pytest.raises(ValueError, match="a fraction in"):
        taught(jax.random.key(0), teacher, **SIZES, label_noise=1.5)
    with pytest.raises(ValueError, match="at least 1"):
        taught(jax.random.key(0), teacher, **SIZES | {"test_size": 0})
