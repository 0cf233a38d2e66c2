"""What a finished quickstart leaves: `summary.json`, figures, `report.html`; and showing it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.lib.runs import distributed, rundir
from experiments.lib.runs.progress import say
from experiments.lib.verdicts.report import (
    Details,
    Heading,
    Picture,
    Text,
    print_table,
    write_report,
)
from experiments.quickstart import table

if TYPE_CHECKING:
    from experiments.quickstart.table import Run


def finished(folder: Path) -> bool:
    """Whether everything is there."""
    then = "the report is made again"
    summary = rundir.read_json(folder / "summary.json", figures=list, table=list, then=then)
    return summary is not None and distributed.on_primary(
        lambda: all((folder / name).exists() for name in [*summary["figures"], "report.html"])
    )


def write(
    folder: Path,
    config: Mapping[str, Any],
    runs: Sequence[Run],
    *,
    title: str = "SGD and SAM on partly wrong labels",
    marks: Mapping[str, float | None] | None = None,
) -> None:
    """Writes figures, report and, last of all, the summary that marks the run as finished."""
    from experiments.quickstart import pictures

    rows = table.rows(runs)
    sentence = table.sentence(rows, runs)
    drawn = pictures.draw_all(folder / "figures", runs, pictures.Marks(**marks or {}))
    summary = {
        "experiment": "quickstart",
        "sentence": sentence,
        "table": table.as_json(rows),
        "runs": [_described(run) for run in runs],
        "figures": [str(path.relative_to(folder)) for path in drawn],
        "config": dict(config),
    }
    items: list[Any] = [Text(sentence), table.as_table(rows), Heading("Figures")]
    items += [Picture(path, pictures.CAPTIONS[path.name]) for path in drawn]
    items += [Heading("How it was made"), Text(_measured_on(runs[0]))]
    environment = rundir.read_json(folder / "env.json")
    if environment:
        start = environment["starts"][-1]
        items.append(Text(f"Command: python -m experiments {shlex.join(start['command'][1:])}"))
        items.append(Details("Versions and machine", start))
    items.append(Details("Configuration", dict(config)))
    write_report(folder / "report.html", title, items)
    rundir.write_json(folder / "summary.json", summary)


def _described(run: Run) -> dict[str, Any]:
    """A run's numbers, without the curves of its pictures."""
    final = {k: v for k, v in run.final.items() if k not in ("density", "lines")}
    return {"arm": run.arm, "seed": run.seed, "evaluation": dict(run.evaluations[-1]), **final}


def _measured_on(run: Run) -> str:
    return (
        f"A network of {run.final['parameters']:,} parameters; H, K and F are those of the mean "
        f"loss over a fixed set of {run.final['examples']} training examples, their wrong labels "
        "included, with dropout off and batch norm at its running averages. F is the exact Fisher "
        f"information. {table.NOTES}"
    )


def show(folder: Path) -> None:
    """Prints the table of a finished run, and where the rest is."""
    summary = rundir.read_json(folder / "summary.json")
    print_table(table.as_table(table.from_json(summary["table"])))
    if distributed.is_first():
        print(summary["sentence"])
    say(f"report: {folder / 'report.html'}")
