"""Settings side by side are the runs they are alone."""

import numpy as np
import optax
import pytest

from experiments.lib.training import minibatch
from experiments.lib.training.recipes import Recipe
from experiments.lib.training.settings import load_grid, train_grid, train_settings


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """The numbers only have to be the same."""


def test_every_setting_has_its_seeds_and_its_number(tmp_path):
    recipe, seeds = Recipe(hidden=(3,), batch_size=None, epochs=2), [3, 4]
    data = minibatch.load_seeds("digits", seeds, train_size=12)
    make = lambda seed, setting: optax.sgd(setting["rate"])  # noqa: E731
    settings = {"none": {"rate": 0.0}, "some": {"rate": 0.5}}
    found = train_settings(tmp_path, recipe, data, seeds, make, settings)
    assert list(found) == ["none", "some"]
    still, moved = found["none"].records["train_loss"], found["some"].records["train_loss"]
    assert still.shape == moved.shape == (2, 3)
    np.testing.assert_array_equal(still, still[:, :1].repeat(3, 1))
    assert (moved[:, -1] < moved[:, 0]).all()
    # The seeds are not mixed up: both settings start from the same networks and data.
    np.testing.assert_array_equal(still[:, 0], moved[:, 0])
    assert still[0, 0] != still[1, 0]


def test_a_grid_is_every_setting_on_every_data(tmp_path):
    recipe, seeds = Recipe(hidden=(3,), batch_size=None, epochs=1), [3, 4]
    data = load_grid("digits", recipe, seeds, (0.0, 0.5), train_size=12)
    assert {noise: part.noisy.sum(1).tolist() for noise, part in data.items()} == {
        0.0: [0, 0],
        0.5: [6, 6],
    }
    settings = {"none": 0.0, "some": 0.5}
    found = train_grid(
        tmp_path / "grid", recipe, data, seeds, lambda seed, rate: optax.sgd(rate), settings
    )
    assert set(found) == {(name, noise) for name in settings for noise in data}
    make = lambda seed, rate: optax.sgd(rate)  # noqa: E731
    alone = train_settings(tmp_path / "alone", recipe, data[0.5], seeds, make, settings)
    for name, trained in alone.items():
        for record, values in trained.records.items():
            # Another number of runs side by side: rounding in float32.
            np.testing.assert_allclose(
                found[name, 0.5].records[record], values, rtol=1e-4, err_msg=record
            )


def test_data_of_more_classes_are_loaded_for_a_network_of_as_many(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, inputs=np.ones((24, 2)), targets=np.arange(24) % 12)
    found = load_grid(str(path), Recipe(classes=12), [0], [0.5], train_size=10)
    assert found[0.5].inputs.shape == (1, 10, 2)
