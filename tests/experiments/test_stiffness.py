"""The experiment runs end to end, its one-dimensional part is exact, and its claims can fail."""

import dataclasses

import numpy as np
import pytest

from experiments import stiffness as experiment
from experiments.lib.runs import rundir
from experiments.lib.verdicts.claims import judge
from experiments.lib.verdicts.statistics import by_seed


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """The numbers do not matter here."""


def test_smoke_end_to_end(tmp_path):
    config = dataclasses.replace(experiment.PRESETS["smoke"], out=tmp_path, quiet=True)
    experiment.main(config)
    summary = rundir.read_json(tmp_path / "summary.json")
    assert [c["name"] for c in summary["claims"]] == list(experiment.CLAIMS)
    by_name = {c["name"]: c for c in summary["claims"]}
    # The part in one dimension is the paper's own at every size.
    exact = [c for name, c in by_name.items() if name.startswith("one-dimension")]
    assert {c["verdict"] for c in exact} == {"reproduced"}
    assert all((tmp_path / figure["file"]).exists() for figure in summary["figures"])


def _verdicts(within=0.4, value=0.5, small=(10.0, 6.0), full=(15.0, 12.0)):
    shape = (3, 5)
    records = {
        "cos_within": np.full(shape, within),
        "cos_between": np.full(shape, -0.01),
        "sign_within": np.full(shape, min(1.0, 2 * within)),
        "sign_between": np.full(shape, -0.2),
        "test_cos_within": np.full(shape, 0.8 * within),
    }

    def minima(sharpness, spread):
        scale = np.array([[1.2, 1.0]] * 3)
        return {
            "reached": np.ones((3, 2), bool),
            "value": np.full((3, 2), value),
            "sharpness": sharpness * scale,
            "non_uniformity": spread * scale,
        }

    values = experiment.numbers([records], {"4": minima(*small), "200": minima(*full)})
    return {
        name: judge(experiment.CLAIMS[name], by_seed(range(3), v)).verdict
        for name, v in values.items()
    }


def test_verdicts_on_made_up_runs():
    assert set(_verdicts().values()) == {"reproduced"}
    bad = _verdicts(within=0.1, value=1.5, small=(15.0, 12.0))
    failed = {name for name, verdict in bad.items() if verdict == "not reproduced"}
    assert failed == {
        "within", "sign-within", "test-within", "stable", "small-batches-uniform",
        "small-batches-flat",
    }  # fmt: skip
