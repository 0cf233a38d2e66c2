"""Records within a number of epochs."""

import numpy as np

from experiments.lib.training.cost import GRADIENTS, within
from experiments.lib.training.validation import at_best_epoch, final

RECORDS = {
    "epoch": np.array([[0, 2, 4, 6], [0, 2, 3, 3]]),  # the second run has come to its loss
    "half_accuracy": np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]),
    "validation_accuracy": np.array([[0.3, 0.4, 0.1, 0.9], [0.1, 0.2, 0.3, 0.2]]),
}


def test_records_within_so_many_epochs():
    assert within(RECORDS, 4).tolist() == [[True, True, True, False], [True] * 4]
    assert within(RECORDS, np.array([5, 2])).tolist() == [
        [True, True, True, False],
        [True, True, False, False],
    ]
    assert within(RECORDS, 4 / GRADIENTS["FP"] * GRADIENTS["FP"]).tolist()[0][2]


def test_the_last_and_the_best_among_them():
    among = within(RECORDS, np.array([5, 2]))
    assert final(RECORDS, "half_accuracy", among).tolist() == [0.3, 0.6]
    assert final(RECORDS, "half_accuracy").tolist() == [0.4, 0.8]
    assert at_best_epoch(RECORDS, among).tolist() == [0.2, 0.6]
    assert at_best_epoch(RECORDS).tolist() == [0.4, 0.7]


def test_gradients_of_an_update():
    """A gradient at another point, a Hessian product of two more, FP's refresh every 10 updates."""
    forward = 1 / 3
    expected = {"SGD": 1, "SAM": 2, "FP": 1 + (3 + forward) / 10, "GP": 3, "IGR": 3}
    assert {arm: round(cost, 9) for arm, cost in expected.items()} == {
        arm: round(cost, 9) for arm, cost in GRADIENTS.items()
    }
