"""The experiment runs end to end, and its claims fail where SAM is no flatter."""

import dataclasses

import numpy as np
import pytest

from experiments import sam_vs_sgd as experiment
from experiments.lib.runs import rundir
from experiments.lib.verdicts.claims import judge
from experiments.lib.verdicts.statistics import by_seed

CONFIG = experiment.Config()


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """The numbers do not matter here."""


def test_smoke_end_to_end(tmp_path):
    config = dataclasses.replace(experiment.PRESETS["smoke"], out=tmp_path, quiet=True)
    experiment.main(config)
    summary = rundir.read_json(tmp_path / "summary.json")
    assert [c["name"] for c in summary["claims"]] == list(experiment.claims(config.noises))
    # Four epochs do not reach the training loss: nothing is compared.
    assert {c["verdict"] for c in summary["claims"]} == {"inconclusive"}
    assert set(summary["extra"]) == {"SGD", "rho 0.05", "rho 0.1", "SAM", "p 1.5", "p inf"}
    assert all((tmp_path / figure["file"]).exists() for figure in summary["figures"])


def _end(top, test, *, reached=True):
    size = (2, 3)  # noises, seeds
    return {
        "reached": np.full(size, reached),
        "sharpness": np.full(size, float(top)),
        "trace": np.full(size, 50.0 * top**0.4),
        "sam_sharpness": np.full(size, 0.02 * top),
        "test_accuracy": np.array([[0.95] * 3, [test] * 3]) + 0.05 * (test - 0.7),
    }


def _verdicts(**changed):
    found = {
        "SGD": _end(14, 0.7),
        "rho 0.05": _end(8, 0.72),
        "rho 0.1": _end(4, 0.76),
        "SAM": _end(2.4, 0.8),
        "p 1.5": _end(3.0, 0.79),
        "p inf": _end(3.0, 0.79),
    } | changed
    values = experiment.numbers(CONFIG, found)
    return {
        name: judge(claim, by_seed(range(3), values[name])).verdict
        for name, claim in experiment.claims(CONFIG.noises).items()
    }


def test_verdicts_on_made_up_runs():
    assert set(_verdicts().values()) == {"reproduced"}
    useless = _verdicts(SAM=_end(14.5, 0.7))
    failed = {name for name, verdict in useless.items() if verdict == "not reproduced"}
    for part in ("0", "20"):
        assert {f"{name}-{part}" for name in ("eigenvalue", "trace", "sam-sharpness")} <= failed
    assert "test-20" in failed
    unfinished = _verdicts(SAM=_end(2.4, 0.8, reached=False))
    assert unfinished["eigenvalue-20"] == "inconclusive"
