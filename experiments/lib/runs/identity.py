"""Dataclasses to JSON and back, and which of their fields make a run the run it is.

Fields marked `metadata={"identity": False}` (where data lie, how much is kept) may change between
starts of the same run; every other difference makes another run.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a dataclass as a dict of JSON values, tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """Rebuilds a (nested) dataclass from `to_dict`'s output.

    Raises:
      ValueError: `values` has a field the class has not.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})  # type: ignore[arg-type]
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}")
    return cls(**{name: _restore(hints[name], value) for name, value in values.items()})


def _restore(hint: Any, value: Any) -> Any:
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(value, dict):
            return from_dict(option, value)  # type: ignore[arg-type]
        if typing.get_origin(option) is tuple and isinstance(value, list):
            return tuple(value)
    return value


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def identity(config: Any) -> dict[str, Any]:
    """Returns the fields that make a run the run it is, as JSON values."""
    kept = {}
    for f in dataclasses.fields(config):
        if f.metadata.get("identity", True):
            value = getattr(config, f.name)
            kept[f.name] = identity(value) if dataclasses.is_dataclass(value) else value
    return json.loads(json.dumps(kept))


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Returns `path: old -> new` for every place where two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in sorted(old.keys() | new.keys()):
            path = f"{prefix}.{name}" if prefix else name
            found += differences(old.get(name), new.get(name), path)
        return found
    return [] if old == new else [f"{prefix}: {json.dumps(old)} -> {json.dumps(new)}"]
