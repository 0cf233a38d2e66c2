"""The experiment runs end to end, and its claims fail where no penalty helps."""

import dataclasses

import numpy as np
import pytest

from experiments import fisher_explosion as experiment
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
    assert all((tmp_path / figure["file"]).exists() for figure in summary["figures"])
    assert set(summary["extra"]["final_test_accuracy"]) == set(experiment.ARMS)
    assert "GP_x" in capsys.readouterr().out


def _runs(final, trace):
    epochs = np.tile(np.arange(0, 30, 10), (3, 1))
    noise = np.array([[-0.001], [0.0], [0.001]])
    return {
        arm: {
            "epoch": epochs,
            "test_accuracy": final[arm] + noise + 0 * epochs,
            "trace_fisher": trace[arm] * (1 + noise) + 0.0 * epochs,
        }
        for arm in experiment.ARMS
    }


TRACE = {"eta*": 40, "middle": 80, "baseline": 130, "GP_x": 70, "GP": 24, "FP": 15, "GP_r": 12}
FINAL = {"eta*": 0.74, "middle": 0.71, "baseline": 0.7, "GP_x": 0.78, "GP": 0.83, "FP": 0.88,
         "GP_r": 0.87}  # fmt: skip


def _verdicts(final, trace):
    found = experiment.numbers(_runs(final, trace), early_epochs=10)
    return {
        name: judge(claim, by_seed(range(3), found[name])).verdict
        for name, claim in experiment.CLAIMS.items()
    }


def test_verdicts_on_made_up_runs():
    assert set(_verdicts(FINAL, TRACE).values()) == {"reproduced"}
    same = dict.fromkeys(experiment.ARMS, 100)
    useless = FINAL | {"FP": 0.72, "GP_r": 0.72}
    failed = {
        k for k, v in _verdicts(useless, same | {"baseline": 101}).items() if v != "reproduced"
    }
    assert {"explosion", "fp-recovers", "fp-gains", "fp-prevents-explosion", "gp-between"} <= failed
