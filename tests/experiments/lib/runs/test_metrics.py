"""`metrics.jsonl`: strict JSON, cut on resuming, unharmed by kills; TensorBoard beside it."""

import errno
import json
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter  # the format read below is its

from experiments.lib.runs.metrics import MetricsLog, jsonable, read_metrics


class Pair(NamedTuple):
    left: float
    right: np.ndarray


def test_values_become_strict_json():
    value = {
        "float": np.float32(0.1),
        "int": jnp.int32(3),
        "array": jnp.ones((2, 2)),
        "pair": Pair(1.5, np.array([True])),
        "bad": [float("nan"), np.inf, jnp.array([1.0, jnp.nan])],
        "text": "x",
        "none": None,
    }
    found = json.loads(json.dumps(jsonable(value), allow_nan=False))
    assert found == {
        "float": pytest.approx(0.1, rel=1e-7),
        "int": 3,
        "array": [[1.0, 1.0], [1.0, 1.0]],
        "pair": {"left": 1.5, "right": [True]},
        "bad": [None, None, [1.0, None]],
        "text": "x",
        "none": None,
    }
    # float32 numbers survive exactly.
    assert np.float32(found["float"]) == np.float32(0.1)


def test_a_row_is_in_the_file_as_soon_as_it_is_written(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, "train", {"loss": 2.0})
    assert read_metrics(tmp_path, clock=False) == [{"step": 1, "event": "train", "loss": 2.0}]
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row.keys() == {"step", "event", "loss", "time"}
    log.close()


def test_half_a_last_line_is_left_out(tmp_path):
    rows = ['{"step": 1, "event": "a"}', '{"step": 2, "event": "a"}', '{"step": 3, "ev']
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[1]",
        '{"step": 2, "ev',
        '{"step": 2}',
        '{"step": "2", "event": "a"}',
        '{"step": true, "event": "a"}',
        '{"step": 2, "event": 3}',
    ],
)
def test_other_lines_that_are_no_rows_are_left_out_and_told(tmp_path, line):
    rows = ['{"step": 1, "event": "a"}', line, '{"step": 3, "event": "a"}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: what stands in line 2 is no row"):
        assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3]


@pytest.mark.parametrize("method", ["write", "flush"])
def test_a_full_disk_ends_the_log_and_nobody_waits(tmp_path, monkeypatch, method):
    """What fails is the file of TensorBoard; more rows than any queue holds."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill():
        with MetricsLog(tmp_path) as log:
            monkeypatch.setattr(RecordWriter, method, full)
            for step in range(50):
                log.write(step, "a", {"x": 1.0})

    with pytest.raises(OSError, match="No space left"):
        fill()
    assert read_metrics(tmp_path)[0]["x"] == 1.0


def test_the_log_begins_with_the_rows_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "event": "a"}\n{"step": 2, "ev')
    log = MetricsLog(tmp_path, keep=read_metrics(tmp_path))
    log.write(2, "a", {})
    log.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_other_processes_write_nothing(tmp_path):
    log = MetricsLog(tmp_path, primary=False)
    log.write(1, "a", {})
    log.sync()
    log.close()
    assert list(tmp_path.iterdir()) == []


def events(folder):
    """The events in a folder of TensorBoard files: length, two checksums, protocol buffer."""
    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            found.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += 12 + size + 4
    return found


def test_tensorboard_gets_scalars_and_forgets_what_comes_again(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (5, 10):
        log.write(step, "eval", {"loss": 0.5, "list": [1, 2]})
    log.close()
    MetricsLog(tmp_path, resume_step=6).close()
    found = events(tmp_path / "tensorboard")
    scalars = {(v.tag, e.step): v.simple_value for e in found for v in e.summary.value}
    assert scalars[("eval/loss", 10)] == 0.5
    assert {tag for tag, _ in scalars} == {"eval/loss", "eval/list/0", "eval/list/1"}
    restarts = [e.step for e in found if e.HasField("session_log")]
    assert restarts == [6]
