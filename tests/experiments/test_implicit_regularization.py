"""The orders are those of theory, and the claims can fail."""

import dataclasses

import numpy as np
import pytest

from experiments import implicit_regularization as experiment
from experiments.implicit_regularization.flows import orders


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """The orders hold at any optimisation of the programs."""


def test_the_orders_are_those_of_backward_error_analysis():
    smoke = experiment.lab.presets["smoke"]
    config = dataclasses.replace(smoke, steps=(0.01, 0.005), epoch_steps=(0.002, 0.001))
    found = {name: np.array([values]) for name, values in orders(config, 0).items()}
    # Up to terms of the next order in h: some 0.03 for a step, 0.1 for an epoch of four.
    theory = {"step flow": 2, "step modified": 3, "epoch flow": 2, "epoch isgr": 3}
    for name, power in theory.items():
        order = experiment.order(name)({"orders": found}, config)[0]
        assert order == pytest.approx(power, abs=0.07 if "step" in name else 0.2), name


def _reproduced(order, better, explicit, test):
    h = np.array([0.1, 0.05, 0.025])
    distances = {
        "step flow": h**better, "step modified": h**order,
        "horizon flow": [0.01], "horizon modified": [0.01 * 0.1 ** (order - 2)],
        "horizon twice": [0.01],
        "epoch flow": h**better, "epoch modified": 0.5 * h**better, "epoch isgr": h**order,
    }  # fmt: skip

    def arm(trace, accuracy):
        chance = np.array([[-0.001], [0.0], [0.001]])
        return {
            "trace_fisher": trace * (1 + chance) + np.zeros(4),
            "test_accuracy": accuracy + chance[[1, 0, 2]] + np.zeros(4),
        }

    runs = {
        "orders": {name: np.tile(values, (3, 1)) for name, values in distances.items()},
        "large step": arm(explicit, 0.7 + test),
        "small step": arm(100.0, 0.7),
        "other order": {name: rows[::-1] for name, rows in arm(100.0, 0.7).items()},
        "explicit": arm(explicit + 2, 0.7 + test),
    }
    config = experiment.Config(seeds=3)
    judged = experiment.lab.judged(runs, config)
    return {v.claim.name for v in judged if v.verdict == "reproduced"}


def test_verdicts_on_made_up_runs():
    assert _reproduced(3.0, 2.0, 40.0, 0.04) == set(experiment.lab.claims)
    # The right order for the wrong flow, and steps that do nothing; then none has any order.
    bad = _reproduced(2.0, 2.0, 101.0, -0.02)
    assert bad <= {"order-flow", "epoch-order-flow", "epoch-order-igr"}
    assert not _reproduced(1.0, 1.0, 101.0, -0.02)
