"""All finished runs on one page, and the pages of the documentation.

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
from experiments.lib.verdicts import report, talks
from experiments.lib.verdicts.summary import accepted, documentation, measured, table

RESULTS = Path(__file__).parents[2] / "results"
KEPT = {"cpu": "Claims", "real": "On real data"}
"""The presets whose runs the documentation shows, and the headings there."""
PIXELS = 1100
COLUMNS = ("claim", "measured", "accepted", "verdict")
FIELDS = {"title": str, "preset": str, "seeds": list, "command": str, "seconds": (int, float)}
FIELDS |= {"claims": list, "figures": list}
VERDICTS = ("reproduced", "not reproduced", "inconclusive", "void")


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
        keep_results(runs, RESULTS, options.docs)
        write_pages(RESULTS, options.docs)
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
        ("experiment", "preset", *COLUMNS),
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
        if summary["preset"] not in KEPT or folder.name != summary["preset"]:
            continue
        rundir.write_json(results / f"{kept_name(summary)}.json", summary)
        for picture in summary["figures"]:
            shrink(folder / picture["file"], docs / figure_name(summary, picture))


def kept_name(summary: Mapping[str, Any]) -> str:
    """What begins the names of a run's kept files."""
    preset = summary["preset"]
    return summary["experiment"] + ("" if preset == "cpu" else f"-{preset}")


def figure_name(summary: Mapping[str, Any], picture: Mapping[str, str]) -> str:
    """The file of a figure in the documentation."""
    return f"{kept_name(summary)}-{picture['file']}"


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


def write_pages(results: Path, docs: Path) -> None:
    """Writes the page of every kept summary, and the index."""
    for name, text in pages(results).items():
        (docs / name).write_text(text, encoding="utf-8")


def pages(results: Path) -> dict[str, str]:
    """The documentation's pages by file name, from the kept summaries alone."""
    kept = [rundir.read_json(path) for path in sorted(results.glob("*.json"))]
    summaries = {
        preset: {s["experiment"]: s for s in kept if s["preset"] == preset} for preset in KEPT
    }
    found = {
        f"{name}.md": page([of[name] for of in summaries.values() if name in of])
        for name in sorted({name for of in summaries.values() for name in of})
    }
    return found | {
        "index.md": index({k: list(of.values()) for k, of in summaries.items()}),
        "talks.md": talks.page(kept, talks.talks()),
    }


def _origin(claim: Mapping[str, Any]) -> str:
    """Where the range of a claim of a summary comes from."""
    sources = {
        "paper": "the paper's",
        "theory": "by theory",
        "sign": "a sign",
        "margin": "a sign with a margin",
        "seeds": "",
    }
    source = sources[claim.get("source", "seeds")]
    reason = (": " if source and claim["reason"] else "") + claim["reason"]
    null = f"; what must not pass: {claim['null']:.4g}" if claim.get("null") is not None else ""
    return source + reason + null


def index(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The page that lists all experiments and their verdicts, by preset."""
    lines = [
        "# Gallery",
        "",
        "Claims of papers, each measured and judged by code: on small networks and the digits over "
        "five seeds (`--preset cpu`), and some on the paper's kind of network and Fashion-MNIST "
        "over three (`--preset real`). The accepted ranges come from papers, theory, signs (some "
        "with a margin) or other seeds, and were fixed before the judged seeds were run, once. "
        "What was not reproduced stands here too, and a claim is void if something passes that "
        "must not. `make experiments` runs the small ones. Seconds are by the clock, beside "
        "other work.",
        "",
    ]
    for preset, found in summaries.items():
        if not found:
            continue
        lines += [f"| {preset} | {' | '.join(VERDICTS)} | seconds |", "|---|---|---|---|---|---|"]
        for s in found:
            verdicts = [c["verdict"] for c in s["claims"]]
            counts = [str(verdicts.count(v)) for v in VERDICTS]
            name = s["experiment"]
            lines.append(f"| [{name}]({name}.md) | {' | '.join(counts)} | {s['seconds']:.0f} |")
        lines.append("")
    return "\n".join(lines)


def page(summaries: Sequence[Mapping[str, Any]]) -> str:
    """The page of one experiment, of its runs with all presets."""
    title, text = documentation(summaries[0]["experiment"])
    lines = [f"# {title.rstrip('.')}", "", text, ""]
    for summary in summaries:
        lines += _section(summary)
    return "\n".join(lines).rstrip() + "\n"


def _section(summary: Mapping[str, Any]) -> list[str]:
    """The lines of one run."""
    seeds = ", ".join(map(str, summary["seeds"]))
    lines = [f"## {KEPT[summary['preset']]}", ""]
    lines += [f"Seeds {seeds}; {summary['seconds']:.0f} s:", ""]
    lines += ["```text", summary["command"], "```", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "|---|---|---|---|"]
    for c in summary["claims"]:
        row = c["name"], measured(c), accepted(c["accepted"]), f"**{c['verdict']}**"
        lines.append(f"| {' | '.join(row)} |")
    lines.append("")
    for c in summary["claims"]:
        lines.append(f"- *{c['name']}*: {c['statement']} ({c['paper']}; range {_origin(c)}.)")
    lines.append("")
    for picture in summary["figures"]:
        lines += [f"![{picture['caption']}]({figure_name(summary, picture)})", ""]
        lines += [f"*{picture['caption']}*", ""]
    return lines
