"""Sharpest directions: the line search on made-up slopes, and claims on made-up paths."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import sharpest_directions as experiment


@pytest.mark.parametrize(
    ("slopes", "root"),
    [([3.0, 1.0, -1.0, -2.0], 2.5), ([1.0, 2.0, 3.0, 1.0], 4.0), ([-1.0, 1.0, 1.0, 1.0], 1.0)],
)
def test_the_best_multiple_is_where_the_slope_first_turns(slopes, root):
    found = experiment.first_root(jnp.arange(1.0, 5.0), jnp.asarray(slopes))
    np.testing.assert_allclose(found, root, rtol=1e-6)


def test_two_arms_are_compared_where_both_have_the_same_loss():
    steep = {"loss": np.array([[4.0, 3, 2, 1, 0.5, 0.5]]), "sharpness": np.ones((1, 6)) * 6}
    flat = {"loss": np.array([[4.0, 3.5, 3, 2.5, 2.2, 2]]), "sharpness": np.ones((1, 6)) * 2}
    assert experiment.at_equal_loss(steep, flat, 0) == (6.0, 2.0)


def _kept(multiples, overlap, nudged, mild):
    def arm(multiple, sharpness):
        values = {
            "loss": np.linspace(1, 0, 12),
            "sharpness": sharpness + np.zeros(12),
            "best_multiple": multiple + np.zeros(12),
            "share_of_first": np.ones(12),
            "overlap": overlap + np.zeros(12),
            "random_overlap": 1e-3,
        }
        return {name: np.stack([v] * 3) for name, v in values.items()}

    runs = dict(zip(experiment.ARMS, (
        arm(multiples[0], 10.0), arm(multiples[1], 5.0), arm(1.0, mild), arm(1.0, nudged),
    ), strict=True))  # fmt: skip
    found = experiment.lab.judged(runs, experiment.Config(seeds=3))
    return {v.claim.name for v in found if v.verdict == "reproduced"}


def test_verdicts_on_made_up_paths():
    assert _kept((0.5, 10.0), 0.5, nudged=20.0, mild=13.0) == set(experiment.lab.claims)
    assert not _kept((1.0, 1.0), 1e-3, nudged=10.0, mild=10.0)
