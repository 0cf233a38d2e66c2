"""The code blocks of README.md and of the pages under docs/ run."""

import textwrap

import pytest

from tests.examples import blocks, run_page
from tests.repository import ROOT

PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "_build" not in page.parts and blocks(page.read_text())
]


@pytest.fixture
def in_an_empty_folder(tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)


def run_by_docs(page):
    """Whether `make docs` runs the page as well, with every warning as an error."""
    return "file_format: mystnb" in page.read_text()


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow if run_by_docs(p) else ()) for p in PAGES],
    ids=[str(page.relative_to(ROOT)) for page in PAGES],
)
def test_examples_run(page, in_an_empty_folder):
    assert run_page(page) > 0


def test_readme_example_is_short():
    _, code = blocks((ROOT / "README.md").read_text())[0]
    assert len(code.strip().splitlines()) <= 15


PAGE = textwrap.dedent("""
    ```python
    x = 1
    ```

    <!-- not run: needs a cluster -->
    ```python
    raise SystemError
    ```

    ```{code-cell} ipython3
    :tags: [hide-input]
    x += 1
    ```

    ```pycon
    >>> x
    2
    ```

    ```bash
    make test
    ```
    """)


def test_blocks_are_found():
    assert blocks(PAGE) == [(3, "x = 1\n"), (13, "x += 1\n"), (17, ">>> x\n2\n")]


@pytest.mark.parametrize(("good", "bad"), [("\n2\n", "\n3\n"), ("x += 1", "x += 1 / 0")])
def test_a_broken_block_is_an_error(good, bad, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert run_page(page) == 3
    page.write_text(PAGE.replace(good, bad))
    with pytest.raises(Exception, match=r"page\.md|division"):
        run_page(page)
