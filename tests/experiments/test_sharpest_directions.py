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
    diverged = {"loss": np.full((1, 6), np.nan), "sharpness": np.full((1, 6), np.nan)}
    assert np.isnan(experiment.at_equal_loss(diverged, flat, 0)).all()


def _judged(best, overlap, sharpness, loss, accuracy):
    """Records of all arms; `best` is the product of best multiple, rate and sharpness."""

    def arm(name):
        top = sharpness.get(name, 10.0)
        rate = 0.02 if name == "small" else 0.2
        values = {
            "loss": np.linspace(1, {"small": 0.4, "gamma_0.01": loss}.get(name, 0.1), 12),
            "test_accuracy": np.linspace(0.1, accuracy if name == "gamma_0.01" else 0.85, 12),
            "sharpness": np.full(12, top),
            "last": np.full(12, top / 2),
            "best_multiple": np.full(12, best / rate / top),
            "share_of_first": np.full(12, 0.3),
            "overlap": np.full(12, overlap if name == "sgd" else 0.01),
        }
        return {name: np.stack([v] * 3) for name, v in values.items()}

    runs = {name: arm(name) for name in experiment.ARMS}
    found = experiment.lab.judged(runs, experiment.Config(seeds=3))
    return {verdict: {v.claim.name for v in found if v.verdict == verdict}
            for verdict in ("reproduced", "void")}  # fmt: skip


def test_verdicts_on_made_up_paths():
    sharpness = {"gamma_2": 5.0, "gamma_0.1": 13.0, "gamma_0.01": 19.0}
    good = _judged(1.0, 0.4, sharpness, 0.09, 0.86)
    assert good == {"reproduced": set(experiment.lab.claims), "void": set()}
    bad = _judged(1.3, 0.1, {}, 0.2, 0.7)
    assert bad["reproduced"] == set()
    control = sharpness | {"random_0.01": 19.0}  # random directions do as well
    void = {"nudged-goes-sharper", "mildly-nudged-goes-sharper"}
    assert _judged(1.0, 0.4, control, 0.09, 0.86)["void"] == void
