"""The experiment runs end to end, is continued after a kill, and its claims can fail."""

import dataclasses

import numpy as np
import pytest

from experiments import fisher_explosion as experiment
from experiments.lib import rundir, trajectory
from experiments.lib.claims import judge
from experiments.lib.curves import by_seed


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """The numbers do not matter here."""


class Killed(Exception):
    """Stands for the end of the process."""


def test_smoke_end_to_end_through_a_kill(tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(experiment.PRESETS["smoke"], out=tmp_path / "whole", quiet=True)
    saved = []

    def save_and_die(path, **arrays):
        save_arrays(path, **arrays)
        saved.append(path)
        if len(saved) == 5:
            raise Killed

    save_arrays = trajectory.save_arrays
    killed = dataclasses.replace(config, out=tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(trajectory, "save_arrays", save_and_die)
        with pytest.raises(Killed):
            experiment.main(killed)
    assert not (killed.out / "summary.json").exists()
    experiment.main(killed)
    continued = rundir.read_json(killed.out / "summary.json")
    assert [c["name"] for c in continued["claims"]] == list(experiment.CLAIMS)
    assert all((killed.out / figure["file"]).exists() for figure in continued["figures"])
    assert "GP_x" in capsys.readouterr().out

    one = experiment.PRESETS["smoke"]
    alone = dataclasses.replace(one, out=config.out, quiet=True)
    monkeypatch.setattr(experiment, "draw_curves", lambda *_: None)
    monkeypatch.setattr(experiment, "draw_table", lambda *_: None)
    monkeypatch.setattr(experiment, "write_summary", lambda *_, **__: None)
    experiment.main(alone)
    for arm in ("sgd", "fp"):
        parts = sorted((config.out / arm / "records").glob("*.npz"))
        for part in parts:
            with np.load(part) as a, np.load(killed.out / arm / "records" / part.name) as b:
                assert all(np.array_equal(a[k], b[k]) for k in a.files)


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
