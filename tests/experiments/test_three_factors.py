"""Three factors: the smoke preset, resumed, and made-up pairs that must fail."""

import dataclasses

import numpy as np
import pytest

from experiments import three_factors as experiment
from experiments.lib.claims import judge
from experiments.lib.rundir import read_json


def test_the_smoke_preset_judges_all_claims_and_shows_a_finished_run(tmp_path, monkeypatch):
    config = dataclasses.replace(experiment.PRESETS["smoke"], out=tmp_path, quiet=True)
    experiment.main(config)
    summary = read_json(tmp_path / "summary.json")
    assert {c["name"] for c in summary["claims"]} == set(experiment.CLAIMS)
    assert all(c["measured"] is not None for c in summary["claims"])
    monkeypatch.setattr(experiment, "_train", None)  # a kept pair is not trained again
    experiment.main(config)
    assert read_json(tmp_path / "summary.json")["claims"] == summary["claims"]


@pytest.fixture
def made_up():
    config = experiment.Config(seeds=1, rates=(0.1, 0.2), batch_sizes=(10, 20))
    ratios = {(r, s): r / s for s in config.batch_sizes for r in config.rates}
    pairs = {
        pair: {
            "loss": np.zeros(1),
            "epochs": np.array([1 / ratio]),
            "trace": np.array([1 / ratio]),
            "sharpness": np.array([ratio]),
            "test_accuracy": np.array([ratio]),
        }
        for pair, ratio in ratios.items()
    }
    return config, pairs


def test_a_sharpness_that_rises_with_the_ratio_is_refused(made_up):
    config, pairs = made_up
    numbers = experiment.measure(config, pairs)
    assert numbers["trace-falls-with-the-ratio"][100] == pytest.approx(-1)
    assert numbers["equal-ratio-equal-time"][100] == pytest.approx(0)
    claim = experiment.CLAIMS["sharpness-falls-with-the-ratio"]
    assert judge(claim, numbers["sharpness-falls-with-the-ratio"]).verdict == "not reproduced"


def test_pairs_that_do_not_reach_the_loss_leave_the_claims_open(made_up):
    config, pairs = made_up
    pairs[0.1, 10]["loss"] = np.ones(1)
    numbers = experiment.measure(config, pairs)
    claim = experiment.CLAIMS["trace-falls-with-the-ratio"]
    assert judge(claim, numbers["trace-falls-with-the-ratio"]).verdict == "inconclusive"
