"""Shares: each does its own pieces, the last one judges, and none gets in another's way."""

import importlib
import os
import signal
import time
from dataclasses import dataclass, field

import pytest

from experiments.__main__ import main as command
from experiments.lib.runs import distributed, rundir, shares
from experiments.lib.runs.errors import BadShare, RunLocked
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.runs.rundir import read_json, write_json
from experiments.lib.runs.shares import ShareDone, shared
from experiments.lib.verdicts.claims import Claim, judge
from experiments.lib.verdicts.summary import run_folder, write_summary
from experiments.registry import Experiment, Options

NAME = "tests.experiments.lib.runs.test_shares"
PIECES = 5
PATIENCE = 120  # seconds until a process is taken to hang
CLAIM = Claim(name="counts", statement="Counts.", paper="None", low=0.0, reason="It counts.")


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Five numbers, each in a file."""

    pause: float = field(default=0.0, metadata={"identity": False})
    """Seconds before each number, for others to disturb this process meanwhile."""


nap = time.sleep


def piece(config, out, number):
    def make():
        nap(config.pause)
        return {"value": [number]}

    return int(kept_arrays(out / f"{number}.npz", make)["value"][0])


def main(config):
    with run_folder(config) as out:
        work = {n: lambda n=n: piece(config, out, n) for n in range(PIECES)}
        found = shared(config, work)
        write_summary(out, config, [judge(CLAIM, {0: sum(found.values())})], extra={"all": found})


EXPERIMENT = Experiment(main=main, presets={"smoke": Config()}, shares=True)


def run(folder, *options):
    return command([NAME, "--preset", "smoke", "--quiet", "--out", str(folder), *options])


def numbers(folder):
    return sorted(path.name for path in folder.glob("*.npz"))


def without_clock(folder):
    """The summary, but for when and how it was made."""
    return {k: v for k, v in read_json(folder / "summary.json").items() if k != "seconds"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == 0
    return folder


def test_each_share_does_its_own_and_the_last_one_judges(whole, tmp_path):
    assert run(tmp_path, "--share", "3/3") == 0
    assert numbers(tmp_path) == ["2.npz"]
    assert run(tmp_path, "--share", "1/3") == 0
    assert numbers(tmp_path) == ["0.npz", "2.npz", "3.npz"]
    assert not (tmp_path / "summary.json").exists()
    assert run(tmp_path, "--share", "2/3") == 0
    assert without_clock(tmp_path) == without_clock(whole)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {path.name for path in whole.iterdir()} | {".shares"}


def test_a_run_without_a_share_does_what_is_left_and_judges(whole, tmp_path):
    assert run(tmp_path, "--share", "2/4") == 0
    made = (tmp_path / "1.npz").stat().st_mtime_ns
    assert run(tmp_path) == 0
    assert without_clock(tmp_path) == without_clock(whole)
    assert (tmp_path / "1.npz").stat().st_mtime_ns == made


def test_more_shares_than_pieces(whole, tmp_path):
    for index in range(PIECES + 2, 0, -1):
        assert run(tmp_path, "--share", f"{index}/{PIECES + 2}") == 0
    assert without_clock(tmp_path) == without_clock(whole)


def test_the_time_of_a_judged_run_is_that_of_all_its_shares(tmp_path):
    assert run(tmp_path, "--share", "1/2", "--pause", "0.02") == 0
    assert shares.seconds(tmp_path) >= 3 * 0.02
    assert shares.seconds(tmp_path) < 3  # a stall of a busy machine is shorter
    write_json(tmp_path / ".shares" / "piece_0" / "done.json", {"seconds": 1e6})
    assert run(tmp_path, "--share", "2/2") == 0
    assert read_json(tmp_path / "summary.json")["seconds"] > 1e6


def test_a_killed_share_goes_on_where_it_was(command_line, whole, tmp_path):
    options = [NAME, "--preset", "smoke", "--quiet", "--out", tmp_path, "--share", "1/2"]
    killed = command_line(*options, "--pause", 1)
    deadline = time.monotonic() + PATIENCE
    while numbers(tmp_path) != ["0.npz"]:
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # The same share, and the whole run, are refused while it is at work; another one is not.
    with run_folder(Config(preset="smoke", out=tmp_path, share="2/2")):
        pass
    for share in ("1/2", None):
        with pytest.raises(RunLocked, match="another process is running in"):
            main(Config(preset="smoke", out=tmp_path, share=share))
    killed.kill()
    killed.communicate(timeout=PATIENCE)
    assert killed.returncode == -signal.SIGKILL
    made = (tmp_path / "0.npz").stat().st_mtime_ns
    assert run(tmp_path, "--share", "1/2") == 0
    assert numbers(tmp_path) == ["0.npz", "2.npz", "4.npz"]
    assert (tmp_path / "0.npz").stat().st_mtime_ns == made
    assert run(tmp_path, "--share", "2/2") == 0
    assert without_clock(tmp_path) == without_clock(whole)


def test_a_share_that_is_told_to_stop_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        module = importlib.import_module(NAME)  # that of the command line
        patch.setattr(module, "nap", lambda _: os.kill(os.getpid(), signal.SIGTERM))
        assert run(tmp_path, "--share", "1/1") == distributed.PREEMPTED
    assert "the same command continues" in capsys.readouterr().err
    assert numbers(tmp_path) == []
    assert run(tmp_path, "--share", "1/1") == 0
    assert len(numbers(tmp_path)) == PIECES


def test_a_piece_at_work_is_refused_to_shares_of_another_count(tmp_path):
    config = Config(preset="smoke", out=tmp_path, share="1/3")
    with rundir.locked(tmp_path / ".shares" / "piece_3"), pytest.raises(RunLocked, match="piece_3"):
        main(config)


def test_the_last_share_leaves_the_judgement_to_one_that_is_at_it(tmp_path):
    """It has the folder, so this one is not needed; nothing is wrong."""

    def judged_by_another(config):
        if config.share is None:
            raise RunLocked("another process is running")
        raise ShareDone(0, 2)

    shares.run(judged_by_another, Config(out=tmp_path, share="1/2"))


@pytest.mark.parametrize("text", ["3/2", "0/2", "1", "a/b", "1/2/3", "-1/2", "1/0", "1.5/2", ""])
def test_a_share_that_is_none_gets_one_line(tmp_path, capsys, text):
    assert run(tmp_path, f"--share={text}") == 2
    error = capsys.readouterr().err
    assert error == f"--share takes I/N with I from 1 to N, such as 1/3; got {text!r}\n"
    with pytest.raises(BadShare):
        shares.parse(text)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("random_labels", ["--share=1/2"], "random_labels is one piece of work and takes no "),
        (
            "sharpest_directions",
            ["--distributed"],
            "does not share its batches and takes no --dist",
        ),
        (NAME, ["--distributed"], "takes no --distributed; spread it with --share I/N"),
        ("flat_optimisers", ["--distributed", "--share=1/2"], "leave out --distributed"),
    ],
)
def test_no_experiment_is_spread_in_a_way_it_does_not_know(capsys, name, options, message):
    assert command([name, "--preset", "smoke", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
