"""Experiments over two processes: the files of one process, whoever is told to stop meanwhile."""

import json
import os
import time

import pytest

from experiments import registry
from experiments.__main__ import main
from experiments.lib.data.storage import open_builder
from experiments.lib.runs import distributed
from experiments.lib.runs.metrics import read_metrics
from tests.experiments.bucket import buckets
from tests.parallel import harnesses
from tests.parallel.processes import finish, free_port, start

PATIENCE = 240  # seconds until a process is taken to hang

pytestmark = pytest.mark.timeout(900)


def launch(name, folder, *arguments, processes=2, **env):
    """Starts an experiment at its smoke preset as several processes."""
    own = ["-m", "experiments", name, "--preset", "smoke", "--out", folder, *arguments]
    joined = ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}"]
    joined += ["--processes", processes, "--heartbeat", 20]
    env = {"JAX_NUM_CPU_DEVICES": "1", **env}
    return [start([*own, *joined, "--process", i], env=env) for i in range(processes)]


def statuses(processes):
    outputs = [p.communicate(timeout=PATIENCE)[0] for p in processes]
    return [p.returncode for p in processes], outputs


def wait_for(path, processes):
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


# When and how the numbers were made; and residuals, which are rounding where they are small.
OTHERWISE = {"seconds", "command", "config", "residual_norms"}
# Differences of nearly equal numbers: 2e-4 was seen where sums over the batch had another order.
ERRORS = {"error", "standard_error", "interval"}


def assert_same_numbers(ours, theirs, where="summary", tolerance=1e-6):
    """Equal texts, and numbers to a relative 1e-6."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for name in theirs.keys() - OTHERWISE:
            own = 1e-3 if name in ERRORS else tolerance
            assert_same_numbers(ours[name], theirs[name], f"{where}.{name}", own)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same_numbers(a, b, f"{where}[{i}]", tolerance)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=tolerance, abs=0), where
    else:
        assert ours == theirs, where


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The folder of a run of one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    assert main([harnesses.__name__, "--preset", "smoke", "--out", str(folder)]) == 0
    return folder


def test_a_run_in_a_bucket_leaves_the_same_files(one, tmp_path):
    with buckets(tmp_path):
        for _ in range(2):  # the second time it is only shown
            command = [harnesses.__name__, "--preset", "smoke", "--out", "gs://runs/mine"]
            assert main(command) == 0
    folder = tmp_path / "runs" / "mine"
    assert_same_numbers(summary(folder), summary(one))
    rows, want = (read_metrics(f / "together", clock=False) for f in (folder, one))
    assert_same_numbers(rows, want, "together")
    assert {*os.listdir(folder)} == {*os.listdir(one)} - {".lock"}


def test_two_processes_stopped_at_every_stage_leave_the_files_of_one(one, tmp_path):
    two, name = tmp_path / "two", harnesses.__name__
    # While each does its share by itself, then while all do the same: told to one, obeyed by both.
    for told, stage in ((1, two / harnesses.ARMS[1]), (0, two / "together")):
        both = launch(name, two, "--slow-at", stage.name)
        wait_for(stage / "records" / "2.npz", both)
        both[told].terminate()
        ended, outputs = statuses(both)
        assert ended == [distributed.PREEMPTED] * 2, outputs
        assert all("Preempted" in text and "Traceback" not in text for text in outputs)
        assert not (stage / "records" / f"{harnesses.STEPS}.npz").exists()
    outputs = finish(launch(name, two), PATIENCE)

    assert_same_numbers(summary(two), summary(one))
    # The first process alone speaks of what all have done.
    assert "falls" in outputs[0]
    assert "falls" not in outputs[1]
    for folder in ("together", "seed_1", *harnesses.ARMS):
        rows, want = (read_metrics(f / folder, clock=False) for f in (two, one))
        assert_same_numbers(rows, want, folder)
        assert [row["step"] for row in rows] == list(range(harnesses.STEPS))
    files = [sorted(os.listdir(folder)) for folder in (one, two)]
    assert files[0] == files[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", sorted(registry.summaries()))
def test_every_experiment_finds_over_two_processes_what_it_finds_in_one(name, tmp_path):
    open_builder("digits", tmp_path / "data")
    # Quickly compiled: what is compared is the numbers, not the time.
    env = {
        "FLATJAX_DATA_DIR": str(tmp_path / "data"),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    common = ["-m", "experiments", name, "--preset", "smoke", "--seeds", 2]
    finish([start([*common, "--out", tmp_path / "one"], env=env)], 600)
    finish(launch(name, tmp_path / "two", "--seeds", 2, **env), 600)
    assert_same_numbers(summary(tmp_path / "two"), summary(tmp_path / "one"))
