"""What the tests of the repository itself share: its root, its files, its public names."""

import dataclasses
import importlib
import inspect
import pathlib
import shutil
import subprocess
import tomllib
import types

import flatjax

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "flatjax"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Every public name is one of `flatjax` or of one of these rooms; most are both.
ROOMS = (
    "operators",
    "preflight",
    "optimizers",
    "losses",
    "linalg",
    "transforms",
    "measures",
    "landscape",
    "ensembles",
    "paths",
    "symmetry",
    "parallel",
    "loops",
    "plots",
)


@dataclasses.dataclass(frozen=True)
class PublicName:
    name: str  # as the user writes it
    value: object


def public_names() -> list[PublicName]:
    """The functions and classes a user may call: of `flatjax` and of its rooms, each once."""
    names = [
        PublicName(f"flatjax.{name}", value)
        for name, value in vars(flatjax).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    ]
    for room in ROOMS:
        names += [
            PublicName(f"flatjax.{room}.{name}", value)
            for name, value in vars(importlib.import_module(f"flatjax.{room}")).items()
            if not name.startswith("_")
            and (inspect.isfunction(value) or inspect.isclass(value))
            and value.__module__.startswith("flatjax.")
            and not hasattr(flatjax, name)
        ]
    return sorted(names, key=lambda item: item.name)


def tracked_files() -> list[pathlib.Path]:
    """The files of the repository: git's list, or what is on disk where there is no git."""
    if shutil.which("git") and (ROOT / ".git").exists():
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        paths = [ROOT / name for name in listing.split("\0") if name]
        return [path for path in paths if path.is_file()]
    folders = ["flatjax", "tests", "experiments", "benchmarks", "docs", "requirements"]
    top = [path for path in ROOT.iterdir() if path.is_file()]
    return top + [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]
