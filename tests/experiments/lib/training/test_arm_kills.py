"""Kills of a convolutional run of the training engine, by SIGKILL, at random moments."""

import random
import signal
import time

import numpy as np
import pytest

from experiments.lib.runs.kept import load_arrays
from experiments.lib.runs.metrics import read_metrics
from experiments.lib.runs.rundir import read_json
from tests.parallel.processes import free_port

NAME = "tests.experiments.arm"
PATIENCE = 900  # seconds until a process is taken to hang
HEARTBEAT = 10  # seconds; the shortest that a busy machine does not mistake for a death

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def launch(command_line, tmp_path_factory):
    """Starts the run as one process, or as two with a device each; compiled once for all."""

    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_NUM_CPU_DEVICES": "1",
    }

    def start(folder, processes=1):
        own = [NAME, "--out", folder, "--quiet", "--pause", 0.2]
        if processes == 1:
            return [command_line(*own, **cache)]
        own += ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}"]
        own += ["--processes", processes, "--heartbeat", HEARTBEAT, "--process"]
        return [command_line(*own, i, **cache) for i in range(processes)]

    return start


def finish(processes):
    for process in processes:
        output = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, output


@pytest.fixture(scope="module")
def whole(launch, tmp_path_factory):
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(launch(folder))
    return folder


def starts(folder):
    """How often the run has been started and has come as far as its environment."""
    return len((read_json(folder / "env.json") or {"starts": []})["starts"])


def killed(launch, tmp_path, kills, processes=1):
    """The folders of runs that were killed so often together, and are finished then.

    Every third time at any moment since the start, else at any moment of the run. A run that is
    complete before its kill is followed by another one.
    """
    moments, runs, cuts = random.Random(0), [tmp_path / "0"], []
    for number in range(kills):
        folder = runs[-1]
        before = starts(folder)
        at_work = launch(folder, processes)
        if number % 3 == 0:
            time.sleep(moments.uniform(0, 10))
        else:
            deadline = time.monotonic() + PATIENCE
            while starts(folder) == before and at_work[0].poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(moments.uniform(0, 12))
        victim = at_work[number % processes]
        victim.kill()
        victim.communicate()
        cuts.append(victim.returncode == -signal.SIGKILL)
        for process in at_work:  # the others miss its heartbeat
            process.communicate(timeout=PATIENCE)
        if (folder / "ends.npz").exists():
            runs.append(tmp_path / str(len(runs)))
    runs = [folder for folder in runs if folder.exists()]
    for folder in runs:
        finish(launch(folder, processes))
    print(f"{sum(cuts)} of {kills} killed; started {[starts(folder) for folder in runs]} times")
    return runs


def test_thirty_kills_leave_every_bit(launch, whole, tmp_path):
    for folder in killed(launch, tmp_path, 30):
        found, wanted = load_arrays(folder / "ends.npz"), load_arrays(whole / "ends.npz")
        assert found.keys() == wanted.keys()
        for name, values in wanted.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)
        rows, others = (read_metrics(f / "sgd", clock=False) for f in (folder, whole))
        assert rows == others
        assert len(rows) == 13


def test_two_processes_end_where_one_does(launch, whole, tmp_path):
    """Also where either of them is killed, eight times in all."""
    for folder in killed(launch, tmp_path, 8, processes=2):
        found, wanted = load_arrays(folder / "ends.npz"), load_arrays(whole / "ends.npz")
        assert found.keys() == wanted.keys()
        for name, values in wanted.items():
            # Float32 sums over the devices in another order, through 48 updates.
            np.testing.assert_allclose(
                found[name], values, rtol=0, atol=1e-6 * np.abs(values).max(), err_msg=name
            )
