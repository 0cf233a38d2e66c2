"""A run's one-page report: `report.html`, a single file that needs nothing beside it.

write_report(folder / "report.html", "SGD and SAM", [
    Text("Both stop at the same training loss."),
    Table(("quantity", "SGD", "SAM"), [("steps", "500", "700")]),
    Picture(folder / "loss.png", "The loss along training."),
])
"""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.lib.runs import distributed
from experiments.lib.runs.paths import as_path, write_text


class Heading(NamedTuple):
    """The title of a section."""

    text: str


class Text(NamedTuple):
    """A paragraph of plain text."""

    text: str


class Table(NamedTuple):
    """A table of text; numbers come formatted, or are shown as they print.

    Attributes:
      columns: the head of each column.
      rows: the cells, as many in each row as there are columns.
      caption: what is to be known to read it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


class Picture(NamedTuple):
    """A PNG file, embedded.

    Attributes:
      path: the file.
      caption: what it shows.
    """

    path: Path
    caption: str


class Details(NamedTuple):
    """JSON values, folded away.

    Attributes:
      summary: what is shown while folded.
      values: the values.
    """

    summary: str
    values: Mapping[str, Any]


Item = Heading | Text | Table | Picture | Details

_CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; color: #1a1a1a;
       background: #fff; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .3rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; border-bottom: 1px solid #e4e4e4;
         white-space: nowrap; }
th { border-bottom: 2px solid #888; } th:first-child, td:first-child { text-align: left; }
tbody tr:hover { background: #f6f8fa; }
figure { margin: 1.2rem 0; } img { max-width: 100%; height: auto; }
figcaption, .caption { color: #444; font-size: .92rem; max-width: 50rem; }
pre { background: #f6f8fa; padding: .8rem; overflow-x: auto; font-size: .82rem; }
summary { cursor: pointer; margin-top: .8rem; }
"""


def write_report(path: str | os.PathLike[str], title: str, items: Sequence[Item]) -> None:
    """Writes the page, at once or not at all.

    Args:
      path: the HTML file.
      title: the page's title.
      items: what stands on it, in order.

    Raises:
      ValueError: a row of a table has another number of cells than it has columns.
    """
    if not distributed.is_first():
        return
    body = "\n".join(_html(item) for item in items)
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )
    write_text(as_path(path), page)


def _html(item: Item) -> str:
    if isinstance(item, Heading):
        return f"<h2>{html.escape(item.text)}</h2>"
    if isinstance(item, Text):
        return f"<p>{html.escape(item.text)}</p>"
    if isinstance(item, Table):
        return _table(item)
    if isinstance(item, Picture):
        data = base64.b64encode(as_path(item.path).read_bytes()).decode("ascii")
        caption = html.escape(item.caption)
        return (
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    text = html.escape(json.dumps(item.values, indent=2))
    return f"<details><summary>{html.escape(item.summary)}</summary><pre>{text}</pre></details>"


def _table(table: Table) -> str:
    for row in table.rows:
        if len(row) != len(table.columns):
            raise ValueError(f"a row of {len(row)} cells under {len(table.columns)} columns: {row}")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    rows = "\n".join(
        f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>"
        for row in table.rows
    )
    caption = f'<p class="caption">{html.escape(table.caption)}</p>' if table.caption else ""
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n'
        f"</table></div>\n{caption}"
    )


def print_table(table: Table, *, title: str = "") -> None:
    """Prints a table to standard output; as wide as it must be where output goes to a file.

    Of several processes at work together only the first one prints.
    """
    if not distributed.is_first():
        return
    import sys

    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text as RichText

    shown = RichTable(title=title or None, title_justify="left", caption_justify="left")
    for position, name in enumerate(table.columns):
        shown.add_column(RichText(name), justify="right" if position else "left", no_wrap=True)
    for row in table.rows:
        shown.add_row(*(RichText(str(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(shown)
    if table.caption:
        console.print(RichText(table.caption))
