"""Runs: their rows, their ends, and going on after every kind of interruption."""

import json
import os
import pathlib
import re
import shutil
import signal
import warnings

import jax
import numpy as np
import optax
import pytest

from experiments.lib.runs import errors
from experiments.lib.runs.metrics import read_metrics
from experiments.lib.runs.paths import as_path, is_remote
from experiments.lib.runs.rundir import locked, read_json
from experiments.lib.training.config import OptimizerConfig
from experiments.lib.training.load import load_checkpoint
from experiments.lib.training.train import train
from tests.experiments.bucket import buckets
from tests.experiments.throwaway import small, tracker

pytestmark = pytest.mark.usefixtures("data_dir")


class Stop(Exception):
    """Ends a run from inside, as a crash would."""


def stop_at(step):
    def action(at):
        if at == step:
            raise Stop

    return action


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """An uninterrupted run."""
    del data_dir
    folder = tmp_path_factory.mktemp("finished") / "run"
    return train(folder, small(), measurements=[tracker(2)], quiet=True)


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run's folder, to be spoilt."""
    return shutil.copytree(finished.folder, tmp_path / "run")


def unfinish(folder, *steps):
    """Makes a finished run one that was killed: no end, and without these checkpoints."""
    (folder / "status.json").unlink()
    for step in steps:
        shutil.rmtree(folder / "checkpoints" / str(step))


def assert_same_run(folder, finished):
    ours, theirs = (read_metrics(f, clock=False) for f in (folder, finished.folder))
    assert ours == theirs
    a, b = (load_checkpoint(f) for f in (folder, finished.folder))
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    jax.tree.map(np.testing.assert_array_equal, a.model_state, b.model_state)
    status = read_json(as_path(folder) / "status.json")
    assert status == read_json(finished.folder / "status.json")


def test_a_run_leaves_its_record(finished):
    rows = finished.history()
    by_event = {e: [r["step"] for r in rows if r["event"] == e] for e in ("train", "eval")}
    assert by_event == {"train": [3, 6, 9, 12, 15], "eval": [0, 8, 16]}
    assert [r["step"] for r in finished.history("tracker")] == list(range(0, 17, 2))
    names = {"step", "event", "time", "seconds", "train_loss", "train_accuracy", "test_loss"}
    names |= {"test_accuracy", "train_memorized", "train_recovered", "train_clean_accuracy"}
    assert set(finished.history("eval")[0]) == names
    (start,) = read_json(finished.folder / "env.json")["starts"]
    assert start["versions"]["jax"] == jax.__version__
    assert start["backend"] == jax.default_backend()
    assert read_json(finished.folder / "config.json")["config"]["train"]["steps"] == 16
    assert (finished.step, finished.reason, finished.was_complete) == (16, "steps", False)


def test_accuracies_of_the_groups_add_up(finished):
    row = finished.history("eval")[-1]
    # A quarter of the labels is wrong.
    together = 0.25 * row["train_memorized"] + 0.75 * row["train_clean_accuracy"]
    assert row["train_accuracy"] == pytest.approx(together, abs=1e-12)


def test_the_last_and_the_best_checkpoints_are_kept(finished):
    kept = {int(p.name) for p in (finished.folder / "checkpoints").iterdir()}
    evaluated = {r["step"]: r["test_accuracy"] for r in finished.history("eval") if r["step"]}
    best = load_checkpoint(finished.folder, step="best").step
    assert evaluated[best] == max(evaluated.values())
    assert kept == {12, 16, best}


def test_a_complete_run_says_so_and_does_nothing(copy, capsys, monkeypatch):
    monkeypatch.setenv("FLATJAX_DATA_DIR", "/nowhere")  # the data are not even opened
    before = {p: p.stat().st_mtime_ns for p in sorted(copy.rglob("*")) if p.name != ".lock"}
    again = train(copy, small(), measurements=[tracker(2, stop_at(0))])
    assert "is complete (16 steps, stopped by steps); nothing to do" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert again.was_complete
    loaded = load_checkpoint(copy)
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


def test_a_run_that_crashed_ends_like_one_that_did_not(finished, tmp_path):
    # Twice: before the first checkpoint, and between two with the tracker's carry under way.
    for step in (2, 10):
        with pytest.raises(Stop):
            train(tmp_path, small(), measurements=[tracker(2, stop_at(step))], quiet=True)
    train(tmp_path, small(), measurements=[tracker(2)], quiet=True)
    assert_same_run(tmp_path, finished)
    assert len(read_json(tmp_path / "env.json")["starts"]) == 3


