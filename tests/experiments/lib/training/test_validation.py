"""One half of the test set chooses, the other one is measured."""

import jax.numpy as jnp
import numpy as np

from experiments.lib.data.small import small_data
from experiments.lib.training.minibatch import Trained
from experiments.lib.training.recipes import Recipe, accuracies, logits
from experiments.lib.training.validation import at_best_epoch, best_setting, final, halves


def test_the_halves_make_up_the_test_set():
    recipe = Recipe(hidden=())
    data = small_data("digits", seed=0, train_size=50, test_size=100)
    params = {"layer_0": {"kernel": jnp.eye(64, 10), "bias": jnp.zeros(10)}}
    found = halves(recipe, params, {}, data)
    both = (found["validation_accuracy"] + found["half_accuracy"]) / 2
    whole = accuracies(recipe, params, {}, data, logits(recipe, params, {}, data.inputs))
    whole = whole["test_accuracy"]
    np.testing.assert_allclose(both, whole, atol=1e-6)  # float32
    assert found["validation_accuracy"] != found["half_accuracy"]


def test_the_first_half_chooses_for_every_seed():
    records = {
        "validation_accuracy": np.array([[0.1, 0.9, 0.2], [0.5, 0.3, 0.4]]),
        "half_accuracy": np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
    }
    assert at_best_epoch(records).tolist() == [2.0, 4.0]
    assert final(records, "half_accuracy").tolist() == [3.0, 6.0]


def test_the_setting_with_the_best_validation_accuracy_on_the_way():
    def trained(rows, test):
        records = {"validation_accuracy": np.array(rows), "half_accuracy": np.full((2, 3), test)}
        return Trained(None, None, records, None)

    found = {
        "one seed": trained([[0.1, 0.9, 0.1], [0.1, 0.3, 0.2]], 0.9),
        "both seeds": trained([[0.1, 0.7, 0.1], [0.7, 0.1, 0.2]], 0.1),
        "diverged": trained([[0.8, np.nan, np.nan]] * 2, 0.9),
        "at the end": trained([[0.1, 0.2, 0.6], [0.1, 0.2, 0.6]], 0.9),
    }
    assert best_setting(found) == "both seeds"
