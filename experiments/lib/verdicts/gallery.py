"""All finished runs on one page, and what the documentation keeps of them.

    python -m experiments report                        # runs/gallery.html, and the table of claims
    python -m experiments report --docs docs/gallery    # from the runs of two presets

With `--docs` the summaries of the runs of the presets cpu and real are copied to
`experiments/results/`, their figures, made small, to the folder, and the pages are written from
these summaries alone.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import registry
from experiments.lib.runs import rundir, sound
from experiments.lib.verdicts import pages, report
from experiments.lib.verdicts.summary import accepted, measured, table

PIXELS = 1100
FIELDS = {"title": str, "preset": str, "seeds": list, "command": str, "seconds": (int, float)}
FIELDS |= {"claims": list, "figures": list}


def main(arguments: Sequence[str]) -> int:
    """The command `report`; returns the exit status."""
    parser = argparse.ArgumentParser("python -m experiments report", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs lie")
    parser.add_argument("--docs", type=Path, help="write the documentation's pages here")
    parser.add_argument("--names", action="store_true", help="print the experiments with claims")
    options = parser.parse_args(arguments)
    if options.names:
        print("\n".join(with_claims()))
        return 0
    runs = finished(options.runs)
    if options.docs is not None:
        options.docs.mkdir(parents=True, exist_ok=True)
        keep_results(runs, pages.RESULTS, options.docs)
        pages.write_pages(pages.RESULTS, options.docs)
        return 0
    if not runs:
        print(f"no finished run with claims in {options.runs}; make experiments runs them all")
        return 1
    report.print_table(overview(summary for _, summary in runs))
    write_gallery(options.runs / "gallery.html", runs)
    print(options.runs / "gallery.html")
    return 0


def with_claims() -> list[str]:
    """The experiments that judge claims, found without importing any."""
    folder = Path(registry.__file__).parent
    found = []
    for name in registry.summaries():
        package = folder / name
        sources = package.glob("*.py") if package.is_dir() else [folder / f"{name}.py"]
        if any("lab.claim(" in s.read_text(encoding="utf-8") for s in sources):
            found.append(name)
    return found


def finished(runs: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The finished runs with claims in `runs/NAME/PRESET`, with their summaries.

    A summary that is damaged, or names a picture outside its folder, is left out with a warning.
    """
    found = []
    for path in sorted(runs.glob("*/*/summary.json")):
        try:
            summary = sound.json_object(path)
            if summary.get("experiment") != path.parent.parent.name or not summary.get("claims"):
                continue
            sound.json_object(path, **FIELDS)
            overview([summary])
            table(summary)
            outside = [f["file"] for f in summary["figures"] if not _inside(path.parent, f)]
            if outside:
                raise ValueError(f"its picture {outside[0]!r} is not in its folder")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            warnings.warn(
                f"{path} is damaged ({sound.reason(error)}) and left out; start its command again",
                stacklevel=2,
            )
            continue
        found.append((path.parent, summary))
    return found


def _inside(folder: Path, picture: Mapping[str, str]) -> bool:
    """Whether a summary names a file of its own folder, and no link out of it."""
    name = picture["file"]
    return Path(name).name == name and (folder / name).resolve().parent == folder.resolve()


def overview(summaries: Iterable[Mapping[str, Any]]) -> report.Table:
    """Every claim of every run, and its verdict."""
    rows = [
        (
            summary["experiment"],
            summary["preset"],
            claim["name"],
            measured(claim),
            accepted(claim["accepted"]),
            claim["verdict"],
        )
        for summary in summaries
        for claim in summary["claims"]
    ]
    count = {v: sum(row[-1] == v for row in rows) for v in dict.fromkeys(row[-1] for row in rows)}
    return report.Table(
        ("experiment", "preset", *pages.COLUMNS),
        rows,
        ", ".join(f"{number} {verdict}" for verdict, number in sorted(count.items())),
    )


def write_gallery(path: Path, runs: Sequence[tuple[Path, dict[str, Any]]]) -> None:
    """One page with the claims, verdicts and figures of all runs."""
    items: list[report.Item] = [overview(summary for _, summary in runs)]
    for folder, summary in runs:
        items.append(report.Heading(summary["title"]))
        items.append(report.Text(f"{summary['command']}, {summary['seconds']:.0f} s"))
        items.append(table(summary))
        items += [report.Text(f"{c['name']}: {c['statement']}") for c in summary["claims"]]
        items += [
            report.Picture(folder / f["file"], f["caption"])
            for f in summary["figures"]
            if (folder / f["file"]).exists()
        ]
    report.write_report(path, "Experiments: claims and verdicts", items)


def keep_results(runs: Sequence[tuple[Path, dict[str, Any]]], results: Path, docs: Path) -> None:
    """Copies the summaries of the runs of some presets, and their figures made small."""
    results.mkdir(exist_ok=True)
    for folder, summary in runs:
        if summary["preset"] not in pages.KEPT or folder.name != summary["preset"]:
            continue
        rundir.write_json(results / f"{pages.kept_name(summary)}.json", summary)
        for picture in summary["figures"]:
            shrink(folder / picture["file"], docs / pages.figure_name(summary, picture))


def shrink(source: Path, target: Path) -> None:
    """Writes a picture of moderate width, with at most 256 colours.

    By octrees: cutting at the median merges the colours of thin lines, of which there are few
    pixels.
    """
    from PIL import Image

    with Image.open(source) as image:
        small = image.convert("RGB")
        if small.width > PIXELS:
            height = round(small.height * PIXELS / small.width)
            small = small.resize((PIXELS, height), Image.Resampling.LANCZOS)
        few = small.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(target, format="PNG", optimize=True)
