"""Runs of several processes: the numbers of one process, through kills, a full disk and damage."""

import re
import signal
import time

import jax
import numpy as np
import pytest

from experiments.lib.runs import distributed
from experiments.lib.runs.metrics import read_metrics
from experiments.lib.runs.rundir import read_json
from experiments.lib.training.load import load_checkpoint
from tests.parallel.processes import finish, free_port, start
from tests.parallel.training import RECORDS

PATIENCE = 240  # seconds until a process is taken to hang
HEARTBEAT = 10  # seconds; the shortest that a busy machine does not mistake for a death

# A dozen starts of processes, on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def launch(folder, *arguments, processes=1, devices=2):
    """Starts the run of `training.py` as one process or several, with so many devices in each."""
    env = {"JAX_NUM_CPU_DEVICES": str(devices)}
    own = ["-m", "experiments", "tests.parallel.training", "--out", folder, *arguments]
    joined = []
    if processes > 1:
        joined = ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}"]
        joined += ["--processes", processes, "--heartbeat", HEARTBEAT, "--join-timeout", 60]
    return [
        start(own + joined + (["--process", i] if joined else []), env=env)
        for i in range(processes)
    ]


def starts(folder):
    """How often the run has been started; by then it has cut off the rows it does again."""
    return len((read_json(folder / "env.json") or {"starts": []})["starts"])


def wait_for_row(folder, processes, step, start=1):
    """Waits until the run, started for the so-manieth time, has a row at or beyond a step."""
    deadline, rows = time.monotonic() + PATIENCE, folder / "sgd"
    while starts(folder) < start or not any(row["step"] >= step for row in read_metrics(rows)):
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(processes):
    """The exit statuses and outputs, each process given its time."""
    outputs = [p.communicate(timeout=PATIENCE)[0] for p in processes]
    return [p.returncode for p in processes], outputs


def assert_same(folder, other, tolerance):
    """The same rows and final params, up to a relative difference."""
    rows, others = (read_metrics(f / "sgd", clock=False) for f in (folder, other))
    assert [row["step"] for row in rows] == list(range(RECORDS))
    for row, want in zip(rows, others, strict=True):
        numbers = {k: v for k, v in want.items() if k != "event"}
        for name, values in numbers.items():
            np.testing.assert_allclose(row[name], values, rtol=tolerance, err_msg=name)
    a, b = (load_checkpoint(f / "sgd", step=RECORDS) for f in (folder, other))

    def close(x, y):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.abs(y).max())

    jax.tree.map(close, a.params, b.params)


def assert_stopped_with_the_other(status, output):
    """Because it missed the other's heartbeat, lost its connection, or the run was complete."""
    reasons = "stopped sending heartbeats|JAX distributed service detected fatal errors"
    reasons += "|process . of 2 ends with exit status 1"
    # Seen once, with JAX 0.12: the library under the collectives aborts the process.
    reasons += "|enforce fail at .*gloo"
    assert status == 0 or re.search(reasons, output), output
    assert status not in (distributed.PREEMPTED, -signal.SIGKILL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of one process on one device that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(launch(folder, devices=1), PATIENCE)
    return folder


# 1e-6: float32 sums over devices in another order, through 72 smooth updates.
TOLERANCE = 1e-6


def test_killed_stopped_out_of_room_damaged_and_resumed_by_one(whole, tmp_path):
    folder = tmp_path / "run"

    # Two processes; one dies without a word, and the other stops with an error that names it.
    both = launch(folder, "--pause", 0.5, processes=2)
    wait_for_row(folder, both, 3)
    both[1].kill()
    killed_at = time.monotonic()
    statuses, outputs = ended(both)
    # The heartbeat is missed once, and noticed by the next poll; twice that on a busy machine.
    assert time.monotonic() - killed_at < 4 * HEARTBEAT
    assert statuses[1] == -signal.SIGKILL
    assert_stopped_with_the_other(statuses[0], outputs[0])

    # Two again, and the disk is full: one line from both, no waiting for each other.
    statuses, outputs = ended(launch(folder, "--full-at", 7, processes=2))
    assert statuses == [1, 1], outputs
    for text in outputs:
        assert re.search(r"CheckpointNotWritten: .* last good one is \S*/6; make room", text), text
        assert "Traceback" not in text

    # Two again; a SIGTERM that reaches one ends both, the state saved.
    both = launch(folder, "--pause", 0.5, processes=2)
    wait_for_row(folder, both, 8, start=3)
    both[1].terminate()
    statuses, outputs = ended(both)
    assert statuses == [distributed.PREEMPTED] * 2, outputs
    assert all("Preempted" in text and "Traceback" not in text for text in outputs)

    # The newest checkpoint is damaged; one process takes the last good one and goes on to the end.
    checkpoints = folder / "sgd" / "checkpoints"
    newest, before = sorted(checkpoints.iterdir(), key=lambda p: -int(p.name))[:2]
    assert 8 <= int(newest.name) < RECORDS
    for path in newest.glob("state/**/d/*"):
        path.write_bytes(path.read_bytes()[:100])
    [output] = finish(launch(folder, devices=1), PATIENCE)
    assert re.search(f"checkpoint {newest} is damaged .* continues from {before}", output)
    assert_same(folder, whole, TOLERANCE)


@pytest.mark.slow
def test_no_room_for_the_first_checkpoint(tmp_path):
    statuses, outputs = ended(launch(tmp_path / "run", "--full-at", 1, processes=2))
    assert statuses == [1, 1], outputs
    assert all("CheckpointNotWritten" in t and "there is none before it" in t for t in outputs)
