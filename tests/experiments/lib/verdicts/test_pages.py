"""The documentation's pages of the gallery: pictures first, and what the kept results say."""

import re

import pytest

from experiments.lib.runs import rundir
from experiments.lib.verdicts import pages
from experiments.lib.verdicts.badges import badge
from tests.repository import ROOT

DOCS = ROOT / "docs" / "gallery"


def claim(name, verdict, **changes):
    return {
        "name": name,
        "statement": "It rises.",
        "paper": "Nobody 2021",
        "measured": 1.25,
        "standard_error": 0.5,
        "accepted": [1.0, None],
        "source": "sign",
        "reason": "made up",
        "null": 0.125,
        "verdict": verdict,
    } | changes


def summary(preset):
    return {
        "experiment": "made_up",
        "preset": preset,
        "seeds": [100, 101],
        "command": f"python -m experiments made_up --preset {preset}",
        "seconds": 3.2,
        "claims": [claim("rises", "reproduced"), claim("falls", "not reproduced")],
        "figures": [{"file": "a.png", "caption": "A."}, {"file": "b.png", "caption": "B."}],
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    for preset in ("cpu", "real"):
        rundir.write_json(results / f"{preset}.json", summary(preset))
    docs = tmp_path_factory.mktemp("docs")
    pages.write_pages(results, docs)
    return {path.name: path.read_text() for path in docs.iterdir()}


def test_there_is_a_page_for_each_experiment_an_index_and_the_talks(written):
    assert set(written) == {"made_up.md", "index.md", "talks.md"}


def in_order(text, *parts):
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_a_page_begins_with_verdicts_and_a_picture(written):
    both = f"{badge('reproduced', 1)} {badge('not reproduced', 1)}"
    in_order(
        written["made_up.md"],
        "# Made up\n",
        f"`cpu` {both}\n",
        f"`real` {both}\n",
        "![A.](made_up-a.png)\n\n*A.*\n",
        "## Claims\n",
        "## On real data\n",
    )


def test_a_section_has_its_other_pictures_before_its_claims(written):
    claims, real = written["made_up.md"].split("## Claims\n")[1].split("## On real data\n")
    row = f"| falls | 1.25 ± 0.5 | at least 1 | {badge('not reproduced')} |"
    said = "- *falls*: It rises. (Nobody 2021; range a sign: made up; what must not pass: 0.125.)"
    in_order(claims, "![B.](made_up-b.png)", "Seeds 100, 101; 3 s", "--preset cpu\n", row, said)
    in_order(real, "(made_up-real-a.png)", "(made_up-real-b.png)", "--preset real\n", row, said)
    assert written["made_up.md"].count(".png)") == 4


def test_the_index_has_a_tile_with_a_picture_for_each_experiment(written):
    tile = written["index.md"].split('<div class="tile">')[1].split("</div>")[0]
    in_order(tile, "[![A.](made_up-a.png)](made_up.md)", "**[Made up](made_up.md)**", "`cpu` <")
    assert "b.png" not in written["index.md"]
    assert written["index.md"].count("<div") == written["index.md"].count("</div>")


def test_the_index_counts_all_verdicts():
    two = [[summary("cpu")], [summary("cpu") | {"experiment": "other"}, summary("real")]]
    head = pages.index(two).split('<div class="tiles')[0]
    assert f"`cpu` {badge('reproduced', 2)} {badge('not reproduced', 2)}\n" in head
    assert f"`real` {badge('reproduced', 1)} {badge('not reproduced', 1)}\n" in head


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("edge_of_stability", "Edge of stability"),
        ("fisher_explosion", "Fisher explosion"),
        ("sam_vs_sgd", "SAM against SGD"),
    ],
)
def test_titles_are_short(name, title):
    assert pages.title(name) == title


def test_the_sentence_does_not_repeat_the_title():
    # "Critical periods: what is missing ..." and "Full-batch training drives ...".
    assert pages.sentence("critical_periods").startswith("What is missing")
    assert pages.sentence("edge_of_stability").startswith("Full-batch training")


def test_the_committed_pages_are_those_of_the_committed_results():
    for name, text in pages.pages(pages.RESULTS).items():
        assert (DOCS / name).read_text() == text, (
            f"docs/gallery/{name} differs: python -m experiments report --docs docs/gallery"
        )


def test_every_class_of_the_pages_is_in_the_style_sheet():
    style = (ROOT / "docs" / "_static" / "site.css").read_text()
    pictured = [DOCS / "index.md", DOCS / "edge_of_stability.md", ROOT / "docs" / "index.md"]
    used = {
        c
        for p in pictured
        for names in re.findall('class="(.+?)"', p.read_text())
        for c in names.split()
    }
    assert used >= {"tile", "verdict", "lead"}
    assert all(f".{name}" in style for name in used)
