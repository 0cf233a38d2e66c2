"""What a judged run leaves: `summary.json`, `report.html`, and the table of its claims.

with run_folder(config) as out:
    values = {seed: measure(seed) for seed in config.seed_range()}
    write_summary(out, config, [judge(rises, values)])
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from experiments.lib.runs import distributed, rundir, shares
from experiments.lib.runs.identity import identity
from experiments.lib.runs.metrics import jsonable
from experiments.lib.runs.paths import as_path
from experiments.lib.verdicts import report
from experiments.lib.verdicts.claims import Verdict
from experiments.registry import Options


class Figure(NamedTuple):
    """A picture in the run's folder.

    Attributes:
      file: its name there.
      caption: what it shows.
    """

    file: str
    caption: str


@contextlib.contextmanager
def run_folder(config: Options) -> Iterator[Path]:
    """Opens the run's folder: held for this process, its configuration checked and recorded.

    Raises:
      ConfigMismatch: it holds a run of another configuration.
      RunLocked: another process works in it, or on the same share.
    """
    if config.out is None:
        raise ValueError("the configuration names no folder; see experiments.registry.with_folder")
    folder = as_path(config.out)
    with contextlib.ExitStack() as stack:
        share = shares.parse(config.share)
        distributed.on_primary(
            lambda: stack.enter_context(rundir.locked(folder, shared=share is not None))
        )
        own = folder
        if share is not None:
            own = shares.folder(folder, share)
            stack.enter_context(rundir.locked(own))
        rundir.check_config(folder, identity(config), identity(config))
        rundir.record_environment(own)
        # A path in a bucket has the methods of a `Path`.
        yield folder


def write_summary(
    folder: Path,
    config: Options,
    verdicts: Sequence[Verdict],
    figures: Sequence[Figure] = (),
    extra: Mapping[str, Any] | None = None,
    tables: Sequence[report.Table] = (),
    title: str | None = None,
) -> dict[str, Any]:
    """Writes `summary.json` and `report.html`, and prints the table of claims, if there are any.

    Into a folder that may not be written nothing is: a finished run is shown.

    Args:
      folder: the run's folder, from `run_folder`.
      config: the experiment's configuration, an instance of a class of its module.
      verdicts: what was found.
      figures: the pictures.
      extra: more numbers.
      tables: more tables for the report.
      title: of the report; default the first line of the documentation.

    Returns:
      The summary.
    """
    name = experiment_name(config)
    summary = {
        "experiment": name,
        "title": title or documentation(name)[0],
        "preset": config.preset,
        "seeds": list(config.seed_range()),
        "command": command(name, config),
        "seconds": _seconds(folder),
        "claims": [_as_json(v) for v in verdicts],
        "figures": [figure._asdict() for figure in figures],
        "extra": jsonable(extra or {}),
    }
    judged = [table(summary)] if verdicts else []
    for shown in judged:
        report.print_table(shown, title=f"{name} ({config.preset})")
    if not rundir.writable(folder):
        return summary
    rundir.write_json(folder / "summary.json", summary)
    report.write_report(
        folder / "report.html",
        summary["title"],
        [
            report.Text(f"{summary['command']}, {summary['seconds']:.0f} s"),
            *judged,
            *tables,
            *(report.Text(f"{v.claim.name}: {v.claim.statement}") for v in verdicts),
            *(report.Picture(folder / figure.file, figure.caption) for figure in figures),
            report.Details("All numbers", summary),
        ],
    )
    if distributed.is_first():
        print(folder / "report.html")
    return summary


def _as_json(verdict: Verdict) -> dict[str, Any]:
    claim = verdict.claim
    return jsonable(
        {
            "name": claim.name,
            "statement": claim.statement,
            "paper": claim.paper,
            "measured": verdict.mean,
            "standard_error": verdict.standard_error,
            "values": verdict.values,
            "accepted": [claim.low, claim.high],
            "source": claim.source,
            "reason": claim.reason,
            "null": verdict.null,
            "verdict": verdict.verdict,
        }
    )


def _seconds(folder: Path) -> float:
    """The longest start, or the shares: showing a finished run again does not count."""
    then = "made again"
    path = folder / "summary.json"
    found = rundir.read_json(path, seconds=(int, float), then=then) or {"seconds": 0.0}
    if not rundir.writable(folder):  # this start is not among those written down
        return found["seconds"]
    started = datetime.strptime(
        rundir.read_json(folder / "env.json")["starts"][-1]["started"], "%Y-%m-%dT%H:%M:%SZ"
    ).replace(tzinfo=UTC)
    return max(found["seconds"], time.time() - started.timestamp(), shares.seconds(folder))


def table(summary: Mapping[str, Any]) -> report.Table:
    """The claims of a summary, one a row."""
    rows = [
        (c["name"], measured(c), accepted(c["accepted"]), c["verdict"], _null(c), c["paper"])
        for c in summary["claims"]
    ]
    seeds = ", ".join(map(str, summary["seeds"]))
    return report.Table(
        ("claim", "measured", "accepted", "verdict", "null", "paper"),
        rows,
        f"Mean and standard error over seeds {seeds}."
        if len(summary["seeds"]) > 1
        else f"Seed {seeds} alone: no standard error.",
    )


def _null(claim: Mapping[str, Any]) -> str:
    null = claim.get("null")
    return "" if null is None else f"{null:.3g}"


def measured(claim: Mapping[str, Any]) -> str:
    """The measured number of a claim of a summary with its standard error."""
    if claim["measured"] is None:
        return "not measured"
    error = claim["standard_error"]
    return f"{claim['measured']:.4g}" + ("" if error is None else f" ± {error:.2g}")


def accepted(bounds: Sequence[float | None]) -> str:
    """A range in words."""
    low, high = bounds
    if low is None:
        return f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"{low:g} to {high:g}"


def experiment_name(config: Options) -> str:
    """The experiment whose configuration this is."""
    parts = type(config).__module__.split(".")
    return parts[1] if parts[0] == "experiments" and len(parts) > 1 else parts[-1]


def documentation(name: str) -> tuple[str, str]:
    """First line and rest of the docstring of an experiment; its name if it has none."""
    try:
        text = importlib.import_module(f"experiments.{name}").__doc__
    except ModuleNotFoundError:
        text = None
    first, _, rest = (text or name).partition("\n")
    return first.strip(), rest.strip()


def command(name: str, config: Options) -> str:
    """The command line that makes this run: the preset and what differs from it."""
    words = ["python -m experiments", name, "--preset", config.preset]
    try:
        experiment = importlib.import_module(type(config).__module__).EXPERIMENT
        default = identity(experiment.presets[config.preset])
    except (AttributeError, KeyError):
        default = identity(config)
    for path, value in _changes(default, identity(config)):
        words += [f"--{path.replace('_', '-')}", _word(value)]
    return " ".join(words)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[tuple]:
    found = []
    for name, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(name), dict):
            found += _changes(old[name], value, f"{prefix}{name}.")
        elif old.get(name) != value and name != "preset":
            found.append((prefix + name, value))
    return found


def _word(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
