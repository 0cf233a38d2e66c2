"""Claims of papers, judged by code: a measured number, the accepted range, the verdict.

    rises = Claim("sharpness-settles", "Sharpness settles at 2/eta.", "Cohen et al. 2021",
                  low=0.97, high=1.05, reason="0.98 to 1.03 on seeds 0-4")
    with run_folder(config) as out:
        values = {seed: measure(seed) for seed in config.seed_range()}
        write_summary(out, config, [judge(rises, values)])

Accepted ranges stand in code and are set on other seeds than those that are judged.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.lib import distributed, report, rundir
from experiments.lib.config import identity
from experiments.lib.metrics import jsonable
from experiments.lib.paths import as_path
from experiments.registry import ExperimentConfig

Judgement = Literal["reproduced", "not reproduced", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper says, as a range of one measured number."""

    name: str
    """A short name, words joined by hyphens."""

    statement: str
    """One sentence; it says what is measured."""

    paper: str
    """Where it is claimed."""

    low: float | None = None
    """The least accepted value; None for no bound ..."""

    high: float | None = None
    """... and the largest."""

    reason: str
    """Where the range comes from, and on which seeds it was set."""

    def __post_init__(self):
        if self.low is None and self.high is None:
            raise ValueError(f"claim {self.name!r} accepts every number: give low or high")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"claim {self.name!r} accepts no number: low is above high")


class Verdict(NamedTuple):
    """A claim beside its measurement.

    Attributes:
      claim: the claim.
      values: the measured number of each seed; None where it is missing.
      mean: their mean; None unless all are there and finite.
      standard_error: of the mean; None with a single seed.
      verdict: see `judge`.
    """

    claim: Claim
    values: dict[int, float | None]
    mean: float | None
    standard_error: float | None
    verdict: Judgement


def judge(claim: Claim, values: Mapping[int, Any]) -> Verdict:
    """Compares the numbers of all seeds with the accepted range.

    Args:
      claim: the claim.
      values: its number for each seed.

    Returns:
      `inconclusive` if a number is missing or not finite, or if the interval of two standard
      errors about the mean reaches over a bound; `reproduced` if that interval lies in the range;
      else `not reproduced`. A single seed has no standard error and counts by its value alone.
    """
    numbers = {int(s): None if v is None else float(v) for s, v in values.items()}
    known = [v for v in numbers.values() if v is not None and math.isfinite(v)]
    if not known or len(known) < len(numbers):
        return Verdict(claim, numbers, None, None, "inconclusive")
    mean = float(np.mean(known))
    error = float(np.std(known, ddof=1) / math.sqrt(len(known))) if len(known) > 1 else None
    reach = 2 * (error or 0.0)
    low = -math.inf if claim.low is None else claim.low
    high = math.inf if claim.high is None else claim.high
    verdict: Judgement = "not reproduced"
    if low <= mean - reach and mean + reach <= high:
        verdict = "reproduced"
    elif mean + reach >= low and mean - reach <= high:
        verdict = "inconclusive"
    return Verdict(claim, numbers, mean, error, verdict)


class Figure(NamedTuple):
    """A picture in the run's folder.

    Attributes:
      file: its name there.
      caption: what it shows.
    """

    file: str
    caption: str


@contextlib.contextmanager
def run_folder(config: ExperimentConfig) -> Iterator[Path]:
    """Opens the run's folder: held for this process, its configuration checked and recorded.

    Raises:
      ConfigMismatch: it holds a run of another configuration.
      RunLocked: another process works in it.
    """
    if config.out is None:
        raise ValueError("the configuration names no folder; see experiments.registry.with_folder")
    folder = as_path(config.out)
    with contextlib.ExitStack() as stack:
        distributed.on_primary(lambda: stack.enter_context(rundir.locked(folder)))
        rundir.check_config(folder, identity(config), identity(config))
        rundir.record_environment(folder)
        # A path in a bucket has the methods of a `Path`.
        yield folder


def write_summary(
    folder: Path,
    config: ExperimentConfig,
    verdicts: Sequence[Verdict],
    figures: Sequence[Figure] = (),
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes `summary.json` and `report.html`, and prints the table of claims.

    Args:
      folder: the run's folder, from `run_folder`.
      config: the experiment's configuration, an instance of a class of its module.
      verdicts: what was found.
      figures: the pictures.
      extra: more numbers.

    Returns:
      The summary.
    """
    name = experiment_name(config)
    summary = {
        "experiment": name,
        "title": documentation(name)[0],
        "preset": config.preset,
        "seeds": list(config.seed_range()),
        "command": command(name, config),
        "seconds": _seconds(folder),
        "claims": [_as_json(v) for v in verdicts],
        "figures": [figure._asdict() for figure in figures],
        "extra": jsonable(extra or {}),
    }
    rundir.write_json(folder / "summary.json", summary)
    shown = table(summary)
    report.print_table(shown, title=f"{name} ({config.preset})")
    report.write_report(
        folder / "report.html",
        summary["title"],
        [
            report.Text(f"{summary['command']}, {summary['seconds']:.0f} s"),
            shown,
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
            "reason": claim.reason,
            "verdict": verdict.verdict,
        }
    )


def _seconds(folder: Path) -> float:
    """The longest start: showing a finished run again does not count."""
    started = datetime.strptime(
        rundir.read_json(folder / "env.json")["starts"][-1]["started"], "%Y-%m-%dT%H:%M:%SZ"
    ).replace(tzinfo=UTC)
    before = (rundir.read_json(folder / "summary.json") or {}).get("seconds", 0.0)
    return max(before, time.time() - started.timestamp(), 0.0)


def table(summary: Mapping[str, Any]) -> report.Table:
    """The claims of a summary, one a row."""
    rows = [
        (c["name"], measured(c), accepted(c["accepted"]), c["verdict"], c["paper"])
        for c in summary["claims"]
    ]
    seeds = ", ".join(map(str, summary["seeds"]))
    return report.Table(
        ("claim", "measured", "accepted", "verdict", "paper"),
        rows,
        f"Mean and standard error over seeds {seeds}."
        if len(summary["seeds"]) > 1
        else f"Seed {seeds} alone: no standard error.",
    )


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


def experiment_name(config: ExperimentConfig) -> str:
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


def command(name: str, config: ExperimentConfig) -> str:
    """The command line that makes this run: the preset and what differs from it."""
    words = ["python -m experiments", name, "--preset", config.preset]
    try:
        presets = importlib.import_module(type(config).__module__).PRESETS
        default = identity(presets[config.preset])
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
