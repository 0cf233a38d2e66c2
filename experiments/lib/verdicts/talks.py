"""The talks that the laboratory follows, figure by figure: a page from `experiments/talks.toml`.

Every item of a talk is judged by claims, done by the library, or left out with the reason. The
numbers and verdicts on the page are those of the kept results.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.lib.verdicts.badges import badge
from experiments.lib.verdicts.summary import measured

TALKS = Path(__file__).parents[2] / "talks.toml"
COLUMNS = ("figure or claim", "there", "here", "digits", "Fashion-MNIST", "why different")
INTRODUCTION = """# The talks, figure by figure

This laboratory grew from five talks on flat minima. Every figure and claim of theirs stands here:
with the claims that judge it and what came out on digits (`--preset cpu`) and on Fashion-MNIST
(`--preset real`), with the names of the library that do it, or with the reason why it is left out.
Ranges, sources and figures are on the pages of the experiments; what was not reproduced is said
in the same words as what was."""

# A claim by "experiment.claim", for every preset.
Judged = Mapping[str, Mapping[str, Mapping[str, Any]]]


def talks(path: Path = TALKS) -> list[dict[str, Any]]:
    """The talks and their items, as they stand in the file."""
    return tomllib.loads(path.read_text(encoding="utf-8"))["talks"]


def judged(summaries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """All claims of some summaries: `experiment.claim`, then the preset."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for summary in summaries:
        for claim in summary["claims"]:
            name = f"{summary['experiment']}.{claim['name']}"
            found.setdefault(name, {})[summary["preset"]] = claim
    return found


def page(summaries: Sequence[Mapping[str, Any]], told: Sequence[Mapping[str, Any]]) -> str:
    """The page, of kept summaries and the talks."""
    claims = judged(summaries)
    lines = [INTRODUCTION, ""]
    for talk in told:
        lines += [f"## {talk['title']}", "", f"{talk['by']}.", ""]
        lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        for item in talk["items"]:
            lines += _rows(item, claims)
        lines.append("")
    return "\n".join(lines)


def _rows(item: Mapping[str, Any], claims: Judged) -> list[str]:
    """One row per claim of an item; what is said of the item stands in the first."""
    here = [f"`{name}`" for name in item.get("library", ())]
    if "left_out" in item:
        here = ["left out"]
    cells = [(", ".join(here), "", "")] if here else []
    for name in item.get("claims", ()):
        experiment, claim = name.split(".", 1)
        of = claims.get(name, {})
        cells.append(
            (f"[{experiment}]({experiment}.md): {claim}", _said(of, "cpu"), _said(of, "real"))
        )
    first, *others = cells or [("reported", "", "")]
    why = item.get("left_out", item.get("why", ""))
    return [
        _row(item["what"], item.get("talk", ""), *first, why),
        *(_row("", "", *cell, "") for cell in others),
    ]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _said(of: Mapping[str, Mapping[str, Any]], preset: str) -> str:
    claim = of.get(preset)
    return "" if claim is None else f"{measured(claim)} {badge(claim['verdict'])}"
