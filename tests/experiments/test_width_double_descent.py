"""Peaks of rows, likelihoods, and claims that can fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from experiments import width_double_descent as experiment
from experiments.lib.training import recipes
from experiments.lib.training.recipes import Recipe

CONFIG = experiment.Config(seeds=3)


@pytest.mark.parametrize(
    ("row", "places", "rise"),
    [
        ([3.0, 2.0, 4.0, 1.0], (1, 2), 2.0),
        ([1.0, 3.0, 0.5, 1.0], (0, 1), 3.0),
        ([3.0, 2.0, 1.9, 1.0], (1, 2), 0.95),  # every width is better: no rise
    ],
)
def test_the_peak_is_the_largest_rise_over_the_least_before(row, places, rise):
    assert experiment.peak(np.array(row)) == places
    assert experiment.rise(np.array(row)) == pytest.approx(rise)


def test_the_climb_is_in_points_and_takes_zeros():
    assert experiment.climb(np.array([0.4, 0.3, 0.35, 0.0, 0.08])) == pytest.approx(0.08)
    assert experiment.climb(np.array([0.4, 0.1, 0.0, 0.0])) == 0
    assert experiment.climb(np.array([0.4, 0.3, 0.1])) == pytest.approx(-0.1)


def test_a_width_is_that_of_every_hidden_layer_or_of_the_network():
    assert recipes.of_width(Recipe(hidden=(3, 3)), 7).hidden == (7, 7)
    assert recipes.of_width(Recipe(network="s2cnn"), 7).network == "s2cnn-7"


def test_the_likelihoods_are_those_of_the_logits_and_of_their_best_temperature():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 400, 3))
    targets = np.asarray(jax.random.categorical(jax.random.key(0), jnp.asarray(logits)))
    found = experiment.likelihoods(3 * logits, targets)  # three times too sure

    def nll(scale):
        chosen = np.take_along_axis(log_softmax(scale * logits, -1), targets[..., None], -1)
        return -chosen.mean((1, 2))

    np.testing.assert_allclose(found["plain"], nll(3), rtol=1e-5)  # float32
    # Two folds of 200 find the temperature to some per cent, and the likelihood is flat there.
    np.testing.assert_allclose(found["calibrated"], nll(1), rtol=0.02)


GOOD = [0.5, 0.42, 0.4, 0.45, 0.6, 0.7, 0.77, 0.7, 0.6, 0.55]
FALLING = [0.5, 0.4, 0.3, 0.25, 0.22, 0.2, 0.18, 0.16, 0.14, 0.12]
TRAIN = [0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.005, 0.0, 0.0, 0.0]


def verdicts(**changes):
    def arm(error, loss=GOOD):
        rows = {"test_error": error, "test_loss": loss, "train_loss": FALLING, "train_error": TRAIN}
        return {name: np.array([row] * 3) for name, row in rows.items()}

    given = {
        "error": [0.5, 0.41, 0.4, 0.41, 0.42, 0.44, 0.46, 0.44, 0.4, 0.35],
        "right": FALLING, "loss": GOOD, "plain": GOOD, "calibrated": FALLING,
    } | changes  # fmt: skip
    runs = {
        0.2: arm(given["error"], given["loss"]),
        0.0: arm(given["right"]),
        "likelihood": {n: np.array([given[n]] * 3) for n in ("plain", "calibrated")},
    }
    judged = experiment.lab.judged(runs, CONFIG)
    return {v.claim.name: v.verdict for v in judged}


def test_verdicts_on_made_up_runs():
    assert set(verdicts().values()) == {"reproduced"}
    assert verdicts(right=GOOD)["no-peak-without-noise"] == "not reproduced"
    flat = verdicts(loss=FALLING, error=FALLING, plain=FALLING, calibrated=FALLING)
    assert flat["peak"] == flat["peak-of-the-error"] == "not reproduced"
    assert flat["likelihood-peaks"] == "not reproduced"
    late = verdicts(loss=[0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.9])
    assert late["peak-at-the-threshold"] == "not reproduced"
    rising = verdicts(loss=[*GOOD[:7], 0.75, 0.75, 0.74], error=[0.4] * 6 + [0.46] * 4)
    assert rising["second-descent"] == rising["below-the-first"] == "not reproduced"
    kept = verdicts(calibrated=GOOD, plain=FALLING)
    assert kept["calibration-removes-it"] == "not reproduced"


def test_rows_are_the_last_records_by_width():
    rows = [
        {
            "test_accuracy": np.array([[0.1, a]]), "train_accuracy": np.array([[0.1, 2 * a]]),
            "test_loss": np.array([[9, 3 * a]]), "train_loss": np.array([[9, 4 * a]]),
        }
        for a in (0.25, 0.5)
    ]  # fmt: skip
    found = experiment._by_width(rows)
    np.testing.assert_allclose(found["test_error"], [[0.75, 0.5]])
    np.testing.assert_allclose(found["train_error"], [[0.5, 0.0]])
    np.testing.assert_allclose(found["test_loss"], [[0.75, 1.5]])
    np.testing.assert_allclose(found["train_loss"], [[1.0, 2.0]])


def test_without_a_fit_there_is_no_threshold():
    runs = {0.2: {"test_loss": np.array([GOOD]), "train_error": np.ones((1, 10))}}
    measure = experiment.from_threshold(lambda row: experiment.peak(row)[1])
    assert np.isnan(measure(runs, CONFIG)).all()