def test_sigterm_saves_at_once_and_the_run_goes_on_the_same(finished, tmp_path):
    def terminate(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the signal should have ended the measurement")

    with pytest.raises(errors.Preempted, match="saved at step 6; run the same") as caught:
        train(tmp_path, small(), measurements=[tracker(2, terminate)], quiet=True)
    assert caught.value.exit_status == 75
    assert read_json(tmp_path / "status.json") == {"status": "preempted", "step": 6}
    assert load_checkpoint(tmp_path).step == 6
    train(tmp_path, small(), measurements=[tracker(2)], quiet=True)
    assert_same_run(tmp_path, finished)


def test_a_half_written_row_is_dropped(finished, copy):
    unfinish(copy, 16)
    rows = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(rows[:-1]) + rows[-1][:20])
    train(copy, small(), measurements=[tracker(2)], quiet=True)
    assert_same_run(copy, finished)


def spoil(folder):
    """Changes one bit in the largest file of a checkpoint: parameters or optimiser state."""
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("complete", [True, False])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(finished, copy, complete):
    if not complete:
        (copy / "status.json").unlink()
    spoil(copy / "checkpoints" / "16")
    newest, before = (re.escape(str(copy / "checkpoints" / s)) for s in ("16", "12"))
    with pytest.warns(UserWarning, match=f"{newest} is damaged.*continues from {before}"):
        result = train(copy, small(), measurements=[tracker(2)], quiet=True)
    assert not result.was_complete
    assert_same_run(copy, finished)
    assert (copy / "damaged" / "16").is_dir()


def without(text):
    """Takes the rows with a text out of the log."""

    def damage(folder):
        path = folder / "metrics.jsonl"
        kept = [row for row in path.read_text().splitlines(keepends=True) if text not in row]
        path.write_text("".join(kept))

    return damage


def another_number(folder):
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('"train_loss": ', '"train_loss": 1', 1))


@pytest.mark.parametrize(
    ("damage", "start"),
    [(without('"step": 16'), "/12"), (without(""), "the beginning"), (another_number, "the begin")],
)
def test_lost_and_changed_rows_are_made_again(finished, copy, damage, start):
    """From the newest checkpoint that has its rows behind it."""
    damage(copy)
    told = rf"rows before it in .*metrics\.jsonl are lost or not as written.* from .*{start}"
    with pytest.warns(UserWarning, match=told):
        result = train(copy, small(), measurements=[tracker(2)], quiet=True)
    assert not result.was_complete
    assert_same_run(copy, finished)


@pytest.mark.parametrize("text", ["", '{"status": "compl', '{"status": "complete"}', "[]"])
def test_a_damaged_status_costs_nothing(finished, copy, text):
    (copy / "status.json").write_text(text)
    with pytest.warns(UserWarning, match=r"status\.json is damaged .* from its last checkpoint"):
        result = train(copy, small(), measurements=[tracker(2)], quiet=True)
    assert (result.step, result.was_complete) == (16, False)
    assert_same_run(copy, finished)


def test_a_complete_run_that_may_not_be_written_is_returned(copy, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.name != ".lock"}
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert train(copy, small(keep_last=5), measurements=[tracker(2)], quiet=True).was_complete
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.name != ".lock"} == before


def test_another_configuration_in_the_same_folder_is_an_error(copy):
    other = small(optimizer=OptimizerConfig(name="adam", learning_rate=0.5))
    with pytest.raises(
        errors.ConfigMismatch,
        match=r"another configuration \(train.optimizer.learning_rate: 0.003 -> 0.5\); choose",
    ):
        train(copy, other, measurements=[tracker(2)], quiet=True)
    with pytest.raises(errors.ConfigMismatch, match=r"extra.rho: null -> 0.1"):
        train(copy, small(), measurements=[tracker(2)], extra={"rho": 0.1}, quiet=True)


def test_what_is_kept_may_change_in_the_same_folder(copy):
    assert train(copy, small(keep_last=5), measurements=[tracker(2)], quiet=True).was_complete


def test_a_checkpoint_of_other_code_is_an_error_not_damage(copy):
    (copy / "status.json").unlink()
    with pytest.raises(errors.CheckpointMismatch, match="written by other code"):
        train(copy, small(), optimizer=optax.sgd(0.1), measurements=[tracker(2)], quiet=True)
    assert not (copy / "damaged").exists()


