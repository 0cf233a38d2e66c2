"""`kill -9` with real processes: the same metrics and parameters, bit for bit."""

import random
import re
import signal
import time

import jax
import numpy as np
import pytest

from experiments.lib.runs.metrics import read_metrics
from experiments.lib.runs.rundir import read_json
from experiments.lib.training.load import load_checkpoint

NAME = "tests.experiments.throwaway"
PATIENCE = 240  # seconds until a process is taken to hang


def finish(process):
    output = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return output


def wait_for_row(folder, process, step):
    """Waits until the run has written a row at or beyond a step."""
    deadline = time.monotonic() + PATIENCE
    while not any(row["step"] >= step for row in read_metrics(folder)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def starts(folder):
    """How often the run has been started and has come as far as its environment."""
    return len((read_json(folder / "env.json") or {"starts": []})["starts"])


def assert_same(folder, other):
    rows = read_metrics(folder, clock=False)
    assert rows == read_metrics(other, clock=False)
    assert rows[-1]["step"] == 16
    a, b = load_checkpoint(folder), load_checkpoint(other)
    assert a.step == b.step == 16
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    jax.tree.map(np.testing.assert_array_equal, a.model_state, b.model_state)


@pytest.fixture(scope="module")
def whole(command_line, tmp_path_factory):
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(command_line(NAME, "--out", folder))
    return folder


def test_a_run_killed_three_times_ends_bitwise_the_same(command_line, whole, tmp_path):
    folder, delays = tmp_path / "run", random.Random(0)
    for row in (0, 5, 9):
        process = command_line(NAME, "--out", folder, "--pause", 0.3)
        wait_for_row(folder, process, row)
        time.sleep(delays.uniform(0, 0.6))  # in an update, a measurement or a save
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert read_json(folder / "status.json")["status"] == "running"

    _, messages = finish(command_line(NAME, "--out", folder))
    assert re.search(r"continuing from step (8|12)\b", messages)
    assert_same(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("step", range(0, 17, 2))
def test_a_kill_at_any_step(command_line, whole, tmp_path, step):
    killed = command_line(NAME, "--out", tmp_path, "--kill-at", step)
    killed.communicate(timeout=PATIENCE)
    assert killed.returncode == -signal.SIGKILL
    finish(command_line(NAME, "--out", tmp_path))
    assert_same(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thirty_kills_at_random_moments(command_line, whole, tmp_path):
    """Every third time at any moment since it was started, else once the run is under way.

    A run that is complete before the last kill is followed by another one.
    """
    delays, runs = random.Random(0), [tmp_path / "0"]
    for number in range(30):
        before = starts(runs[-1])
        process = command_line(NAME, "--out", runs[-1], "--pause", 0.3)
        if number % 3 == 0:
            time.sleep(delays.uniform(0, 8))
        else:
            deadline = time.monotonic() + PATIENCE
            while starts(runs[-1]) == before and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(delays.uniform(0, 6))
        process.kill()
        process.communicate()
        if (read_json(runs[-1] / "status.json") or {}).get("status") == "complete":
            runs.append(tmp_path / str(len(runs)))
    if not runs[-1].exists():
        runs.pop()
    for folder in runs:
        finish(command_line(NAME, "--out", folder))
        assert_same(folder, whole)
    print(f"{len(runs)} runs, started {[starts(folder) for folder in runs]} times")
