"""Networks out of checkpoints: this laboratory's own, or any that orbax or flax wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from experiments.lib.runs import checkpoint, seals, sound
from experiments.lib.runs.errors import ExperimentError
from experiments.lib.runs.paths import absolute, as_path


class Loaded(NamedTuple):
    """A network's arrays.

    Attributes:
      params: the parameters, nested dicts.
      model_state: the other collections, such as `{"batch_stats": ...}`; `{}` if there are none.
      path: the checkpoint read.
    """

    params: Any
    model_state: Any
    path: Path


def load_checkpoint(
    path: str | os.PathLike[str], *, step: int | Literal["best"] | None = None, which: int = 0
) -> Loaded:
    """Loads the parameters of a network onto one device.

    Args:
      path: a run's folder, its `checkpoints` folder or one checkpoint in it; or any orbax
        checkpoint (or folder of numbered ones) or flax msgpack file that holds parameters, alone
        or under the key `params`, with further collections such as `batch_stats` beside them.
      step: which of several, or `best` by the run's test accuracy; default the last.
      which: one of the runs that a checkpoint of this laboratory holds, from 0.

    Raises:
      ExperimentError: there is no such checkpoint, or it is damaged.
    """
    path = as_path(path).expanduser()
    if not path.exists():
        raise ExperimentError(f"there is no checkpoint at {path}")
    if not path.is_dir():
        return Loaded(*_split(_from_msgpack(path)), path)
    chosen = absolute(_choose(path, step))
    try:
        seals.check(chosen)
        tree = _load_tree(chosen)
    except Exception as error:  # of orbax, a dozen kinds
        raise ExperimentError(
            f"checkpoint {chosen} cannot be read: {sound.reason(error)}"
        ) from error
    found = _split(tree)
    if "checksum" in tree and "state" in tree:  # our own, with a leading axis of runs
        count = len(jax.tree.leaves(found)[0])
        if not 0 <= which < count:
            raise ExperimentError(f"{chosen} holds {count} runs, from 0; there is no {which}")
        found = jax.tree.map(lambda a: a[which], found)
    params, model_state = found
    return Loaded(params, model_state, chosen)


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
            return checkpoint.best_step(folder)
        except FileNotFoundError as error:
            raise ExperimentError(str(error)) from error
    for found in numbered:
        if int(found.name) == step:
            return found
    steps = ", ".join(p.name for p in numbered)
    raise ExperimentError(f"{folder} has no checkpoint at step {step}; it has {steps}")


def _load_tree(path: Path) -> dict[str, Any]:
    """The arrays as saved, nested dicts and lists, on one device whatever they were saved from."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    saved = ocp.metadata(path).metadata

    def abstract_of(x: Any) -> Any:  # numbers and text of Python are loaded as they are
        array = hasattr(x, "shape")
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) if array else x

    abstract = jax.tree.map(abstract_of, saved)
    loaded = ocp.load(path, abstract)
    if not isinstance(loaded, dict):
        raise ValueError("it holds no dict of parameters")
    return loaded


def _from_msgpack(path: Path) -> dict[str, Any]:
    from flax import serialization

    try:
        tree = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:
        raise ExperimentError(f"{path} is neither a folder nor a flax msgpack file") from error
    if not isinstance(tree, dict):
        raise ExperimentError(f"{path} is neither a folder nor a flax msgpack file of parameters")
    return jax.device_put(tree)


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
