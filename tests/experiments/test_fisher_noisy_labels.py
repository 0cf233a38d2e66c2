"""The claims fail where nothing is slowed."""

import numpy as np
import pytest

from experiments import fisher_noisy_labels as experiment


def _records(slow, final, noisy, clean=1.0, true=0.8):
    epochs = np.tile(np.arange(0, 100, 5), (3, 1))
    time = epochs / 100
    return {
        "epoch": epochs,
        "clean_fit": np.minimum(clean, 5 * time),
        "noisy_fit": np.minimum(noisy, np.maximum(0, (time - 0.1) * 4 / slow)),
        "noisy_recovered": np.where(epochs > 0, true, 0.1),
        "test_accuracy": np.full(epochs.shape, final),
        "validation_accuracy": np.sin(3 * time),
        "half_accuracy": np.full(epochs.shape, final),
    }


def _verdicts(arms):
    runs = {
        (arm, noise): _records(*arms[arm]) for arm in experiment.ARMS for noise in experiment.NOISES
    }
    judged = experiment.lab.judged(runs, experiment.Config(seeds=3))
    return {v.claim.name: v.verdict for v in judged}


GOOD = {
    "sgd": (1, 0.70, 1.0),
    "mixup": (1, 0.80, 1.0),
    "gp_x": (1, 0.78, 1.0),
    "fp": (9, 0.88, 0.3),
    "gp_r": (9, 0.87, 0.3),
}


def test_verdicts_on_made_up_runs():
    assert set(_verdicts(GOOD).values()) == {"reproduced"}
    useless = {
        "sgd": (1, 0.7, 0.9, 1.0, 0.3), "mixup": (1, 0.72, 1.0), "gp_x": (1, 0.72, 1.0),
        "fp": (1, 0.68, 0.9, 0.85), "gp_r": (1, 0.67, 0.9),
    }  # fmt: skip
    assert set(_verdicts(useless).values()) == {"not reproduced"}
    # A penalty that does nothing gains nothing, and the claim is not void for that.
    assert _verdicts(GOOD | {"fp": GOOD["sgd"]})["fp-final-25"] == "not reproduced"


def test_the_validation_half_chooses_the_coefficient():
    small, large = (_records(1, final, 1.0) for final in (0.9, 0.5))
    large["validation_accuracy"] = large["validation_accuracy"] + 0.01
    found = experiment.chosen({0.3: small, 1.0: large})
    assert found["half_accuracy"] is large["half_accuracy"]
    assert (found["coef"] == 1.0).all()


def test_the_null_of_an_order_has_the_accuracies_of_other_arms():
    runs = {(arm, 0.25): _records(1, GOOD[arm][1], 1.0) for arm in experiment.ARMS}
    assert experiment.in_order(0.25, experiment.final)(runs, None) == pytest.approx([1.0] * 3)
    assert experiment.in_order(0.25, experiment.final, shift=1)(runs, None) == pytest.approx(
        [-0.2] * 3
    )
