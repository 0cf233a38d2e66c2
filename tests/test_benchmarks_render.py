"""The committed page and table are those of the committed results."""

import pytest

from benchmarks import _page, _render
from benchmarks.peers import adapter

RESULTS = _render.results()


def test_the_page_is_that_of_the_results():
    written = _render.PAGE.read_text()
    assert written == _page.page(RESULTS), "run `python -m benchmarks render`"


def test_the_table_of_the_readme_is_that_of_the_results():
    text = _render.README.read_text()
    assert _render.BEGIN in text
    assert text == _render.between(text, _page.readme(RESULTS)), "run `python -m benchmarks render`"


def test_every_system_has_a_title_and_a_colour():
    figures = pytest.importorskip("benchmarks._figures")
    assert set(_page.TITLES) == set(figures.COLOURS) == set(adapter.SYSTEMS)


def test_only_what_is_between_the_markers_is_replaced():
    text = f"before\n{_render.BEGIN}\nold\n{_render.END}\nafter\n"
    assert _render.between(text, "new\n") == text.replace("old", "new")
    assert _render.between("no markers", "new") == "no markers"


def answer(median, missing=()):
    spread = {"median": median, "low": median, "high": median, "runs": 5}
    met = {"top": 1e-3, "bottom": 0.0012, "trace": 0.004, "density": 0.0456}
    found = {"seconds": spread, "products": 10, "errors": met}
    return {**found, "missing": list(missing), "method": "m"}


def rung(method, products, density):
    met = {"top": 1e-3, "bottom": 1e-3, "trace": 0.004, "density": density}
    return {"method": method, "seconds": products / 100, "products": products, "errors": met}


@pytest.fixture
def record():
    rungs = [rung("m", 200, 0.06), rung("m", 300, 0.04), rung("m", 400, 0.03)]
    flatjax = {
        "documented": {"all": answer(0.5), "parts": {"top,trace,density": answer(0.25)}},
        "plain": {**answer(0.75), "method": "plain"},
        "rungs": [*rungs, rung("plain", 150, 0.05)],
    }
    systems = {
        "flatjax": flatjax,
        "pyhessian": {"documented": {"all": answer(5.0, ["bottom"])}},
        "curvlinops": {"failure": "ModuleNotFoundError"},
    }
    return {"results": {"mlp-small": {"params": 7000, "systems": systems}}}


def test_ratios_and_what_is_not_reached_are_shown(record):
    table = _page.readme({"side_by_side": record})
    cells = "| mlp-small (7,000) | 0.75 s | 0.12 %, 0.4 %, 0.046 | 0.50 s | "
    assert cells + "5.00 s (20.0 x, without bottom 2) | did not run |" in table
    page = _page.headline(record, "documented")
    assert "| 20.0 x of 0.25 s | 10 | 1.0e-03, 1.2e-03, 4.0e-03, 4.6e-02 | bottom 2 | m |" in page
    assert "did not run: ModuleNotFoundError" in page
    assert "4.6e-02 | none | plain |" in page


def test_a_faster_call_that_missed_a_goal_is_explained(record):
    assert _page.passed_over(record) == ""
    own = record["results"]["mlp-small"]["systems"]["flatjax"]
    own["plain"] = {**answer(0.125), "method": "plain"}
    own["rungs"][-1] = rung("plain", 150, 0.0567)
    text = _page.passed_over(record)
    assert "On mlp-small the call without options is faster (0.12 s against 0.50 s)" in text
    assert "the density off by 0.057 where the goal is 0.05, with 150 products" in text
    assert "within all goals spends 300" in text
    assert "4.6e-02 | density | plain |" in _page.headline(record, "documented")
