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


def test_other_images_have_the_same_pixels_or_the_same_moments():
    data = small_data("digits", seed=3, train_size=1000)
    shuffled = experiment.with_other_images(data, "pixels", 3).inputs
    np.testing.assert_array_equal(np.sort(shuffled), np.sort(data.inputs))
    assert (shuffled[0].argsort() != shuffled[1].argsort()).any()
    brighter = data._replace(inputs=data.inputs + 2)
    drawn = experiment.with_other_images(brighter, "gaussian", 3).inputs
    # Standard deviations of pixels are up to 1.1, those of their means up to 0.035.
    np.testing.assert_allclose(drawn.mean(0), brighter.inputs.mean(0), atol=4 * 0.035)
    # The standard error of a pixel's standard deviation is 1 / sqrt(2000) of it; the largest of 64.
    np.testing.assert_allclose(drawn.std(0), data.inputs.std(0), rtol=4 / 2000**0.5)
    inner = drawn[:, 26:30]  # neighbours in the middle, strongly correlated in the digits
    assert np.abs(np.corrcoef(inner.T) - np.eye(4)).max() < 5 / 1000**0.5


GOOD = {
    "train_accuracy": [1.0] * 7,
    "test_accuracy": [0.95, 0.8, 0.6, 0.35, 0.1, 0.1, 0.1],
    "epoch": [70, 150, 170, 196, 200, 100, 90],
    "sharpness": [1.4, 1.6, 1.8, 2.0, 2.1, 1, 1],
    "trace": [16, 30, 40, 48, 50, 1, 1],
    "norm": [24, 29, 32, 34, 35, 1, 1],
}


def _verdicts(reached=True, **changed):
    kinds = [*experiment.Config().fractions, *experiment.IMAGES]
    draw = np.array([0.99, 1.0, 1.01])  # of three seeds
    runs = {
        kind: {name: row[i] * (draw if row[i] > 1 else 1 + 0 * draw) for name, row in rows.items()}
        for i, kind in enumerate(kinds)
        for rows in [GOOD | changed]
    }
    for kind, records in runs.items():
        records["reached"] = np.full(3, reached or kind != 1.0)
        records["records_train_accuracy"] = np.tile([0.1, 1.0], (3, 1))
    judged = experiment.lab.judged(runs, experiment.Config(seeds=3))
    return {v.claim.name: v.verdict for v in judged}


def test_verdicts_on_made_up_runs():
    assert set(_verdicts().values()) == {"reproduced"}
    unfitted = _verdicts(reached=False, train_accuracy=[1, 1, 1, 1, 0.5, 1, 1])
    assert unfitted["fits-everything"] == "not reproduced"
    assert unfitted["sharper"] == "inconclusive"
    flat = _verdicts(
        sharpness=[2] * 4 + [1.5] * 3, trace=[50, 48, 40, 30, 16, 1, 1], norm=[24] * 4 + [20] * 3,
        test_accuracy=[0.3, 0.3, 0.4, 0.5, 0.6, 0.1, 0.1], epoch=[50] * 4 + [45, 60, 60],
    )  # fmt: skip
    failed = {name for name, verdict in flat.items() if verdict == "not reproduced"}
    assert failed == set(flat) - {"fits-everything"}


def test_the_null_of_an_order_has_the_true_labels_of_each_seed_in_turn():
    runs = {0.0: {"trace": np.arange(5.0)}}
    found = experiment.order_of_draws("trace")(runs, experiment.Config(seeds=5))
    np.testing.assert_allclose(found, [1, 0, -0.5, -0.5, 0], atol=1e-12)
