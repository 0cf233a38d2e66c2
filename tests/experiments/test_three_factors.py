"""Three factors: made-up pairs whose curvature and memorising do not follow eta / S must fail."""

import numpy as np
import pytest

from experiments import three_factors as experiment

CONFIG = experiment.Config(seeds=1, rates=(0.1, 0.2), batch_sizes=(10, 20))
PAIRS = [(rate, size) for size in (10, 20) for rate in (0.1, 0.2)]


def _verdicts(factor, loss=0.0):
    """Everything follows `factor(rate, size)`, whose values are about 0.01."""
    fit, test = np.linspace(0, 1, 11)[None], np.linspace(0.5, 0.9, 11)[None]
    runs = {"clean": {}, "wrong": {}}
    for pair in PAIRS:
        by = factor(*pair)
        runs["clean"][pair] = {
            name: np.array([value])
            for name, value in {
                "loss": loss, "epochs": 1 / by, "trace": 1 / by, "sharpness": 1 / by,
                "test_accuracy": by,
            }.items()
        }  # fmt: skip
        # The larger it is, the better it generalises with as many of the labels memorised.
        runs["wrong"][pair] = {
            "noisy_fit": fit, "test_accuracy": test + by, "epoch": np.arange(11.0)[None] / by,
        }  # fmt: skip
    return {v.claim.name: v.verdict for v in experiment.lab.judged(runs, CONFIG)}


def test_verdicts_on_made_up_runs():
    assert set(_verdicts(lambda rate, size: rate / size).values()) == {"reproduced"}
    reverse = _verdicts(lambda rate, size: 0.1 + rate - 9 * rate / size)
    assert reverse.pop("unequal-ratio-unequal-curvature") == "reproduced"
    assert set(reverse.values()) == {"not reproduced"}
    flat = _verdicts(lambda rate, size: 0.01)
    assert flat["unequal-ratio-unequal-curvature"] == "not reproduced"
    unfinished = _verdicts(lambda rate, size: rate / size, loss=1.0)
    assert unfinished["trace-falls-with-the-ratio"] == "inconclusive"


def test_a_level_is_met_between_two_records():
    rising, other = np.array([0.0, 0.4, 0.6]), np.array([1.0, 2.0, 4.0])
    assert experiment.at(0.5, rising, other) == [pytest.approx(3.0)]
    assert np.isnan(experiment.at(0.7, rising, other)).all()
