"""The experiment runs end to end, and its claims fail on runs without a second descent."""

import dataclasses

import numpy as np
import pytest

from experiments import epoch_double_descent as experiment
from experiments.lib.runs import rundir
from experiments.lib.verdicts.claims import judge
from experiments.lib.verdicts.statistics import by_seed


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """The numbers do not matter here."""


def test_smoke_end_to_end(tmp_path, capsys):
    config = dataclasses.replace(experiment.PRESETS["smoke"], out=tmp_path, quiet=True)
    experiment.main(config)
    summary = rundir.read_json(tmp_path / "summary.json")
    assert [c["name"] for c in summary["claims"]] == list(experiment.CLAIMS)
    assert all(np.isfinite(c["measured"]) for c in summary["claims"])
    assert (tmp_path / "epochs.png").exists()
    assert (tmp_path / "report.html").exists()
    assert "second-descent" in capsys.readouterr().out

    # A second start shows the finished run without training again.
    before = (tmp_path / "sgd" / "records").stat().st_mtime_ns
    experiment.main(config)
    assert (tmp_path / "sgd" / "records").stat().st_mtime_ns == before
    again = rundir.read_json(tmp_path / "summary.json")
    assert again["claims"] == summary["claims"]


def _records(drift_loss, drift_trace):
    points = np.linspace(0.0, 1.0, 11)

    def phase(loss, trace):
        shape = (3, 11)
        return {
            "test_loss": np.broadcast_to(loss, shape),
            "trace_fisher": np.broadcast_to(trace, shape),
            "sharpness": np.broadcast_to(trace / 30, shape),
            "noisy_fit": np.ones(shape),
            "norm": np.ones(shape),
        }

    return {
        "fit": phase(1.0 + 0.3 * points, 500 + 0 * points),
        "drift": phase(drift_loss(points), drift_trace(points)),
        "control": phase(1.3 + 0.1 * points, 500 + 10 * points),
    }


def _verdicts(records):
    found = experiment.numbers(records)
    return {
        name: judge(claim, by_seed(range(3), found[name])).verdict
        for name, claim in experiment.CLAIMS.items()
    }


def test_verdicts_on_made_up_runs():
    good = _verdicts(_records(lambda t: 1.3 - 0.6 * t, lambda t: 500 - 400 * t))
    assert set(good.values()) == {"reproduced"}
    bad = _verdicts(_records(lambda t: 1.3 + 0.1 * t, lambda t: 500 - 100 * t))
    failed = {name for name, verdict in bad.items() if verdict == "not reproduced"}
    assert failed == {"second-descent", "fisher-falls", "sharpness-falls", "fisher-goes-with-loss"}
