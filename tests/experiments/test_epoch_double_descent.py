"""The claims fail on runs without a second descent, and where the control falls as well."""

import numpy as np
import pytest

from experiments import epoch_double_descent as experiment
from experiments.epoch_double_descent import plain
from experiments.lib.verdicts.statistics import climb

POINTS = np.linspace(0.0, 1.0, 11)


def _phase(loss, trace, fitted=1.0 + 0 * POINTS, norm=1.0):
    values = {
        "epoch": 400 + 100 * POINTS,
        "train_loss": 1 - 0.9 * POINTS,
        "test_loss": loss,
        "test_accuracy": 1 - loss / 4,
        "trace_fisher": trace,
        "sharpness": trace / 30,
        "noisy_fit": fitted,
        "norm": 1 + (norm - 1) * POINTS,
    }
    return {name: np.tile(v, (3, 1)) for name, v in values.items()}


def _plain(error, trace, train=0.5 - 0.5 * POINTS):
    """A record at the start and one for each of eleven octaves."""

    def rows(values):
        return np.tile([values[0], *values], (3, 1))

    return {
        "epoch": np.tile([0, *2 ** np.arange(11)], (3, 1)), "test_error": rows(error),
        "train_error": rows(train), "trace_fisher": rows(trace), "norm": rows(1 + POINTS),
    }  # fmt: skip


TWICE = _plain([0.9, 0.5, 0.3, 0.32, 0.35, 0.4, 0.45, 0.4, 0.35, 0.3, 0.25], 1 + 9 * POINTS[::-1])


def _judged(fit, drift, slow, control, alone=TWICE):
    drift = drift | {"layers": np.full(3, 3)}
    runs = {"fit": fit, "drift": drift, "slow": slow, "control": control, "plain": alone}
    found = experiment.lab.judged(runs, experiment.Config(seeds=3))
    return {
        verdict: {v.claim.name for v in found if v.verdict == verdict}
        for verdict in ("reproduced", "void")
    }


FIT = _phase(1 + 0.3 * POINTS, 500 + 0 * POINTS, fitted=POINTS)
DRIFT = _phase(1.3 - 0.6 * POINTS, 500 - 450 * POINTS)
SLOW = _phase(1.3 - 0.2 * POINTS, 500 - 125 * POINTS)
CONTROL = _phase(1.3 + 0.1 * POINTS, 500 + 10 * POINTS)


def test_the_time_to_fall_is_interpolated():
    stays = _phase(1 + 0 * POINTS, 500 + 0 * POINTS)
    runs = {"drift": DRIFT, "control": stays}
    np.testing.assert_allclose(experiment.time_to_fall(runs, "drift"), 100 * 125 / 450, rtol=1e-12)
    assert np.isnan(experiment.time_to_fall(runs, "control")).all()


def test_the_norm_by_scale_alone_is_that_of_a_homogeneous_network():
    """Two layers without biases: with both times c the outputs' derivatives are times c."""
    runs = {"drift": _phase(1 + 0 * POINTS, 400 - 300 * POINTS) | {"layers": np.full(3, 2)}}
    np.testing.assert_allclose(experiment.of_scale_alone(runs, None), 0.5, rtol=1e-12)
    runs["drift"]["layers"] += 1
    np.testing.assert_allclose(experiment.of_scale_alone(runs, None), 0.5**0.5, rtol=1e-12)


def test_verdicts_on_made_up_runs():
    assert _judged(FIT, DRIFT, SLOW, CONTROL) == {
        "reproduced": set(experiment.lab.claims),
        "void": set(),
    }
    stays = _phase(1.3 + 0.1 * POINTS, 500 - 150 * POINTS)
    assert not _judged(FIT, stays, stays, CONTROL)["reproduced"] & {
        "second-descent", "second-descent-of-error", "fisher-falls", "sharpness-falls",
        "speed-is-noise-squared",
    }  # fmt: skip
    never = _phase(1 - 0.3 * POINTS, 500 + 0 * POINTS)
    shrinks = _phase(1.3 + 0.1 * POINTS, 500 - 150 * POINTS, 0.9 + 0 * POINTS, norm=0.5)
    only_falls = _plain(0.5 - 0.2 * POINTS, 1 + POINTS)
    assert not _judged(never, shrinks, shrinks, DRIFT, only_falls)["reproduced"]
    # A norm that stays says nothing where tr F stays as well.
    still = _phase(1.3 - 0.6 * POINTS, 500 + 0 * POINTS)
    assert "no-shrinkage" in _judged(FIT, still, SLOW, CONTROL)["void"]
    falls_too = _judged(FIT, DRIFT, SLOW, DRIFT)["void"]
    assert falls_too == {
        "second-descent", "second-descent-of-error", "fisher-falls", "sharpness-falls"
    }  # fmt: skip
    only_rises = _plain(0.3 + 0.2 * POINTS, 1 + POINTS)
    assert not _judged(FIT, DRIFT, SLOW, CONTROL, only_rises)["reproduced"] & {
        "plain-error-falls-again", "plain-fisher-falls",
    }  # fmt: skip


def test_octaves_leave_out_the_untrained_network():
    epochs = np.array([[0, 1, 2, 3, 4, 6, 16]])
    values = np.array([[99.0, 1, 2, 4, 5, 7, 8]])
    # From 8 to 16 there is no record.
    np.testing.assert_allclose(plain.octaves(epochs, values), [[1, 3, 6, 8]])


@pytest.mark.parametrize(
    ("row", "rise", "fall"),
    [([3, 1, 2, 4, 2.5], 3, 1.5), ([4, 3, 2, 1], -1, np.nan), ([1, 5, 0, 3], 4, 2)],
)
def test_rises_and_falls(row, rise, fall):
    row = np.array(row, float)
    np.testing.assert_equal((climb(row), plain.fall(row)), (rise, fall))
    assert plain.end_over_largest(row) == row[-1] / row.max()
