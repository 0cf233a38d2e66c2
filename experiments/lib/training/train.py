"""Training runs that can be killed at any moment and end the same.

    result = train("runs/mine", RunConfig(model=ModelConfig(name="cnn")))

A run's folder holds `config.json`, `env.json`, `status.json`, `metrics.jsonl`, `checkpoints/` and
`tensorboard/`. The same call on the same folder continues a run that was killed, to bitwise the
same metrics (clock fields apart) and parameters on CPU and on GPUs with deterministic operations,
and returns the result of one that is complete.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.lib.nets.models import Model
from experiments.lib.runs import arrays, checkpoint, distributed, rundir
from experiments.lib.runs.errors import Preempted, TrainingDiverged, refusals
from experiments.lib.runs.identity import identity, to_dict
from experiments.lib.runs.metrics import MetricsLog, read_metrics, rows_checksum
from experiments.lib.runs.paths import as_path
from experiments.lib.runs.placement import Placement
from experiments.lib.runs.progress import Progress, say
from experiments.lib.runs.signals import Interrupted, Signals
from experiments.lib.training.config import RunConfig
from experiments.lib.training.evaluate import Evaluator
from experiments.lib.training.measurements import Measurement
from experiments.lib.training.parts import Ingredients, snapshot_of
from experiments.lib.training.rows import TrainingRows
from experiments.lib.training.step import TrainState, make_step


class TrainResult(NamedTuple):
    """A finished run.

    Attributes:
      folder: the run's folder.
      config: its configuration.
      step: updates done.
      reason: why it stopped: `steps` or `train_loss`.
      params: the final parameters.
      model_state: the final batch statistics.
      opt_state: the optimiser's final state.
      model: the network.
      was_complete: whether the run was found complete and nothing was done.
    """

    folder: Path
    config: RunConfig
    step: int
    reason: str
    params: Any
    model_state: Any
    opt_state: Any
    model: Model
    was_complete: bool

    def history(self, event: str | None = None) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`: of `train`, `eval`, a measurement's name, or all."""
        return read_metrics(self.folder, event=event)


