"""Networks out of checkpoints: this harness's own, or any that orbax or flax wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from experiments.lib.runs import arrays, checkpoint, seals, sound
from experiments.lib.runs.errors import ExperimentError
from experiments.lib.runs.identity import from_dict
from experiments.lib.runs.paths import absolute, as_path
from experiments.lib.training.config import RunConfig


class Loaded(NamedTuple):
    """A network's arrays.

    Attributes:
      params: the parameters, nested dicts.
      model_state: the other collections, such as `{"batch_stats": ...}`; `{}` if there are none.
      config: the run they come from; None unless this harness wrote the checkpoint.
      step: the step they were saved at, or None if unknown.
      path: the checkpoint read.
    """

    params: Any
    model_state: Any
    config: RunConfig | None
    step: int | None
    path: Path


def load_checkpoint(
    path: str | os.PathLike[str], *, step: int | Literal["best"] | None = None
) -> Loaded:
    """Loads the parameters of a network onto one device.

    Args:
      path: a run's folder, its `checkpoints` folder or one checkpoint in it; or any orbax
        checkpoint (or folder of numbered ones) or flax msgpack file that holds parameters, alone
        or under the key `params`, with further collections such as `batch_stats` beside them.
      step: which of several, or `best` by the run's `best_metric`; default the last.

    Raises:
      ExperimentError: there is no such checkpoint, or it is damaged.
    """
    path = as_path(path).expanduser()
    if not path.exists():
        raise ExperimentError(f"there is no checkpoint at {path}")
    if not path.is_dir():
        return _from_msgpack(path)
    chosen = absolute(_choose(path, step))
    try:
        seals.check(chosen)
        tree = _load_tree(chosen)
        own = "checksum" in tree and "state" in tree
        if not own:
            number = int(chosen.name) if chosen.name.isdigit() else None
            return Loaded(*_split(tree), None, number, chosen)
        meta = checkpoint.read_meta(chosen)
        if {int(arrays.checksum(tree["state"])), int(tree["checksum"])} != {meta["checksum"]}:
            raise ValueError("its arrays do not match their checksum")
    except Exception as error:
        raise ExperimentError(
            f"checkpoint {chosen} cannot be read: {sound.reason(error)}"
        ) from error
    state = tree["state"]["train"]
    config = from_dict(RunConfig, meta["config"])
    return Loaded(state["params"], state["model_state"] or {}, config, meta["step"], chosen)


def _choose(path: Path, step: int | str | None) -> Path:
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    numbered = checkpoint.list_steps(folder)
    if not numbered:
        if step is not None:
            raise ExperimentError(f"{path} is not a folder of numbered checkpoints")
        return path
    if step is None:
        return numbered[-1]
    if step == "best":
        try:
            config = checkpoint.read_meta(numbered[-1])["config"]
            return checkpoint.best_step(folder, config["train"]["best_metric"])
        except Exception as error:  # as below: of orbax, or there is none
            raise ExperimentError(
                f"{folder} does not tell its best checkpoint: {sound.reason(error)}"
            ) from error
    for found in numbered:
        if int(found.name) == step:
            return found
    steps = ", ".join(p.name for p in numbered)
    raise ExperimentError(f"{folder} has no checkpoint at step {step}; it has {steps}")


def _load_tree(path: Path) -> dict[str, Any]:
    """The arrays as saved, nested dicts and lists, on one device whatever they were saved from."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    saved = ocp.metadata(path).metadata
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), saved
    )
    loaded = ocp.load(path, abstract)
    if not isinstance(loaded, dict):
        raise ValueError("it holds no dict of parameters")
    return loaded


def _from_msgpack(path: Path) -> Loaded:
    from flax import serialization

    try:
        tree = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:
        raise ExperimentError(f"{path} is neither a folder nor a flax msgpack file") from error
    if not isinstance(tree, dict):
        raise ExperimentError(f"{path} is neither a folder nor a flax msgpack file of parameters")
    return Loaded(*_split(jax.device_put(tree)), None, None, path)


def _split(tree: dict[str, Any]) -> tuple[Any, Any]:
    """Parameters and other collections of a saved tree, wherever `params` lies in it."""
    level = [tree]
    while level:
        for node in level:
            if "params" in node:
                inner = node["params"]
                if isinstance(inner, dict) and "params" in inner:  # flax variables, saved as params
                    node, inner = inner, inner["params"]
                return inner, node.get("model_state") or _collections(node)
        level = [v for node in level for v in node.values() if isinstance(v, dict)]
    return tree, {}


def _collections(node: dict[str, Any]) -> dict[str, Any]:
    """Flax's other collections beside `params`; not a training state's counters and optimiser."""
    known = ("batch_stats", "cache", "constants", "state")
    return {k: v for k, v in node.items() if k in known and isinstance(v, dict)}
