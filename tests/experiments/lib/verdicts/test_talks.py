"""The page of the talks: what it names exists, and its rows say what the results say."""

import pytest

import flatjax
from experiments.lib.runs import rundir
from experiments.lib.verdicts import pages, talks
from experiments.lib.verdicts.badges import badge

TALKS = talks.talks()
ITEMS = [item for talk in TALKS for item in talk["items"]]
KEPT = [rundir.read_json(path) for path in sorted(pages.RESULTS.glob("*.json"))]


def claim(name, **changes):
    return {"name": name, "measured": 1.5, "standard_error": 0.25, "verdict": "void"} | changes


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item["what"][:40])
def test_every_item_is_judged_or_done_or_left_out_with_a_reason(item):
    assert set(item) <= {"what", "talk", "claims", "library", "why", "left_out"}
    assert ("left_out" in item) != any(key in item for key in ("claims", "library", "why"))
    assert all(name in talks.judged(KEPT) for name in item.get("claims", ()))
    for name in item.get("library", ()):
        assert hasattr(flatjax, name.removeprefix("flatjax.")), name


def test_every_judged_experiment_of_a_paper_stands_on_the_page():
    named = {name.split(".")[0] for item in ITEMS for name in item.get("claims", ())}
    assert {summary["experiment"] for summary in KEPT} <= named


def test_rows():
    told = [
        {
            "title": "T", "by": "B",
            "items": [
                {"what": "W", "talk": "2", "why": "small", "claims": ["e.c", "e.d"],
                 "library": ["flatjax.x"]},
                {"what": "a|b", "left_out": "dear"},
                {"what": "seen", "why": "reported by e"},
            ],
        }
    ]  # fmt: skip
    results = [
        {"experiment": "e", "preset": "cpu", "claims": [claim("c"), claim("d", measured=None)]},
        {"experiment": "e", "preset": "real", "claims": [claim("c", verdict="reproduced")]},
    ]
    void, reproduced = badge("void"), badge("reproduced")
    lines = talks.page(results, told).split("## T\n")[1].splitlines()
    assert lines[5:] == [
        "| W | 2 | `flatjax.x` |  |  | small |",
        f"|  |  | [e](e.md): c | 1.5 ± 0.25 {void} | 1.5 ± 0.25 {reproduced} |  |",
        f"|  |  | [e](e.md): d | not measured {void} |  |  |",
        "| a\\|b |  | left out |  |  | dear |",
        "| seen |  | reported |  |  | reported by e |",
    ]
