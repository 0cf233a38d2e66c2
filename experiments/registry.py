"""Which experiments there are, and what each must offer.

An experiment is a module or package directly under `experiments/` with a top-level line
`EXPERIMENT = Experiment(...)`; its docstring's first line is its summary. Nothing is imported to
find or list them.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

Preset = Literal["smoke", "cpu", "real", "paper"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of every experiment, to which each adds its own."""

    preset: Preset = "cpu"
    """What to start from: smoke, seconds, not judged; cpu, minutes on two cores; real, the paper's
    kind of network on Fashion-MNIST; paper, the paper's own setting. All other options change
    single values of it."""

    out: Path | None = field(default=None, metadata={"identity": False})
    """The folder of the run. Default runs/NAME/PRESET."""

    seeds: int = 5
    """How many seeds to run."""

    first_seed: int = 100
    """The first seed; the others follow it. Ranges of claims are set on smaller ones."""

    share: str | None = field(default=None, metadata={"identity": False})
    """I/N: do only every N-th of the independent pieces of work, from the I-th. The process that
    finds all of them done judges; so does the same command without this option."""

    data_dir: str | None = field(default=None, metadata={"identity": False})
    """Sets $FLATJAX_DATA_DIR, where prepared data sets lie; without either, `data`."""

    deterministic: bool = field(default=False, metadata={"identity": False})
    """On a GPU: only operations whose result is the same every time, at some cost in speed. Runs
    that are killed and continued are then bitwise those of uninterrupted ones, as on a CPU."""

    quiet: bool = field(default=False, metadata={"identity": False})
    """No progress bars and messages."""

    def seed_range(self) -> range:
        """The seeds to run."""
        return range(self.first_seed, self.first_seed + self.seeds)


class Experiment(NamedTuple):
    """What an experiment's module offers under the name `EXPERIMENT`.

    Attributes:
      main: runs it, given its configuration with `out` filled in.
      presets: its configurations by preset.
      shares: whether its work is in pieces (see `experiments.lib.runs.shares`): it takes `--share`.
      data_parallel: whether processes can share its batches: it takes `--distributed`.
    """

    main: Callable[[Any], Any]
    presets: Mapping[str, Options]
    shares: bool = False
    data_parallel: bool = False


class UnknownExperiment(LookupError):
    """There is no experiment of that name; the message lists those there are."""


def summaries() -> dict[str, str]:
    """Returns the first line of each experiment's docstring, by name, without importing any."""
    found = {}
    for path in sorted(Path(__file__).parent.iterdir()):
        name = path.stem
        source = path / "__init__.py" if path.is_dir() else path
        if name.startswith("_") or source.suffix != ".py" or not source.exists():
            continue
        tree = ast.parse(source.read_text(encoding="utf-8"))
        if any(_assigns_experiment(node) for node in tree.body):
            found[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def _assigns_experiment(node: ast.stmt) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(t, ast.Name) and t.id == "EXPERIMENT" for t in targets)


def load(name: str) -> tuple[Experiment, str]:
    """Imports an experiment.

    Args:
      name: one of `summaries()`, or the dotted name of any importable module with `EXPERIMENT`.

    Returns:
      The experiment and its module's docstring.

    Raises:
      UnknownExperiment: there is none of that name.
    """
    known = summaries()
    module_name = f"experiments.{name}" if name in known else name
    if not _importable(module_name):
        raise UnknownExperiment(f"no experiment {name!r}; there are: {', '.join(known) or 'none'}")
    module = importlib.import_module(module_name)
    experiment = getattr(module, "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise UnknownExperiment(f"module {module_name} has no EXPERIMENT = Experiment(...)")
    return experiment, module.__doc__ or ""


def _importable(module_name: str) -> bool:
    try:
        return importlib.util.find_spec(module_name) is not None
    except (ImportError, ValueError):  # a parent is missing, or it is no name at all
        return False


def with_folder(config: Options, name: str) -> Options:
    """Fills in the default folder."""
    if config.out is not None:
        return config
    return dataclasses.replace(config, out=Path("runs", name.rpartition(".")[2], config.preset))
