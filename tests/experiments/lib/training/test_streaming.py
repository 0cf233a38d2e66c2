"""Streamed runs end where those end whose data lie on the device."""

import functools

import jax
import numpy as np
import optax
import pytest

from experiments.lib.data import small
from experiments.lib.data.stored import Stored
from experiments.lib.runs import trajectory
from experiments.lib.training import minibatch, penalties, recipes, streaming
from experiments.lib.training.validation import halves

SEEDS = [0, 1]


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """Equal bits are asked for, not these."""


class Killed(Exception):
    """Stands for the end of the process."""


def assert_close(found, wanted):
    """To rounding: they are other programs, whose float32 sums may have another order."""
    same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(same, found, wanted)


def test_images_on_disk_train_as_those_in_memory(data_dir, tmp_path, monkeypatch):
    """Convolutions, evaluated in parts; one run stops at a loss."""
    monkeypatch.setattr(recipes, "EVALUATED", 16)
    monkeypatch.setattr(streaming, "UPDATES", 3)
    recipe = recipes.Recipe(
        network="s2cnn-2-batch", batch_size=8, epochs=4, flip=True, crop=1, stop_loss=2.2
    )

    def train(name, limit):
        monkeypatch.setattr(small, "IN_MEMORY_GIB", limit)
        data = [small._prepared("digits", s, 48, 0.25, 20, 10) for s in SEEDS]
        assert isinstance(data[0].inputs, Stored) == (limit == 0)
        return minibatch.train_arm(
            tmp_path / name, recipe, minibatch.stack_seeds(data), SEEDS,
            lambda seed, rate: optax.sgd(rate, momentum=0.5), hyper=np.float32([0.1, 0.0]),
        )  # fmt: skip

    whole = train("whole", 1.0)
    assert whole.reached.tolist() == [True, False]
    assert 0 < whole.records["epoch"][0, -1] < 4
    assert_close(train("streamed", 0.0), whole)


def test_fully_connected_networks_side_by_side(tmp_path, monkeypatch):
    """In blocks of two updates, the last of one; killed, they end the same."""
    monkeypatch.setattr(recipes, "EVALUATED", 16)
    monkeypatch.setattr(streaming, "UPDATES", 2)
    data = minibatch.load_seeds("digits", SEEDS, train_size=39, label_noise=0.25)

    def train(name, stream):
        recipe = recipes.Recipe(hidden=(8,), epochs=2, batch_size=12, stream=stream)
        return minibatch.train_arm(
            tmp_path / name, recipe, data, SEEDS, lambda seed, rate: optax.sgd(0.1),
            measure=lambda *state: halves(recipe, *state),
        )  # fmt: skip

    def save_and_die(path, **arrays):
        save_arrays(path, **arrays)
        if path.stem == "2":
            raise Killed

    save_arrays = trajectory.save_arrays
    whole = train("whole", True)
    with monkeypatch.context() as patch:
        patch.setattr(trajectory, "save_arrays", save_and_die)
        with pytest.raises(Killed):
            train("killed", True)
    jax.tree.map(np.testing.assert_array_equal, train("killed", True), whole)
    assert_close(whole, train("resident", False))


def test_a_measure_of_the_training_set_is_refused(tmp_path):
    data = minibatch.load_seeds("digits", [0], train_size=40)
    recipe = recipes.Recipe(hidden=(), epochs=1, stream=True)
    with pytest.raises(ValueError, match=r"leave out --recipe\.stream"):
        minibatch.train_arm(
            tmp_path, recipe, data, [0], lambda seed, rate: optax.sgd(0.1),
            measure=penalties.measure(recipe),
        )  # fmt: skip
