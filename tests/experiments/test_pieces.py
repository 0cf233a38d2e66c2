"""Experiments over several processes: the files of one process."""

import json
import os

import pytest

from experiments import registry
from experiments.__main__ import main
from experiments.lib.data.storage import open_builder
from experiments.lib.runs.metrics import read_metrics
from tests.experiments import pieces
from tests.experiments.bucket import buckets
from tests.parallel.processes import finish, free_port, start

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
    assert run(folder) == 0
    return folder


def run(folder, *options):
    return main([pieces.__name__, "--preset", "smoke", "--out", str(folder), *options])


def test_shares_leave_the_files_of_one_run(one, tmp_path, capsys):
    assert run(tmp_path, "--share", "2/2") == 0
    assert not (tmp_path / "together").exists()  # what comes after the pieces is the last one's
    assert run(tmp_path, "--share", "1/2") == 0
    assert "share 1/2 is done; so are all others" in capsys.readouterr().err
    assert_same_numbers(summary(tmp_path), summary(one), tolerance=0)
    for folder in ("together", "seed_1", *pieces.ARMS):
        rows, want = (read_metrics(f / folder, clock=False) for f in (tmp_path, one))
        assert rows == want
        assert [row["step"] for row in rows] == list(range(pieces.STEPS))
    assert {*os.listdir(tmp_path)} == {*os.listdir(one), ".shares"}


def test_shares_in_a_bucket_leave_the_same_files(one, tmp_path):
    with buckets(tmp_path):
        for share in ("1/2", "2/2"):
            assert run("gs://runs/mine", "--share", share) == 0
        assert run("gs://runs/mine") == 0  # it is only shown
    folder = tmp_path / "runs" / "mine"
    assert_same_numbers(summary(folder), summary(one))
    rows, want = (read_metrics(f / "together", clock=False) for f in (folder, one))
    assert_same_numbers(rows, want, "together")
    assert {*os.listdir(folder)} == {*os.listdir(one), ".shares"} - {".lock"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "way"),
    [
        (name, way)
        for name in sorted(registry.summaries())
        for way in ("shares", "data_parallel")
        if getattr(registry.load(name)[0], way)
    ],
)
def test_every_experiment_finds_over_two_processes_what_it_finds_in_one(name, way, tmp_path):
    open_builder("digits", tmp_path / "data")
    # Quickly compiled: what is compared is the numbers, not the time.
    env = {
        "FLATJAX_DATA_DIR": str(tmp_path / "data"),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    common = ["-m", "experiments", name, "--preset", "smoke", "--seeds", 2]
    finish([start([*common, "--out", tmp_path / "one"], env=env)], 600)
    two = [*common, "--out", tmp_path / "two"]
    if way == "shares":
        finish([start([*two, "--share", f"{i}/2"], env=env) for i in (1, 2)], 600)
    else:
        joined = ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--processes", 2]
        joined += ["--heartbeat", 20, "--process"]
        env["JAX_NUM_CPU_DEVICES"] = "1"
        finish([start([*two, *joined, i], env=env) for i in (0, 1)], 600)
    assert_same_numbers(summary(tmp_path / "two"), summary(tmp_path / "one"))