def train(
    folder: str | os.PathLike[str],
    config: RunConfig,
    *,
    optimizer: optax.GradientTransformation | None = None,
    measurements: Sequence[Measurement] = (),
    extra: Mapping[str, Any] | None = None,
    data_parallel: bool | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Trains a network, or continues, or returns the finished run in `folder`.

    Args:
      folder: the run's folder, made if absent; `gs://...` is one in a bucket, without TensorBoard.
      config: the data, the network and the training.
      optimizer: used in place of `config.train.optimizer`; it gets flatjax's extra arguments, see
        `experiments.lib.training.step.make_step`.
      measurements: what to measure on the way.
      extra: JSON values that belong to the run's identity, such as the parameters of `optimizer`
        and of `measurements`.
      data_parallel: spread each batch over all devices of all processes; by default where there are
        several processes or accelerators.
      quiet: no progress bar, no messages.

    Returns:
      The finished run.

    Raises:
      ConfigMismatch: the folder holds a run of another configuration.
      TrainingDiverged: the loss is no longer finite; names the update and the last checkpoint.
      Preempted: SIGTERM or an interrupt came; the state is saved.
      CheckpointNotWritten, DiskFull: there is no room; what was saved before is sound.
      NotWritable: the folder may not be written, and the run is not complete.
      RunLocked: another process is at work in the folder.
      DatasetNotPrepared: the data are absent.
    """
    placement = Placement(data_parallel=data_parallel)
    folder = as_path(folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(refusals(folder))
        distributed.on_primary(lambda: stack.enter_context(rundir.locked(folder)))
        signals = stack.enter_context(Signals().installed())
        run = _Run(folder, config, optimizer, tuple(measurements), placement, signals, quiet)
        whole = {**to_dict(config), "extra": dict(extra or {})}
        own = {**identity(config), "extra": dict(extra or {})}
        rundir.check_config(folder, whole, own)
        try:
            result = run.result_if_complete() or run.run()
        finally:
            run.checkpoints.close()
    if signals.exit_status is not None:  # it came when all was done
        raise Preempted(f"{folder}: complete; stopped by a signal", signals.exit_status)
    return result


class _Run:
    """One call of `train`."""

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        optimizer: optax.GradientTransformation | None,
        measurements: tuple[Measurement, ...],
        placement: Placement,
        signals: Signals,
        quiet: bool,
    ):
        self.folder, self.config, self.placement = folder, config, placement
        self.measurements, self.signals = measurements, signals
        self.loud = placement.primary and not quiet
        t = config.train
        self.checkpoints = checkpoint.Checkpoints(
            folder / "checkpoints",
            keep_last=t.keep_last,
            keep_best=t.keep_best,
            best_metric=t.best_metric,
            primary=placement.primary,
        )
        # Lazy: a complete run needs neither data nor compiled programs.
        self.parts = Ingredients(config, optimizer, measurements, self.checkpoints.folder)

    def restore(self, iterator: Any = None) -> checkpoint.Restored | None:
        if not distributed.on_primary(lambda: bool(checkpoint.list_steps(self.checkpoints.folder))):
            return None
        abstract = self.placement.abstract(jax.eval_shape(self.parts.initial))
        restored = self.checkpoints.restore(abstract, iterator=iterator, check=self._check_rows)
        if restored is None:
            return None
        return restored._replace(state=self.placement.everywhere(restored.state))

    def result_if_complete(self) -> TrainResult | None:
        then = "the run goes on from its last checkpoint"
        status = rundir.read_json(self.folder / "status.json", status=str, step=int, then=then)
        if status is None or status["status"] != "complete":
            return None
        restored = self.restore()
        if restored is None or restored.step != status["step"]:
            return None  # its last checkpoint is damaged or gone: do the rest again
        say(
            f"{self.folder} is complete ({restored.step} steps, stopped by {status['reason']}); "
            "nothing to do",
            enabled=self.loud,
        )
        return self.result(restored.state["train"], restored.step, status.get("reason"), True)

    def result(self, state: TrainState, step: int, reason: str, was_complete: bool) -> TrainResult:
        return TrainResult(
            self.folder,
            self.config,
            step,
            reason,
            state.params,
            state.model_state,
            state.opt_state,
            self.parts.model,
            was_complete,
        )

    # The run itself.

    def run(self) -> TrainResult:
        t = self.config.train
        self.placement.check_batch_size(t.batch_size or len(self.parts.data.train))
        self.iterator = self.parts.data.batches(
            t.batch_size, seed=t.seed, reshuffle=t.reshuffle, process=self.placement.process
        )
        restored = self.restore(self.iterator)
        if restored is None:
            both = jax.jit(self.parts.initial, out_shardings=self.placement.replicated)()
            step, finished, events_done = 0, None, False
            # `restore` may have moved the iterator before it found a checkpoint damaged.
            self.iterator = self.parts.data.batches(
                t.batch_size, seed=t.seed, reshuffle=t.reshuffle, process=self.placement.process
            )
        else:
            step, both = restored.step, restored.state
            finished, events_done = restored.meta["finished"], restored.meta["events_done"]
            say(f"{self.folder}: continuing from step {step}", enabled=self.loud)
        self.state, self.carries = both["train"], both["carries"]
        self.log = self._open_log(step, events_done)
        rundir.record_environment(self.folder)
        self._set_status("running", step)
        largest = max(len(self.parts.data.train), len(self.parts.data.test))
        batch_size = min(t.eval_batch_size, largest)
        self.evaluate = Evaluator(
            self.parts.model, t.loss, batch_size=batch_size, placement=self.placement
        )
        self.progress = Progress(str(self.folder), self.parts.total_steps, step, enabled=self.loud)
        try:
            step, reason = self._loop(step, finished, events_done)
        finally:
            self.progress.close()
            self.log.close()
        self._set_status("complete", step, reason=reason)
        say(f"{self.folder}: {step} steps, stopped by {reason}", enabled=self.loud)
        return self.result(self.state, step, reason, False)

    def _open_log(self, step: int, events_done: bool) -> MetricsLog:
        """Opens `metrics.jsonl`, cut back to what the restored state has behind it."""
        return MetricsLog(
            self.folder,
            keep=self._rows_behind(step, events_done) if step else (),
            resume_step=step + 1 if events_done else step,
            tensorboard=self.config.train.tensorboard,
            primary=self.placement.primary,
        )

    def _rows_behind(self, step: int, events_done: bool) -> list[dict[str, Any]]:
        # A training row is written before the other events of its step.
        return [
            row
            for row in read_metrics(self.folder)
            if row["step"] < step
            or (row["step"] == step and (events_done or row["event"] == "train"))
        ]

    def _check_rows(self, meta: Mapping[str, Any]) -> None:
        """Refuses a checkpoint whose rows are no longer those written before it."""
        if not self.placement.primary:  # others may see a shared file system a little later
            return
        rows = self._rows_behind(meta["step"], meta["events_done"])
        if rows_checksum(rows) != meta["rows"]:
            raise ValueError(
                f"rows before it in {self.folder / 'metrics.jsonl'} are lost or not as written"
            )

    def _loop(self, step: int, finished: str | None, events_done: bool) -> tuple[int, str]:
        t = self.config.train
        update = make_step(self.parts.model, t.loss, self.parts.optimizer)
        self.rows = TrainingRows(self.log, step, lambda bad: self._diverged(bad, "the loss is"))
        while True:
            if not events_done:
                finished = self._events(step)
            if finished is not None:
                return step, finished
            events_done = False
            self.state = update(self.state, self.placement.batch(next(self.iterator)))
            step += 1
            if step % t.log_every == 0:
                self.state = self.rows.take(step, self.state)
            self.progress.update(step)

    def _events(self, step: int) -> str | None:
        """Evaluates, measures and saves what is due; returns why to stop, or None.

        A signal during it leaves the step's events undone: the state is saved as of before them,
        and the continued run does them again.
        """
        t = self.config.train
        finished = "steps" if step >= self.parts.total_steps else None
        carries, metrics = dict(self.carries), None
        try:
            self.signals.check()  # a signal that came during the update
            if step % t.eval_every == 0 or finished:
                self.rows.flush(self.state)
                with self.signals.interruptible():
                    metrics, seconds = self._evaluated()
                self.log.write(step, "eval", metrics, clock={"seconds": seconds})
                self.progress.update(step, _note(metrics))
                self._require_finite(step, metrics["train_loss"])
                if t.stop_train_loss is not None and metrics["train_loss"] <= t.stop_train_loss:
                    finished = "train_loss"
            for m in self.measurements:
                if m.due(step, finished is not None):
                    self.rows.flush(self.state)
                    started = time.perf_counter()
                    with self.signals.interruptible():
                        results, carries[m.name] = m.measure(
                            snapshot_of(step, self.state), carries[m.name]
                        )
                        jax.block_until_ready(carries[m.name])
                    seconds = round(time.perf_counter() - started, 3)
                    self.log.write(step, m.name, results, clock={"seconds": seconds})
        except Interrupted:
            self._leave(step)
        self.carries = carries
        if finished or (step and step % t.checkpoint_every == 0):
            self._save(step, finished=finished, events_done=True, metrics=metrics)
        if finished:
            self.checkpoints.wait()
        return finished

    def _evaluated(self) -> tuple[dict[str, float], float]:
        started = time.perf_counter()
        splits = {"train": (self.parts.data.train, self.config.train.eval_train_size)}
        splits |= {"test": (self.parts.data.test, None)}
        if self.parts.data.validation is not None:
            splits["validation"] = (self.parts.data.validation, None)
        metrics: dict[str, float] = {}
        for name, (split, size) in splits.items():
            found = self.evaluate(self.state.params, self.state.model_state, split, size)
            metrics |= found.summary(name)
        return metrics, round(time.perf_counter() - started, 3)

    # Saving and leaving.

    def _save(
        self, step: int, *, finished: str | None, events_done: bool, metrics: Any = None
    ) -> None:
        self.rows.flush(self.state)
        if not bool(arrays.finite((self.state.params, self.state.model_state))):
            self._diverged(step, "the parameters are")
        self.log.sync()
        meta: dict[str, Any] = {
            "config": to_dict(self.config),
            "shapes": [list(self.parts.shapes[0]), *self.parts.shapes[1:]],
            "finished": finished,
            "events_done": events_done,
        }
        if self.placement.primary:
            meta["rows"] = rows_checksum(self._rows_behind(step, events_done))
        state = {"train": self.state, "carries": self.carries}
        self.checkpoints.save(step, state, meta, iterator=self.iterator, metrics=metrics)

    def _leave(self, step: int) -> None:
        status = self.signals.exit_status or 75
        if step:
            self._save(step, finished=None, events_done=False)
            self.checkpoints.wait()
        self._set_status("preempted", step)
        raise Preempted(
            f"{self.folder}: stopped by a signal, saved at step {step}; run the same command to "
            "continue",
            exit_status=status,
        )

    def _set_status(self, status: str, step: int, **more: Any) -> None:
        rundir.write_json(self.folder / "status.json", {"status": status, "step": step, **more})

    def _require_finite(self, step: int, loss: float) -> None:
        if not np.isfinite(loss):
            self._diverged(step, "the loss over the training set is")

    def _diverged(self, step: int, what: str) -> None:
        last = self.checkpoints.latest()
        self._set_status("diverged", step)
        good = f"the last good checkpoint is {last}" if last else "no checkpoint was saved before"
        raise TrainingDiverged(f"{self.folder}: {what} not finite at step {step}; {good}", step)


def _note(metrics: Mapping[str, float]) -> str:
    return f"loss {metrics['train_loss']:.4f}  test accuracy {metrics['test_accuracy']:.3f}"
