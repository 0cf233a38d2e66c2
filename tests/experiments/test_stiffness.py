"""The law in one dimension, the shares of pairs, and claims that can fail."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import stiffness as experiment
from experiments.stiffness.gradients import share_of_one_class
from experiments.stiffness.stability import growth, most_uniform, one_dimension


def test_one_dimension_follows_its_law():
    found = one_dimension(0, 2000)
    # The rarest walkers carry the mean square: a few per cent of a 30th power's base.
    np.testing.assert_allclose(found["growth"], 1, atol=0.05)
    assert found["descent"] < [0.1] * 4
    assert (found["leaves"], found["descent_leaves"]) == (1, 0)
    for rate in (0.4, 0.7):
        assert growth(rate) == pytest.approx((1 - 2 * rate) ** 2 + 3.24 * rate**2, rel=1e-12)


def test_what_batches_hold_and_how_many_pairs_have_one_class():
    assert most_uniform(0.5, 2, 5) == pytest.approx(2 * np.sqrt(8 / 3))
    assert most_uniform(0.5, 5, 5) == np.inf
    labels = jnp.array([0, 0, 1])
    assert share_of_one_class(labels, labels, distinct=True) == pytest.approx(1 / 3)
    assert share_of_one_class(labels, labels[1:], distinct=False) == pytest.approx(1 / 2)


def _judged(cosines, signs, value, small, full, line, *, start=0.0, together=1):
    def records(**values):
        return {name: np.full((3, 5), v) for name, v in values.items()}

    def minima(sharpness, spread, value):
        scale = np.outer([0.97, 1.0, 1.03], [1.2, 1.0])
        return {
            "reached": np.ones((3, 2), bool),
            "value": np.full((3, 2), value),
            "sharpness": sharpness * scale,
            "non_uniformity": spread * scale**together,
        }

    within, between = cosines
    training = records(
        cos_within=within, cos_between=between, test_cos_within=within, test_cos_between=between,
        same=0.1, test_same=0.1, sign_between=signs,
    )  # fmt: skip
    training["sign_between"][:, 0] = start
    growth, leaves = line
    walkers = {
        "growth": np.full((3, 4), growth),
        "descent": np.zeros((3, 4)),
        "leaves": np.full(3, leaves),
        "descent_leaves": np.zeros(3),
    }
    found = experiment.Found(
        {"0.03": training}, {"4": minima(*small, value), "200": minima(*full, 0.3)}, walkers
    )
    return experiment.lab.judged(found, experiment.Config(seeds=3))


def test_verdicts_on_made_up_runs():
    good = _judged((0.4, -0.01), -0.3, 0.95, (4.0, 9.0), (9.0, 21.0), (1.001, 1.0))
    assert {v.claim.name: v.verdict for v in good} == dict.fromkeys(
        experiment.lab.claims, "reproduced"
    )
    bad = _judged(
        (0.1, 0.1), 0.1, 1.5, (9.0, 21.0), (8.9, 20.0), (0.9, 0.5), start=0.1, together=-9
    )
    assert not {v.claim.name for v in bad if v.verdict == "reproduced"}
    # Signs that are as negative before training say nothing of it.
    same = _judged((0.4, -0.01), -0.3, 0.95, (4.0, 9.0), (9.0, 21.0), (1.0, 1.0), start=-0.3)
    assert {v.claim.name for v in same if v.verdict == "void"} == {"sign-between"}
