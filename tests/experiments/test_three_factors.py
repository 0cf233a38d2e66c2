"""Three factors: the smoke preset, resumed, and made-up pairs that must fail."""

import dataclasses

import numpy as np
import pytest

from experiments import three_factors as experiment
from experiments.lib.runs.rundir import read_json
from experiments.lib.verdicts.claims import judge
from experiments.three_factors import memorisation
from experiments.three_factors import pairs as of_pairs


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """The numbers hold at any optimisation of the programs."""


def test_the_smoke_preset_judges_all_claims_and_shows_a_finished_run(tmp_path, monkeypatch):
    config = dataclasses.replace(experiment.PRESETS["smoke"], out=tmp_path, quiet=True)
    experiment.main(config)
    summary = read_json(tmp_path / "summary.json")
    assert {c["name"] for c in summary["claims"]} == set(experiment.CLAIMS)
    assert all(c["measured"] is not None for c in summary["claims"])
    monkeypatch.setattr(of_pairs, "_train", None)  # a kept pair is not trained again
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
    numbers = of_pairs.measure(config, pairs)
    assert numbers["trace-falls-with-the-ratio"][100] == pytest.approx(-1)
    assert numbers["equal-ratio-equal-time"][100] == pytest.approx(0)
    claim = experiment.CLAIMS["sharpness-falls-with-the-ratio"]
    assert judge(claim, numbers["sharpness-falls-with-the-ratio"]).verdict == "not reproduced"


def test_pairs_that_do_not_reach_the_loss_leave_the_claims_open(made_up):
    config, pairs = made_up
    pairs[0.1, 10]["loss"] = np.ones(1)
    numbers = of_pairs.measure(config, pairs)
    claim = experiment.CLAIMS["trace-falls-with-the-ratio"]
    assert judge(claim, numbers["trace-falls-with-the-ratio"]).verdict == "inconclusive"


def test_a_level_is_met_between_two_records():
    rising, other = np.array([0.0, 0.4, 0.6]), np.array([1.0, 2.0, 4.0])
    assert memorisation.at(0.5, rising, other) == [pytest.approx(3.0)]
    assert np.isnan(memorisation.at(0.7, rising, other)).all()


def test_memorising_more_at_a_larger_ratio_is_refused():
    config = experiment.Config(seeds=1)
    fit, test = np.linspace(0, 1, 11)[None], np.linspace(0.5, 0.9, 11)[None]
    curves = {
        # The larger the ratio, the later it generalises, with the more of the labels memorised.
        (rate, size): {
            "noisy_fit": fit,
            "test_accuracy": test - rate / size,
            "epoch": size / rate * np.arange(11.0)[None],
        }
        for rate in (0.1, 0.2)
        for size in (10, 20)
    }
    numbers = memorisation.measure(config, curves)
    name = "memorisation-at-equal-accuracy-falls-with-the-ratio"
    assert numbers[name][100] == pytest.approx(1)
    assert judge(memorisation.CLAIMS[name], numbers[name]).verdict == "not reproduced"
    name = "accuracy-at-equal-memorisation-rises-with-the-ratio"
    assert numbers[name][100] == pytest.approx(-1)
    assert numbers["equal-ratio-equal-memorisation"][100] == pytest.approx(0)
