"""`python -m experiments`: the list, the help, the options, the exit statuses."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from experiments import __main__ as command
from experiments import registry
from experiments.lib.runs import errors
from tests.experiments import throwaway

NAME = "tests.experiments.throwaway"


@pytest.fixture
def given(monkeypatch):
    """The configuration the experiment's main was called with."""
    calls = []
    spy = throwaway.EXPERIMENT._replace(main=calls.append)
    monkeypatch.setattr(throwaway, "EXPERIMENT", spy)
    monkeypatch.setattr(registry, "load", lambda name: (spy, throwaway.__doc__))
    return calls


def test_the_list_has_every_summary_and_imports_nothing_heavy():
    code = (
        "import sys; from experiments.__main__ import main; main(['--list']); "
        "heavy = {'jax', 'flax', 'optax', 'numpy', 'tensorflow_datasets', 'matplotlib', 'tyro'}; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, summary in registry.summaries().items():
        assert f"{name} " in done.stdout
        assert summary
        assert summary in done.stdout


def test_help_shows_the_documentation_and_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        command.main([NAME, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for expected in ("It does nothing at all", "--preset", "--run.steps"):
        assert expected in text
    assert "Stop after this many updates" in text


def test_options_change_single_values_of_the_preset(given):
    assert command.main([NAME, "--preset", "smoke", "--run.steps", "5", "--seeds=3"]) == 0
    (config,) = given
    assert config.run.steps == 5
    assert config.run.batch_size == 8
    assert list(config.seed_range()) == [100, 101, 102]
    assert str(config.out) == "runs/throwaway/smoke"
    assert config.preset == "smoke"


def test_the_cpu_preset_is_the_default(given):
    command.main([NAME, "--out", "here"])
    assert (given[0].preset, given[0].seeds, str(given[0].out)) == ("cpu", 2, "here")


def test_an_absent_preset_names_those_there_are(given, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main([NAME, "--preset=paper"])
    assert (caught.value.code, given) == (2, [])
    assert "has no preset 'paper'; it has smoke, cpu" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--seeds", "0"], ["--first-seed", "-1"]])
def test_there_are_no_such_seeds(given, capsys, options):
    assert command.main([NAME, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--seeds is at least 1 and --first-seed at least 0, got")
    assert not given


def test_an_unknown_experiment_gets_the_list(capsys):
    assert command.main(["quickstrat"]) == 2
    assert "no experiment 'quickstrat'; there are: " in capsys.readouterr().err
    assert command.main(["json"]) == 2
    assert "module json has no EXPERIMENT = Experiment(...)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.ExperimentError("do this"), 1),
        (errors.Preempted("do this"), 75),
        (errors.Damaged("do this"), 1),
    ],
)
def test_expected_errors_are_one_line_and_a_status(monkeypatch, capsys, error, status):
    def fail(config):
        del config
        raise error

    failing = throwaway.EXPERIMENT._replace(main=fail)
    monkeypatch.setattr(throwaway, "EXPERIMENT", failing)
    assert command.main([NAME]) == status
    assert capsys.readouterr().err == f"{type(error).__name__}: do this\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space"), "DiskFull: here: No space; make room and "),
        (OSError(errno.EROFS, "Read-only", "x/a.json"), "NotWritable: x/a.json: Read-only; change"),
        (PermissionError(errno.EACCES, "Denied", "x"), "NotWritable: x: Denied; change its perm"),
    ],
)
def test_what_the_disk_refuses_is_one_line(monkeypatch, capsys, error, line):
    def fail(config):
        del config
        raise error

    monkeypatch.setattr(throwaway, "EXPERIMENT", throwaway.EXPERIMENT._replace(main=fail))
    assert command.main([NAME, "--out", "here"]) == 1
    text = capsys.readouterr().err
    assert text.startswith(line)
    assert text.count("\n") == 1


def test_a_signal_outside_of_training_is_75(monkeypatch):
    """In drawing, say; the process would be gone at once."""

    class Gone(BaseException):
        pass

    def leave(status):
        raise Gone(status)

    def draw(config):
        del config
        os.kill(os.getpid(), signal.SIGTERM)
        signal.getsignal(signal.SIGTERM)  # handlers run between two operations of Python
        pytest.fail("the signal should have ended the process")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(throwaway, "EXPERIMENT", throwaway.EXPERIMENT._replace(main=draw))
    with pytest.raises(Gone) as caught:
        command.main([NAME])
    assert caught.value.args == (75,)
    assert signal.getsignal(signal.SIGTERM) is before
