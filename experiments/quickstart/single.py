"""Measuring a checkpoint that is already there, by the quickstart's table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from experiments.lib.data.images import load_data
from experiments.lib.nets.models import make_model
from experiments.lib.runs import rundir
from experiments.lib.runs.arrays import checksum
from experiments.lib.runs.errors import CheckpointMismatch
from experiments.lib.runs.identity import identity, to_dict
from experiments.lib.runs.paths import as_path
from experiments.lib.runs.progress import say
from experiments.lib.training.config import RunConfig
from experiments.lib.training.curvature import Curvature
from experiments.lib.training.evaluate import Evaluator
from experiments.lib.training.load import Loaded, load_checkpoint
from experiments.quickstart import outcome
from experiments.quickstart.table import Run

if TYPE_CHECKING:
    from experiments.quickstart import Config


def measure_checkpoint(config: Config) -> Path:
    """Measures `config.checkpoint`, or shows the measurements if they are there.

    A checkpoint of this harness knows its network, data and loss; of any other, the configuration
    tells them.

    Returns:
      The folder with table, figures and report: in `config.out`, named after the checkpoint and
      after all that decides the numbers.
    """
    loaded = load_checkpoint(config.checkpoint, step=config.step)
    run = _described(config, loaded)
    decides = {
        "run": identity(run),
        "curvature": to_dict(config.curvature),
        "params": int(checksum((loaded.params, loaded.model_state))),
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
    step = 0 if loaded.step is None else loaded.step
    folder = as_path(config.out) / f"checkpoint-{_slug(config.checkpoint)}-{step}-{digest}"
    with rundir.locked(folder):
        if not outcome.finished(folder):
            rundir.record_environment(folder)
            say(f"measuring {loaded.path}", enabled=not config.quiet)
            final = {"step": step} | _measure(config, run, loaded)
            evaluation = final.pop("evaluation")
            outcome.write(
                folder,
                {"checkpoint": str(config.checkpoint), "step": loaded.step, **decides},
                [Run("checkpoint", 0, final, [evaluation], [])],
                title=f"The curvature of {config.checkpoint}",
            )
        outcome.show(folder)
    return folder


def _described(config: Config, loaded: Loaded) -> RunConfig:
    """The network, data and loss: from the checkpoint if it knows them, else from the options."""
    run = loaded.config or config.run("sgd", config.first_seed)
    directory = config.data_dir or config.data.data_dir
    return dataclasses.replace(run, data=dataclasses.replace(run.data, data_dir=directory))


def _measure(config: Config, run: RunConfig, loaded: Loaded) -> dict[str, Any]:
    data = load_data(run.data)
    model = make_model(run.model, data.num_classes)
    _require_fit(model, data, loaded, run)
    curvature = Curvature(model, run.train.loss, data, config.curvature)
    evaluate = Evaluator(model, run.train.loss, batch_size=run.train.eval_batch_size)
    state = (loaded.params, loaded.model_state)
    evaluation = evaluate(*state, data.train).summary("train")
    evaluation |= evaluate(*state, data.test).summary("test")
    return {"evaluation": evaluation} | curvature.everything(*state)


def _require_fit(model: Any, data: Any, loaded: Loaded, run: RunConfig) -> None:
    """Compares the checkpoint's arrays with the network's.

    Raises:
      CheckpointMismatch: they differ; the message names the first difference.
    """
    example = jax.ShapeDtypeStruct((1, *data.input_shape), "float32")
    expected = jax.eval_shape(model.init, jax.random.key(0), example)
    found = (loaded.params, dict(loaded.model_state))
    for kind, want, have in zip(("parameters", "model state"), expected, found, strict=True):
        wanted, there = _shapes(want), _shapes(have)
        for path in sorted(wanted.keys() | there.keys()):
            if wanted.get(path) != there.get(path):
                raise CheckpointMismatch(
                    f"{loaded.path} does not fit the network {run.model.name!r}: {kind} at {path} "
                    f"of shape {there.get(path, 'none')} where it has {wanted.get(path, 'none')}; "
                    "say which network it is by --model, --model.width, --model.depth, "
                    "--model.norm and which data by --data.name"
                )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}


def _slug(path: str) -> str:
    """The last telling name in a path, fit for a folder."""
    names = [n for n in Path(path).absolute().parts if n != "checkpoints" and not n.isdigit()]
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in names[-1])[:40]
