"""Ensembles are scored as they are, and the claims can fail."""

import numpy as np
import pytest

from experiments import fast_ensembling as experiment
from experiments.lib.nets.architecture import Architecture
from experiments.lib.training.recipes import Recipe

SEEDS = 3


def test_scores_in_closed_form():
    logits = np.log(np.array([[[[0.5, 0.25, 0.25]] * 4, [[0.1, 0.8, 0.1]] * 4]]))
    found = experiment.scores(logits, np.array([[0, 0, 1, 1]]), seeds=[7])
    one = -np.log([0.5, 0.25]).mean()
    other = -np.log([0.1, 0.8]).mean()
    both = -np.log([0.3, 0.525]).mean()
    # The library computes in float64 and answers in float32.
    np.testing.assert_allclose(found["nll"], [[one, both]], rtol=1e-6)
    np.testing.assert_allclose(found["member nll"], [[one, other]], rtol=1e-6)
    np.testing.assert_allclose(found["member accuracy"], [[0.5, 0.5]])
    np.testing.assert_allclose(found["accuracy"], [[0.5, 0.5]])
    np.testing.assert_allclose(found["disagreement"], [[0.0, 1.0]])
    assert found["calibrated"].shape == found["member calibrated"].shape == (1, 2)
    three = experiment.scores(logits[:, [0, 1, 0]], np.array([[0, 0, 1, 1]]), seeds=[7])
    np.testing.assert_allclose(three["disagreement"], [[0.0, 1.0, 2 / 3]])


def test_cycles_begin_and_end_with_the_smallest_rate():
    config = experiment.Config(train_size=400, cycle=2, low=0.1, high=0.5)
    schedule = experiment.rate(config, config.high)  # ten updates an epoch
    found = [float(schedule(count)) for count in (0, 5, 10, 15, 20, 30)]
    np.testing.assert_allclose(found, [0.1, 0.3, 0.5, 0.3, 0.1, 0.5], rtol=1e-6)


def test_likelihoods_are_those_of_a_cross_entropy():
    with pytest.raises(ValueError, match="must be cross_entropy"):
        experiment.Config(recipe=Recipe(loss="squared_error"))
    assert Architecture().loss == "cross_entropy"


def records(nll, calibrated, accuracy, member):
    """Of four members; `nll` and the others are those of the first and of all of them."""
    draw = np.array([0.999, 1.0, 1.001])[:, None]

    def row(first, last):
        return np.linspace(first, last, 4) * draw

    return {
        "nll": row(*nll), "calibrated": row(*calibrated), "accuracy": row(*accuracy),
        "member nll": row(member, member), "member calibrated": row(member - 0.05, member - 0.05),
    }  # fmt: skip


def verdicts(fge=0.56, calibrated=0.5, accuracy=0.84, swa=0.58, independent=0.42):
    runs = {
        "FGE": records((0.6, fge), (0.55, calibrated), (0.82, accuracy), 0.6),
        "small rate": records((0.6, 0.598), (0.55, 0.549), (0.82, 0.82), 0.6),
        "independent": records((0.6, independent), (0.55, 0.4), (0.82, 0.88), 0.6),
        "SWA, FGE": records((swa, swa), (0.55, 0.55), (0.83, 0.83), swa),
        "SWA, small rate": records((0.599, 0.599), (0.55, 0.55), (0.82, 0.82), 0.599),
    }
    judged = experiment.lab.judged(runs, experiment.Config(seeds=SEEDS, members=4))
    return {v.claim.name: v.verdict for v in judged}


def test_verdicts_on_made_up_runs():
    assert set(verdicts().values()) == {"reproduced"}
    worse = verdicts(fge=0.65, calibrated=0.6, accuracy=0.8, swa=0.7, independent=0.7)
    assert set(worse.values()) == {"not reproduced"}
    # No more than members that do not differ have.
    same = verdicts(fge=0.598, calibrated=0.549, accuracy=0.82, swa=0.599)
    assert same.pop("independent-beats-fge") == "reproduced"
    assert set(same.values()) <= {"not reproduced", "inconclusive", "void"}
