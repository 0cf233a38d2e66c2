"""The experiment runs end to end, and its claims fail where nothing is slowed."""

import dataclasses

import numpy as np
import pytest

from experiments import fisher_noisy_labels as experiment
from experiments.lib.runs import rundir
from experiments.lib.verdicts.claims import judge
from experiments.lib.verdicts.statistics import by_seed

NOISES = (0.25, 0.5)


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """The numbers do not matter here."""


def test_smoke_end_to_end(tmp_path, capsys):
    config = dataclasses.replace(experiment.PRESETS["smoke"], out=tmp_path, quiet=True)
    experiment.main(config)
    summary = rundir.read_json(tmp_path / "summary.json")
    assert [c["name"] for c in summary["claims"]] == list(experiment.claims(NOISES))
    assert all(np.isfinite(c["measured"]) for c in summary["claims"])
    assert (tmp_path / "labels.png").exists()
    assert "best epoch" in capsys.readouterr().out


def _records(slow, final, noisy):
    epochs = np.tile(np.arange(0, 100, 5), (3, 1))
    time = epochs / 100
    return {
        "epoch": epochs,
        "clean_fit": np.minimum(1.0, 5 * time),
        "noisy_fit": np.minimum(noisy, np.maximum(0, (time - 0.1) * 4 / slow)),
        "test_accuracy": np.full(epochs.shape, final),
        "validation_accuracy": np.sin(3 * time),
        "half_accuracy": np.full(epochs.shape, final),
    }


def _verdicts(arms):
    runs = {(arm, noise): _records(*arms[arm]) for arm in experiment.ARMS for noise in NOISES}
    values = experiment.numbers(runs, NOISES)
    return {
        name: judge(claim, by_seed(range(3), values[name])).verdict
        for name, claim in experiment.claims(NOISES).items()
    }


GOOD = {
    "sgd": (1, 0.70, 1.0),
    "mixup": (1, 0.74, 1.0),
    "gp_x": (1, 0.78, 1.0),
    "fp": (9, 0.88, 0.3),
    "gp_r": (9, 0.87, 0.3),
}


def test_verdicts_on_made_up_runs():
    assert set(_verdicts(GOOD).values()) == {"reproduced"}
    useless = _verdicts(GOOD | {"fp": GOOD["sgd"]})
    failed = {name.rpartition("-")[0] for name, v in useless.items() if v == "not reproduced"}
    assert failed == {
        "fp-final", "fp-over-mixup", "fp-over-gp-x", "fp-memorises-less", "fp-slows-noisy",
    }  # fmt: skip
