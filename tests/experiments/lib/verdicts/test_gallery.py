"""The gallery: all finished runs on one page, and committed pages that agree with the results."""

import shutil

import numpy as np
import pytest
from PIL import Image

from experiments.lib.runs import rundir
from experiments.lib.verdicts import gallery, pages
from experiments.lib.verdicts.figures import COLORS, band, figure, style
from tests.repository import ROOT

DOCS = ROOT / "docs" / "gallery"
NAMES = sorted(path.stem for path in pages.RESULTS.glob("*.json"))
FIGURE_BYTES = 100_000


def summary(**changes):
    claim = {
        "name": "rises",
        "statement": "It rises.",
        "paper": "Nobody 2021",
        "measured": 1.25,
        "standard_error": None,
        "values": {"0": 1.25},
        "accepted": [1.0, None],
        "reason": "made up",
        "verdict": "reproduced",
    }
    return {
        "experiment": "made_up",
        "title": "Made up.",
        "preset": "cpu",
        "seeds": [0],
        "command": "python -m experiments made_up --preset cpu",
        "seconds": 3.0,
        "claims": [claim, claim | {"name": "falls", "verdict": "not reproduced"}],
        "figures": [{"file": "a.png", "caption": "A."}],
        "extra": {},
    } | changes


@pytest.fixture
def runs(tmp_path):
    for preset in ("cpu", "real", "smoke"):
        folder = tmp_path / "runs" / "made_up" / preset
        folder.mkdir(parents=True)
        rundir.write_json(folder / "summary.json", summary(preset=preset))
        with figure(folder / "a.png") as axes:
            axes.plot([0, 1])
    other = tmp_path / "runs" / "elsewhere" / "cpu"
    other.mkdir(parents=True)
    rundir.write_json(other / "summary.json", {"table": []})  # of an experiment without claims
    return tmp_path / "runs"


def test_the_report_joins_all_finished_runs(runs, capsys):
    assert gallery.main(["--runs", str(runs)]) == 0
    page = (runs / "gallery.html").read_text()
    assert page.count("<h2>Made up.</h2>") == 3
    assert page.count("data:image/png") == 3
    assert "3 not reproduced, 3 reproduced" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../secret.png", "../cpu/a.png", "link.png", "/a.png"])
def test_a_picture_outside_its_folder_is_not_shown(runs, name):
    """Nor one that is named in a way that leads out of it."""
    secret = runs / "made_up" / "secret.png"
    shutil.copy(runs / "made_up" / "cpu" / "a.png", secret)
    (runs / "made_up" / "cpu" / "link.png").symlink_to(secret)
    changed = summary(figures=[{"file": name, "caption": "B."}])
    rundir.write_json(runs / "made_up" / "cpu" / "summary.json", changed)
    with pytest.warns(UserWarning, match=rf"its picture '{name}' is not in its folder"):
        assert [folder.name for folder, _ in gallery.finished(runs)] == ["real", "smoke"]


@pytest.mark.parametrize(
    "change", ["cut", {"claims": 3}, {"claims": [{}]}, {"seconds": None}, {"figures": [{}]}]
)
def test_a_damaged_summary_is_left_out_and_told(runs, change):
    path = runs / "made_up" / "cpu" / "summary.json"
    if change == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        rundir.write_json(path, summary(**change))
    with pytest.warns(UserWarning, match=r"cpu/summary\.json is damaged .* start its command"):
        assert gallery.main(["--runs", str(runs)]) == 0
    assert (runs / "gallery.html").read_text().count("<h2>Made up.</h2>") == 2


def test_a_folder_without_runs_says_so(tmp_path, capsys):
    assert gallery.main(["--runs", str(tmp_path)]) == 1
    assert "no finished run" in capsys.readouterr().out


def test_the_runs_of_two_presets_are_kept(runs, tmp_path):
    docs, results = tmp_path / "docs", tmp_path / "results"
    docs.mkdir()
    gallery.keep_results(gallery.finished(runs), results, docs)
    assert sorted(p.name for p in results.iterdir()) == ["made_up-real.json", "made_up.json"]
    assert sorted(p.name for p in docs.iterdir()) == ["made_up-a.png", "made_up-real-a.png"]
    assert (docs / "made_up-a.png").stat().st_size < FIGURE_BYTES


def test_every_colour_of_the_style_survives(tmp_path):
    """A thin line of each, on panels as an experiment has them; a distance of 10 is not seen."""
    with figure(tmp_path / "large.png", 1, 3, panel=(4.0, 3.2)) as panels:
        for number in range(len(COLORS)):
            values = np.arange(5.0) + number
            panels[0].plot(values, **style(number), label=f"arm {number}")
            band(panels[1], np.arange(5.0), values, np.ones(5), number)
        panels[0].legend()
    gallery.shrink(tmp_path / "large.png", tmp_path / "small.png")
    with Image.open(tmp_path / "small.png") as image:
        assert image.width <= gallery.PIXELS
        pixels = np.asarray(image.convert("RGB"), float).reshape(-1, 3)
    for color in COLORS:
        wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
        assert np.linalg.norm(pixels - wanted, axis=1).min() <= 10, color


def test_experiments_with_claims_are_found_by_their_source():
    names = gallery.with_claims()
    assert "quickstart" not in names
    assert {name.removesuffix("-real") for name in NAMES} <= set(names)


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_result_is_of_the_judged_seeds_and_has_its_figures(name):
    kept = rundir.read_json(pages.RESULTS / f"{name}.json")
    assert kept["seeds"] == list(range(100, 103 if kept["preset"] == "real" else 105))
    assert name == pages.kept_name(kept)
    assert kept["claims"]
    for picture in kept["figures"]:
        assert (DOCS / pages.figure_name(kept, picture)).stat().st_size <= FIGURE_BYTES
