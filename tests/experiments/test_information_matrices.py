"""C, H and F: the smoke preset, and comparisons of matrices that are known."""

import dataclasses

import numpy as np
import pytest

from experiments import information_matrices as experiment
from experiments.lib.runs.rundir import read_json
from experiments.lib.verdicts.claims import judge


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """The numbers hold at any optimisation of the programs."""


def test_the_smoke_preset_judges_all_claims(tmp_path):
    config = dataclasses.replace(experiment.PRESETS["smoke"], out=tmp_path, quiet=True)
    experiment.main(config)
    summary = read_json(tmp_path / "summary.json")
    by_name = {c["name"]: c for c in summary["claims"]}
    assert set(by_name) == set(experiment.CLAIMS)
    assert by_name["fisher-is-the-divergence"]["verdict"] == "reproduced"
    assert all(c["measured"] is not None for c in summary["claims"])


def test_equal_and_orthogonal_matrices():
    a = np.diag([*np.arange(9.0, 0, -1), *[0.0] * 9])
    b = np.diag([*[0.0] * 9, *np.arange(9.0, 0, -1)])
    numbers = experiment.compare({"H": a, "C": 2 * a, "F": b})
    assert numbers["r(H,C)"] == pytest.approx(0.5)
    assert numbers["s(H,C)"] == pytest.approx(1)
    assert numbers["overlap(H,C)"] == pytest.approx(1)
    assert numbers["s(C,F)"] == numbers["overlap(F,H)"] == 0


def test_made_up_cosines_are_refused():
    claim = experiment.CLAIMS["fisher-like-hessian"]
    assert judge(claim, {0: 0.3, 1: 0.31, 2: 0.29}).verdict == "not reproduced"
