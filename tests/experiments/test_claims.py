"""Verdicts are decided by the numbers: made-up ones get what they deserve."""

import math
from dataclasses import dataclass

import pytest

from experiments.lib.claims import Claim, Figure, command, judge, run_folder, table, write_summary
from experiments.lib.errors import ConfigMismatch
from experiments.lib.figures import figure
from experiments.lib.rundir import read_json, write_json
from experiments.registry import ExperimentConfig

CLAIM = Claim(name="c", statement="S.", paper="P", low=1.0, high=2.0, reason="made up")


@dataclass(frozen=True, kw_only=True)
class Config(ExperimentConfig):
    seeds: int = 3
    rates: tuple[float, ...] = (0.1, 0.2)


PRESETS = {"smoke": Config(preset="smoke")}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({0: 1.5, 1: 1.6, 2: 1.4}, "reproduced"),
        ({0: 0.5, 1: 0.6, 2: 0.4}, "not reproduced"),
        ({0: 2.5, 1: 2.6, 2: 2.4}, "not reproduced"),
        ({0: 1.0, 1: 1.1, 2: 0.9}, "inconclusive"),  # the mean is on the bound
        ({0: 0.1, 1: 4.0, 2: 0.4}, "inconclusive"),  # the mean is inside, its error is not
        ({0: 1.5, 1: None, 2: 1.4}, "inconclusive"),
        ({0: 1.5, 1: math.nan, 2: 1.4}, "inconclusive"),
        ({0: math.inf, 1: 1.5, 2: 1.4}, "inconclusive"),
        ({}, "inconclusive"),
        ({0: 1.5}, "reproduced"),
        ({0: 2.5}, "not reproduced"),
    ],
)
def test_a_verdict_follows_from_the_numbers(values, verdict):
    assert judge(CLAIM, values).verdict == verdict


@pytest.mark.parametrize("bound", ["low", "high"])
@pytest.mark.parametrize(
    ("errors_inside", "verdict"),
    [
        (2.2, "reproduced"),
        (1.8, "inconclusive"),  # 2.2 standard errors if these were taken of n, not of n - 1
        (1.5, "inconclusive"),
        (-1.8, "inconclusive"),
        (-2.2, "not reproduced"),
    ],
)
def test_two_standard_errors_decide(bound, errors_inside, verdict):
    """Three seeds whose mean lies so many standard errors inside the only bound."""
    claim = Claim(name="c", statement="S.", paper="P", reason="made up", **{bound: 5.0})
    error = 0.1
    mean = 5.0 + (1 if bound == "low" else -1) * errors_inside * error
    spread = error * math.sqrt(3)  # the standard deviation, with n - 1, of -spread, 0, spread
    found = judge(claim, {0: mean - spread, 1: mean, 2: mean + spread})
    assert found.standard_error == pytest.approx(error)
    assert found.verdict == verdict


def test_a_single_seed_has_no_standard_error():
    assert judge(CLAIM, {7: 1.5}).standard_error is None


def test_the_standard_error_is_that_of_the_mean():
    found = judge(CLAIM, {0: 1.0, 1: 2.0, 2: 3.0})
    assert found.mean == 2.0
    assert found.standard_error == pytest.approx(1 / math.sqrt(3))


@pytest.mark.parametrize("bounds", [{}, {"low": 2.0, "high": 1.0}])
def test_a_claim_must_accept_some_and_refuse_some(bounds):
    with pytest.raises(ValueError, match="accepts"):
        Claim(name="c", statement="S.", paper="P", reason="r", **bounds)


def test_the_summary_holds_claims_figures_and_command(tmp_path, capsys):
    config = Config(preset="smoke", out=tmp_path / "run", rates=(0.5, 1.0))
    with run_folder(config) as out:
        with figure(out / "a.png") as axes:
            axes.plot([0, 1])
        write_summary(out, config, [judge(CLAIM, {0: 1.5, 1: 9.0})], [Figure("a.png", "A.")])
    summary = read_json(out / "summary.json")
    assert summary["claims"][0]["verdict"] == "inconclusive"
    assert summary["claims"][0]["accepted"] == [1.0, 2.0]
    assert summary["figures"] == [{"file": "a.png", "caption": "A."}]
    assert summary["command"].endswith("--preset smoke --rates 0.5 1.0")
    assert "inconclusive" in capsys.readouterr().out
    assert "data:image/png" in (out / "report.html").read_text()
    assert table(summary).rows[0][2] == "1 to 2"
    # A finished run that is shown again took as long as it did.
    write_json(out / "summary.json", summary | {"seconds": 1e6})
    assert write_summary(out, config, [judge(CLAIM, {0: 1.5})])["seconds"] == 1e6


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    with run_folder(Config(out=tmp_path)):
        pass
    with pytest.raises(ConfigMismatch), run_folder(Config(out=tmp_path, seeds=2)):
        pass


def test_the_command_of_a_preset_is_short():
    assert command("x", PRESETS["smoke"]) == "python -m experiments x --preset smoke"