def test_a_nan_stops_the_run_and_names_step_and_checkpoint(tmp_path):
    def explode(count):  # update 7, counted from 1, makes the loss of update 8 infinite
        return jax.numpy.where(count == 6, 1e30, 0.1)

    optimizer = optax.sgd(explode)
    config = small(log_every=2)
    with pytest.raises(errors.TrainingDiverged) as caught:
        train(tmp_path, config, optimizer=optimizer, quiet=True)
    assert caught.value.step == 8
    assert caught.value.exit_status != 0
    last = tmp_path / "checkpoints" / "4"
    assert str(caught.value).endswith(
        f"the loss is not finite at step 8; the last good checkpoint is {last}"
    )
    assert read_json(tmp_path / "status.json") == {"status": "diverged", "step": 8}
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["4"]
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # strict JSON: no NaN, no Infinity


def test_matched_training_loss_stops_the_run(tmp_path):
    config = small(
        steps=400,
        eval_every=2,
        stop_train_loss=2.0,
        checkpoint_every=400,
        optimizer=OptimizerConfig(name="adam", learning_rate=0.03),
    )
    result = train(tmp_path, config, quiet=True)
    losses = [row["train_loss"] for row in result.history("eval")]
    assert result.reason == "train_loss"
    assert losses[-1] <= 2.0 < min(losses[:-1])
    assert train(tmp_path, config, quiet=True).step == result.step < 400


def test_a_custom_optimizer_gets_the_extra_arguments(tmp_path):
    seen = {}

    def update(updates, state, params, *, grad_fn, value_fn, batch, args, **rest):
        del rest
        again = grad_fn(params)
        # The clean pass again, with the same dropout: the same numbers, compiled together.
        difference = optax.tree.norm(jax.tree.map(lambda a, b: a - b, again, updates))
        seen.update(shapes=(batch[0].shape, batch[1].shape), args=len(args))
        new = {"difference": difference, "value": value_fn(params)}
        return jax.tree.map(lambda g: -0.1 * g, updates), new

    def init(params):
        del params
        return {"difference": jax.numpy.zeros(()), "value": jax.numpy.zeros(())}

    optimizer = optax.GradientTransformationExtraArgs(init, update)
    result = train(tmp_path, small(steps=1), optimizer=optimizer, quiet=True)
    assert seen == {"shapes": ((16, 8, 8, 1), (16, 10)), "args": 2}
    assert float(result.opt_state["difference"]) < 1e-6  # float32 gradients of order 1
    assert float(result.opt_state["value"]) > 0.5


def test_two_processes_cannot_share_a_folder(copy):
    with locked(copy), pytest.raises(errors.RunLocked, match="another process is running in"):
        train(copy, small(), quiet=True)


def test_data_parallel_over_the_fake_devices_trains_the_same(finished, tmp_path):
    if len(jax.devices()) < 2:
        pytest.skip("one device")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = train(tmp_path, small(), measurements=[tracker(2)], data_parallel=True, quiet=True)
    ours, theirs = (r.history("eval")[-1]["train_loss"] for r in (result, finished))
    # The same batches; sums over the batch in another order, through 16 updates of Adam, whose
    # normalisation amplifies rounding: 1e-7 grows to the order of 1e-5.
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_a_run_in_a_bucket_is_the_same(finished, tmp_path):
    with buckets(tmp_path):
        folder = "gs://runs/mine"
        with pytest.raises(Stop):
            train(folder, small(), measurements=[tracker(2, stop_at(14))], quiet=True)
        checkpoints = tmp_path / "runs" / "mine" / "checkpoints"
        assert sorted(p.name for p in checkpoints.iterdir()) == ["12", "8"]
        # In a bucket a half-written checkpoint has the name of a whole one.
        shutil.copytree(checkpoints / "12", checkpoints / "14")
        (checkpoints / "14" / "commit_success.txt").unlink()
        result = train(folder, small(), measurements=[tracker(2)], quiet=True)
        assert str(result.folder) == folder
        assert_same_run(folder, finished)
        again = train(folder, small(), measurements=[tracker(2)], quiet=True)
        assert again.was_complete


def test_paths_into_buckets_survive_pathlib():
    assert str(as_path(pathlib.Path("gs://runs/a") / "b")) == "gs://runs/a/b"
    assert is_remote(as_path("gs://runs/a"))
    assert not is_remote(as_path("gs/a"))
