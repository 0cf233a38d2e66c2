"""Which fields of a configuration make a run the run it is, as JSON values.

Fields marked `metadata={"identity": False}` (where data lie, how much is kept) may change between
starts of the same run; every other difference makes another run.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any


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
