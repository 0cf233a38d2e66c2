"""The page and the table that are made from the committed results.

``docs/benchmarks.md`` is written whole, the README between its two markers. The plots are drawn too
where matplotlib is installed; everything else needs nothing but the JSON files.
"""

import json
import pathlib
from typing import Any

from benchmarks import _page

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
FIGURES = ROOT / "docs" / "_static"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def results(folder: pathlib.Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The records of a folder, by the name of the benchmark."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def between(text: str, table: str) -> str:
    """The text with the table between the markers; unchanged where it has no markers."""
    if BEGIN not in text or END not in text:
        return text
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    return f"{head}{BEGIN}\n{table}{END}{tail}"


def main() -> None:
    """Write page, table and plots."""
    found = results()
    PAGE.write_text(_page.page(found))
    README.write_text(between(README.read_text(), _page.readme(found)))
    try:
        from benchmarks import _figures
    except ImportError:
        print("   no plots: matplotlib is not installed")
        return
    _figures.draw(found, FIGURES)
