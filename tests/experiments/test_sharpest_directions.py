"""Sharpest directions: the smoke preset, and the line search on made-up slopes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import sharpest_directions as experiment
from experiments.lib.runs.rundir import read_json
from experiments.lib.verdicts.claims import judge


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """The numbers hold at any optimisation of the programs."""


def test_the_smoke_preset_judges_all_claims(tmp_path):
    config = dataclasses.replace(experiment.PRESETS["smoke"], out=tmp_path, quiet=True)
    experiment.main(config)
    summary = read_json(tmp_path / "summary.json")
    assert {c["name"] for c in summary["claims"]} == set(experiment.CLAIMS)
    by_name = {c["name"]: c for c in summary["claims"]}
    # With a small step on a nearly quadratic line the best multiple is 1 / (rate x sharpness).
    assert by_name["step-too-short-at-a-small-rate"]["measured"] > 3
    assert (tmp_path / "directions.png").stat().st_size > 5000


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


def test_a_made_up_flat_path_is_refused():
    claim = experiment.CLAIMS["nudged-goes-sharper"]
    assert judge(claim, {0: 1.0, 1: 1.01, 2: 0.99}).verdict == "not reproduced"
