"""The contract of an experiment, on one that trains nothing."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest

from experiments.lib.lab import Lab, Options, changed
from experiments.lib.runs import rundir
from experiments.lib.runs.errors import BadNetwork
from experiments.lib.verdicts.report import Table


@dataclass(frozen=True)
class Inner:
    depth: int = 2
    width: int = 8


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    rate: float = 0.5
    inner: Inner = Inner()


def _lab(**presets):
    lab = Lab(Config, "Nobody 2021", **presets)

    @lab.run
    def run(config, out):
        rows = np.arange(config.seeds)[:, None] + np.linspace(0, config.rate, 3)
        epochs = np.tile(np.arange(3), (config.seeds, 1))
        return {"arm": {"epoch": epochs, "height": rows}}

    lab.claim("rises", "It rises.", lambda runs, config: np.ptp(runs["arm"]["height"], axis=1),
              low=0.4, source="margin",
              null=lambda runs, config: np.zeros(config.seeds))  # fmt: skip
    lab.claim("is-void", "It is at least itself.", lambda runs, config: np.ones(config.seeds),
              low=0.0, source="theory", paper="Somebody 2020",
              null=lambda runs, config: dict.fromkeys(config.seed_range(), 2.0))  # fmt: skip
    lab.curves("height", log=("height",))

    @lab.figure("Two panels.", columns=2)
    def panels(axes, runs, config):
        axes[0].plot(runs["arm"]["height"][0])
        axes[1].set(title=f"rate {config.rate}")

    @lab.table
    def heights(runs, config):
        return Table(("arm", "height"), [("arm", 1.25)])

    @lab.extra
    def more(runs, config):
        return {"seeds": config.seeds}

    return lab


def test_one_call_runs_judges_draws_and_reports(tmp_path, capsys):
    lab = _lab()
    lab.main(dataclasses.replace(lab.presets["cpu"], out=tmp_path, quiet=True))
    summary = rundir.read_json(tmp_path / "summary.json")
    keys = ("name", "verdict", "null", "source", "paper")
    assert [tuple(map(c.get, keys)) for c in summary["claims"]] == [
        ("rises", "reproduced", 0.0, "margin", "Nobody 2021"),
        ("is-void", "void", 2.0, "theory", "Somebody 2020"),
    ]  # fmt: skip
    assert [f["file"] for f in summary["figures"]] == ["training.png", "panels.png"]
    assert all((tmp_path / f["file"]).exists() for f in summary["figures"])
    assert summary["extra"] == {"seeds": 5}
    assert "1.25" in capsys.readouterr().out
    assert "1.25" in (tmp_path / "report.html").read_text()


def _refusing(error, height):
    """An experiment whose claim, figure and table do not take what it has run."""
    lab = Lab(Config, "Nobody 2021")
    heights = np.array([1.0, height])
    lab.run(lambda config, out: {"arm": {"height": heights}, "pair": (heights, [heights])})

    def refuse(*given):
        raise error

    lab.claim("rises", "It rises.", refuse, low=0.4, source="margin")
    lab.figure("Nothing.")(refuse)
    lab.table(refuse)
    lab.extra(refuse)
    return lab


def test_what_cannot_be_made_of_diverged_runs_is_left_out_in_one_line(tmp_path, capsys):
    lab = _refusing(np.linalg.LinAlgError("no convergence"), np.nan)
    lab.main(Config(out=tmp_path, seeds=2))
    said = capsys.readouterr()
    lines = [line for line in "".join(said).splitlines() if "left out" in line]
    assert len(lines) == 4
    assert all(line.endswith("finite: no convergence") for line in lines)
    summary = rundir.read_json(tmp_path / "summary.json")
    assert [claim["verdict"] for claim in summary["claims"]] == ["inconclusive"]
    assert summary["figures"] == []


@pytest.mark.parametrize(
    ("error", "height"),
    [
        (ValueError("a mistake"), 2.0),  # of runs that did not diverge
        (BadNetwork("not this one"), np.nan),  # said on purpose
        (OSError("no room"), np.nan),
    ],
)
def test_other_errors_are_raised(tmp_path, error, height):
    with pytest.raises(type(error), match=str(error)):
        _refusing(error, height).main(Config(out=tmp_path, seeds=2))


def test_a_ratio_to_nothing_has_no_verdict():
    lab = Lab(Config, "Nobody 2021")
    lab.claim("grows", "It grows.", lambda runs, config: runs["arm"][:, 1] / runs["arm"][:, 0],
              low=1.5, source="margin")  # fmt: skip
    for arm in ([[1.0, 2.0], [0.0, 1.0]], [[1.0, 2.0], [0.0, 0.0]]):
        (found,) = lab.judged({"arm": np.array(arm)}, Config(seeds=2))
        assert found.verdict == "inconclusive"


def test_presets_are_changes_to_the_default():
    lab = _lab(smoke={"rate": 0.1, "inner": {"width": 3}}, paper={"data": "mnist"})
    assert lab.presets["cpu"] == Config()
    assert lab.presets["smoke"] == Config(preset="smoke", rate=0.1, inner=Inner(2, 3))
    assert lab.presets["paper"] == Config(preset="paper", data="mnist")
    with pytest.raises(TypeError, match="unexpected keyword argument 'ratio'"):
        changed(Config(), {"ratio": 1})


def test_smoke_is_not_judged():
    lab = _lab(smoke={"seeds": 1})
    runs = lab._run(lab.presets["smoke"], None)
    assert [v.verdict for v in lab.judged(runs, lab.presets["smoke"])] == ["not judged"] * 2


def test_what_is_wrong_is_said(tmp_path):
    lab = _lab()
    for name in ("rises", "two words", "Capital"):
        with pytest.raises(ValueError, match=f"claim '{name}': a name is words joined"):
            lab.claim(name, "Again.", lambda runs, config: 0, low=0, source="sign")
    with pytest.raises(
        ValueError, match="source is one of paper, theory, sign, margin, seeds, not 'guess'"
    ):
        lab.claim("guessed", "It is.", lambda runs, config: 0, low=0, source="guess")
    with pytest.raises(ValueError, match="preset 'smok' is none of smoke, cpu, real and paper"):
        Lab(Config, "Nobody 2021", smok={})
    lab.claim(
        "flat", "All points.", lambda runs, config: runs["arm"]["height"], low=0, source="sign"
    )
    config = Config(out=tmp_path / "wrong", quiet=True)
    with pytest.raises(ValueError, match=r"claim 'flat' measures an array of shape \(5, 3\)"):
        lab.judged(lab._run(config, None), config)
    lab.curves("hight")
    with pytest.raises(KeyError, match="no record 'hight'; there are epoch, height"):
        lab.main(config)
    with pytest.raises(TypeError, match=r"no @lab\.run"):
        Lab(Config, "Nobody 2021").main(Config(out=tmp_path))
    with pytest.raises(BadNetwork, match="network of its own: leave out --network"):
        lab.main(Config(out=tmp_path, network="s2cnn"))
