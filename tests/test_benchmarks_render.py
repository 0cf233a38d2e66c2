"""The committed page and table are those of the committed results."""

from benchmarks import _page, _render

RESULTS = _render.results()


def test_the_page_is_that_of_the_results():
    written = _render.PAGE.read_text()
    assert written == _page.page(RESULTS), "run `python -m benchmarks render`"


def test_the_table_of_the_readme_is_that_of_the_results():
    text = _render.README.read_text()
    assert _render.BEGIN in text
    assert text == _render.between(text, _page.readme(RESULTS)), "run `python -m benchmarks render`"


def test_only_what_is_between_the_markers_is_replaced():
    text = f"before\n{_render.BEGIN}\nold\n{_render.END}\nafter\n"
    assert _render.between(text, "new\n") == text.replace("old", "new")
    assert _render.between("no markers", "new") == "no markers"


def answer(median, missing=()):
    spread = {"median": median, "low": median, "high": median, "runs": 5}
    found = {"seconds": spread, "products": 10, "errors": {"top": 1e-3, "trace": 0.004}}
    return {**found, "missing": list(missing), "method": "m"}


def test_ratios_and_what_is_not_reached_are_shown():
    systems = {
        "flatjax": {
            "documented": {"all": answer(0.5), "parts": {"top,trace,density": answer(0.25)}}
        },
        "pyhessian": {"documented": {"all": answer(5.0, ["bottom"])}},
        "curvlinops": {"failure": "ModuleNotFoundError"},
    }
    network = {"params": 7, "systems": systems}
    record = {"results": {"mlp-small": network}}
    table = _page.readme({"side_by_side": record})
    assert "| mlp-small | 0.50 s | 5.00 s (20.0 x, without bottom 2) | did not run |" in table
    assert "| 20.0 x of 0.25 s | 10 | 1e-03, 4e-03 | bottom 2 | m |" in _page.headline(
        record, "documented"
    )
    assert "did not run: ModuleNotFoundError" in _page.headline(record, "documented")
