"""The labels are random, and the claims can fail."""

import numpy as np

from experiments import random_labels as experiment
from experiments.lib.data.small import small_data


def test_labels_are_drawn_anew():
    data = small_data("digits", seed=3, train_size=1000)
    some = experiment.with_random_labels(data, 0.5, 3)
    # Of 500 labels drawn anew 50 are right by chance, with a standard deviation of 6.7.
    assert 500 - 50 - 4 * 6.7 < (some.targets != data.targets).sum() < 500 - 50 + 4 * 6.7
    np.testing.assert_array_equal(some.inputs, data.inputs)
    again = experiment.with_random_labels(data, 0.5, 3)
    np.testing.assert_array_equal(some.targets, again.targets)


def _verdicts(**changed):
    rows = {
        "reached": [True] * 5,
        "train_accuracy": [1.0] * 5,
        "test_accuracy": [0.95, 0.8, 0.6, 0.35, 0.1],
        "epoch": [50, 150, 180, 190, 200],
        "sharpness": [1.4, 1.6, 1.8, 2.0, 2.1],
        "trace": [16, 30, 40, 48, 50],
        "norm": [24, 29, 32, 34, 35],
    } | changed
    runs = {k: np.tile(np.array(v), (3, 1)) for k, v in rows.items()}
    judged = experiment.lab.judged(runs, experiment.Config(seeds=3))
    return {v.claim.name: v.verdict for v in judged}


def test_verdicts_on_made_up_runs():
    assert set(_verdicts().values()) == {"reproduced"}
    unfitted = _verdicts(train_accuracy=[1, 1, 1, 1, 0.5], reached=[True] * 4 + [False])
    assert unfitted["fits-everything"] == "not reproduced"
    assert unfitted["sharper"] == "inconclusive"
    flat = _verdicts(
        sharpness=[2, 2, 2, 2, 1], trace=[50, 48, 40, 30, 16], norm=[24] * 4 + [20],
        test_accuracy=[0.3, 0.3, 0.4, 0.5, 0.6], epoch=[50] * 5,
    )  # fmt: skip
    failed = {name for name, verdict in flat.items() if verdict == "not reproduced"}
    assert failed == set(flat) - {"fits-everything"}
