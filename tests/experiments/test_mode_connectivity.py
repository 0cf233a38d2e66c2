"""The claims can fail."""

import numpy as np

from experiments import mode_connectivity as experiment

SEEDS, POINTS = 3, 5
SHAPE = np.array([0.0, 0.75, 1.0, 0.75, 0.0])  # of a rise between two ends


def path(rise, error):
    """Losses that rise by so much between ends of 0.002, and errors by so much above 3 %."""
    draw = np.array([0.99, 1.0, 1.01])[:, None]
    return {
        "train_loss": 0.002 + rise * SHAPE * draw,
        "test_accuracy": 0.97 - error * SHAPE * draw,
        "barrier": rise * draw[:, 0],
        "lengths": np.tile(np.arange(5.0), (SEEDS, 1)),
    }


def verdicts(chord=1.0, curve=0.03, error=0.004, matched=0.5, copy=0.0, difference=2e-7):
    runs = {}
    for pair in experiment.WHAT:
        runs[f"{pair}, chord"] = path(chord, 0.3)
        for kind in experiment.KINDS:
            runs[f"{pair}, {kind}"] = path(curve, error)
        rise = matched if pair == "apart" else copy * chord
        runs[f"{pair}, {experiment.MATCHED}"] = path(rise, 0.1)
        runs[f"{pair}, ends"] = {
            "difference": np.full(SEEDS, difference if pair == "copy" else 1.0),
            "distance": np.full(SEEDS, 1.4),
            "distance after matching": np.full(SEEDS, copy if pair == "copy" else 1.2),
        }
    runs["apart, chord after shuffling"] = path(1.02 * chord, 0.3)
    config = experiment.Config(seeds=SEEDS, points=POINTS)
    return {v.claim.name: v.verdict for v in experiment.lab.judged(runs, config)}


def test_verdicts_on_made_up_runs():
    assert set(verdicts().values()) == {"reproduced"}
    high = verdicts(curve=0.3, error=0.1, matched=1.3, copy=0.4, difference=1e-3)
    assert {name for name, verdict in high.items() if verdict == "not reproduced"} == {
        name for name in high if not name.endswith("chord-is-high")
    }
    low = verdicts(chord=0.05, curve=0.03, matched=0.06)
    failed = {name for name, verdict in low.items() if verdict == "not reproduced"}
    assert failed == {
        name
        for name in low
        if name.endswith(("chord-is-high", "avoids-the-barrier")) or name.startswith("matching")
    }
    # Where all is low, that a curve is low says nothing.
    assert low["apart-bezier-is-low"] == low["copy-chain-is-low"] == "void"


def test_a_curve_without_a_barrier_avoids_it():
    runs = {"apart, chord": path(1.0, 0.3), "apart, Bezier": path(0.0, 0.0)}
    found = experiment.barriers("apart, chord", "apart, Bezier")(runs, experiment.Config())
    np.testing.assert_allclose(found, [0.99e6, 1e6, 1.01e6])


def test_the_rise_is_above_the_mean_of_the_ends():
    runs = {"a": {"test_accuracy": np.array([[0.9, 0.5, 0.8], [0.7, 0.9, 0.9]])}}
    found = experiment.rise("a")(runs, experiment.Config())
    np.testing.assert_allclose(found, [0.5 - 0.15, 0.3 - 0.2])
