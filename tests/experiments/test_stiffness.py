"""The part in one dimension is the paper's own at every size, and the claims can fail."""

import numpy as np

from experiments import stiffness as experiment
from experiments.stiffness.stability import one_dimension


def test_one_dimension_is_exact():
    assert set(one_dimension(0, 20).values()) == {1.0}


def _kept(cosines, signs, test, value, small, full, line, *, together=1):
    def records(**values):
        return {name: np.full((3, 5), v) for name, v in values.items()}

    def minima(sharpness, spread):
        scale = np.array([[1.2, 1.0]] * 3)
        return {
            "reached": np.ones((3, 2), bool),
            "value": np.full((3, 2), value),
            "sharpness": sharpness * scale,
            "non_uniformity": spread * scale**together,
        }

    training = records(
        cos_within=cosines[0],
        cos_between=cosines[1],
        sign_within=signs[0],
        sign_between=signs[1],
        test_cos_within=test,
    )
    found = experiment.Found(
        {"0.03": training},
        {"4": minima(*small), "200": minima(*full)},
        {
            f"one-dimension-{name}": np.full(3, line)
            for name in ("stays", "leaves", "descent-stays")
        },
    )
    judged = experiment.lab.judged(found, experiment.Config(seeds=3))
    return {v.claim.name for v in judged if v.verdict == "reproduced"}


def test_verdicts_on_made_up_runs():
    good = _kept((0.4, -0.01), (0.9, -0.2), 0.35, 0.5, (10.0, 6.0), (15.0, 12.0), 1.0)
    assert good == set(experiment.lab.claims)
    assert not _kept(
        (0.1, 0.2), (0.2, 0.2), 0.01, 1.5, (15.0, 12.0), (14.0, 11.9), 0.5, together=-5
    )
