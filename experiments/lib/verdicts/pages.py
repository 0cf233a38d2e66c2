"""The documentation's pages of the gallery, from the kept results alone.

They are Markdown with a little HTML, whose classes `docs/_static/site.css` knows; without it, the
pages read as well. Pictures come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.lib.runs import rundir
from experiments.lib.verdicts import talks
from experiments.lib.verdicts.badges import badge, counted
from experiments.lib.verdicts.summary import accepted, documentation, measured

RESULTS = Path(__file__).parents[2] / "results"
KEPT = {"cpu": "Claims", "real": "On real data"}
"""The presets whose runs the documentation shows, and the headings there."""
COLUMNS = ("claim", "measured", "accepted", "verdict")
NAMES = {"fisher": "Fisher", "hessian": "Hessian", "sam": "SAM", "sgd": "SGD", "vs": "against"}
"""The words of experiments' names that are not written small."""
INTRODUCTION = """# Gallery

Claims of papers, each measured and judged by code: on small networks and the digits over five seeds
(`--preset cpu`), and some on the paper's kind of network and Fashion-MNIST over three
(`--preset real`). The accepted ranges come from papers, theory, signs (some with a margin) or other
seeds, and were fixed before the judged seeds were run, once. What was not reproduced stands here
too, and a claim is void if something passes that must not. `make experiments` runs the small ones.
[The talks, figure by figure](talks.md) has the same claims in the order of the talks."""
CONTENTS = """```{toctree}
:glob:
:hidden:

talks
*
```"""


def kept_name(summary: Mapping[str, Any]) -> str:
    """What begins the names of a run's kept files."""
    preset = summary["preset"]
    return summary["experiment"] + ("" if preset == "cpu" else f"-{preset}")


def figure_name(summary: Mapping[str, Any], picture: Mapping[str, str]) -> str:
    """The file of a figure in the documentation."""
    return f"{kept_name(summary)}-{picture['file']}"


def write_pages(results: Path, docs: Path) -> None:
    """Writes the page of every kept summary, and the index."""
    for name, text in pages(results).items():
        (docs / name).write_text(text, encoding="utf-8")


def pages(results: Path) -> dict[str, str]:
    """The documentation's pages by file name, from the kept summaries alone."""
    kept = [rundir.read_json(path) for path in sorted(results.glob("*.json"))]
    found = {(s["experiment"], s["preset"]): s for s in kept}
    runs = {
        name: [found[name, preset] for preset in KEPT if (name, preset) in found]
        for name in sorted({name for name, _ in found})
    }
    return {f"{name}.md": page(of) for name, of in runs.items()} | {
        "index.md": index(list(runs.values())),
        "talks.md": talks.page(kept, talks.talks()),
    }


def title(name: str) -> str:
    """The few words that name an experiment in headings and side bars."""
    words = " ".join(NAMES.get(word, word) for word in name.split("_"))
    return words[:1].upper() + words[1:]


def sentence(name: str) -> str:
    """What an experiment is about, below its title: the first line of its documentation."""
    first, _ = documentation(name)
    heading = f"{title(name)}: "
    if first.lower().startswith(heading.lower()):
        first = first[len(heading) :]
    return first[:1].upper() + first[1:]


def index(runs: Iterable[Sequence[Mapping[str, Any]]]) -> str:
    """The page with a thumbnail of every experiment and its verdicts."""
    runs = list(runs)
    lines = [INTRODUCTION, "", *_verdicts([s for of in runs for s in of])]
    lines += ['<div class="tiles pictures">', ""]
    for of in runs:
        lines += ['<div class="tile">', ""]
        name = of[0]["experiment"]
        for picture in of[0]["figures"][:1]:
            image = f"![{picture['caption']}]({figure_name(of[0], picture)})"
            lines += [f"[{image}]({name}.md)", ""]
        lines += [f"**[{title(name)}]({name}.md)**", "", sentence(name), ""]
        lines += [*_verdicts(of), "</div>", ""]
    return "\n".join([*lines, "</div>", "", CONTENTS, ""])


def _verdicts(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """How often each verdict was found, a paragraph of badges per preset."""
    lines = []
    for preset in KEPT:
        claims = [c for s in summaries if s["preset"] == preset for c in s["claims"]]
        if claims:
            lines += [f"`{preset}` {counted(c['verdict'] for c in claims)}", ""]
    return lines


def page(summaries: Sequence[Mapping[str, Any]]) -> str:
    """The page of one experiment, of its runs with all presets."""
    name = summaries[0]["experiment"]
    _, text = documentation(name)
    lines = [f"# {title(name)}", "", '<div class="lead">', "", sentence(name), "", "</div>", ""]
    lines += [*_verdicts(summaries), *_pictures(summaries[0], slice(1)), text, ""]
    for summary in summaries:
        shown = slice(1, None) if summary is summaries[0] else slice(None)
        lines += [f"## {KEPT[summary['preset']]}", "", *_pictures(summary, shown)]
        lines += _claims(summary)
    return "\n".join(lines).rstrip() + "\n"


def _pictures(summary: Mapping[str, Any], which: slice) -> list[str]:
    lines = []
    for picture in summary["figures"][which]:
        lines += [f"![{picture['caption']}]({figure_name(summary, picture)})", ""]
        lines += [f"*{picture['caption']}*", ""]
    return lines


def _claims(summary: Mapping[str, Any]) -> list[str]:
    """The lines of one run: its command, the table of its claims, and what they say."""
    seeds = ", ".join(map(str, summary["seeds"]))
    lines = [f"Seeds {seeds}; {summary['seconds']:.0f} s by the clock, beside other work:", ""]
    lines += ["```text", summary["command"], "```", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "|---|---|---|---|"]
    for c in summary["claims"]:
        row = c["name"], measured(c), accepted(c["accepted"]), badge(c["verdict"])
        lines.append(f"| {' | '.join(row)} |")
    lines.append("")
    for c in summary["claims"]:
        lines.append(f"- *{c['name']}*: {c['statement']} ({c['paper']}; range {_origin(c)}.)")
    return [*lines, ""]


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
