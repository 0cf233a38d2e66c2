"""What a judged run leaves, and the folder it leaves it in."""

import json
from dataclasses import dataclass

import pytest

from experiments.lib.runs import paths, rundir
from experiments.lib.runs.errors import BadData, ConfigMismatch
from experiments.lib.runs.rundir import read_json, write_json
from experiments.lib.verdicts.claims import Claim, judge
from experiments.lib.verdicts.figures import figure
from experiments.lib.verdicts.summary import Figure, command, run_folder, table, write_summary
from experiments.registry import Experiment, Options

CLAIM = Claim(name="c", statement="S.", paper="P", low=1.0, high=2.0, reason="made up")


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    seeds: int = 3
    rates: tuple[float, ...] = (0.1, 0.2)


EXPERIMENT = Experiment(print, {"smoke": Config(preset="smoke")})


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


def test_a_finished_run_that_may_not_be_written_is_shown(tmp_path, capsys, monkeypatch):
    config = Config(preset="smoke", out=tmp_path)

    def show():
        with run_folder(config) as out:
            with figure(out / "a.png") as axes:
                axes.plot([0, 1])
            return write_summary(out, config, [judge(CLAIM, {0: 1.5})], [Figure("a.png", "A.")])

    whole = show()
    (tmp_path / ".lock").unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr(rundir.os, "access", lambda path, mode: False)
    monkeypatch.setattr(paths, "write_bytes", None)
    capsys.readouterr()
    assert show() == whole
    assert "reproduced" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    with run_folder(Config(out=tmp_path)) as out:
        (out / "seed_0").mkdir()
    with pytest.raises(ConfigMismatch), run_folder(Config(out=tmp_path, seeds=2)):
        pass


def test_a_run_that_left_nothing_does_not_block_the_corrected_command(tmp_path, monkeypatch):
    with pytest.raises(BadData), run_folder(Config(out=tmp_path)):
        raise BadData("too few examples")
    with monkeypatch.context() as patched:
        patched.setattr(rundir, "is_remote", lambda path: True)  # another may be at work there
        with pytest.raises(ConfigMismatch):
            rundir.check_config(tmp_path, {}, {})
    for _ in range(2):
        with run_folder(Config(out=tmp_path, seeds=2)):
            pass
    assert json.loads((tmp_path / "config.json").read_text())["config"]["seeds"] == 2
    assert len(json.loads((tmp_path / "env.json").read_text())["starts"]) == 3


def test_the_command_of_a_preset_is_short():
    assert command("x", EXPERIMENT.presets["smoke"]) == "python -m experiments x --preset smoke"
