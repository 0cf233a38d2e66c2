"""The built documentation in a browser that reaches nothing but this machine: `make test-site`."""

import functools
import http.server
import re
import threading

import pytest

from tests.docs import browser as chromium
from tests.repository import ROOT, public_names

SITE = ROOT / "docs" / "_build" / "html"
READABLE = 4.5  # the contrast that WCAG asks of text
PHONE = 390  # pixels
LOOKED_AT = (
    "index.html",
    "gallery/index.html",
    "gallery/edge_of_stability.html",
    "api/linalg.html",
    "transforms/sam.html",
    "quickstart.html",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def pages():
    """All pages but the listings of code, relative to the site."""
    found = sorted(str(p.relative_to(SITE)) for p in SITE.rglob("*.html"))
    found = [p for p in found if not p.startswith(("_modules/", "_static/"))]
    if not found:
        pytest.skip("docs/_build/html is not there: make docs")
    return found


@pytest.fixture(scope="module")
def address(pages):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    path = chromium.program()
    if path is None:
        pytest.skip(f"none of {', '.join(chromium.PROGRAMS)} is installed")
    opened = chromium.Browser(path, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


BROKEN_PICTURES = """
[...document.images].filter(i => !i.complete || i.naturalWidth == 0).map(i => i.src)
"""
# Formulas that are not drawn: without size, not laid out as mathematics, in another font than the
# site's, or left as TeX.
FORMULAS = r"""(() => {
  const found = [];
  for (const formula of document.querySelectorAll("main math")) {
    const box = formula.getBoundingClientRect();
    if (!getComputedStyle(formula).display.includes("math") || box.width < 2 || box.height < 2)
      found.push(formula.textContent);
  }
  if (document.querySelector("main math") &&
      ![...document.fonts].some(f => f.family.includes("STIX") && f.status == "loaded"))
    found.push("the font is not loaded");
  const text = document.querySelector("main").cloneNode(true);
  text.querySelectorAll("pre, code, math, .sig").forEach(e => e.remove());
  found.push(...(text.textContent.match(/\\[([].*|\$[^$\s][^$\n]*\$|\\[a-z]+\{.*/g) || []));
  return found;
})()"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# Text whose contrast with what is behind it is the smallest, and that contrast.
FAINTEST = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = color => rgba(color).slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  let worst = [21, ""];
  document.getAnimations().forEach(animation => animation.finish());
  for (const element of document.querySelectorAll("article *, .bd-sidebar-primary *")) {
    const texts = [...element.childNodes].filter(node => node.nodeType == 3);
    const own = texts.map(node => node.data.trim()).join("");
    const seen = element.checkVisibility({visibilityProperty: true, opacityProperty: true});
    if (!own || !seen) continue;
    let behind = element;
    while (behind && rgba(getComputedStyle(behind).backgroundColor)[3] < 255)
      behind = behind.parentElement;
    const [a, b] = [light(getComputedStyle(element).color),
                    light(behind ? getComputedStyle(behind).backgroundColor : "#fff")];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < worst[0]) worst = [contrast, own.slice(0, 60)];
  }
  return worst;
})()"""


def test_every_page_is_whole_without_a_network(tab, address, pages):
    """No error, nothing from elsewhere, pictures there, formulas drawn, as wide as a phone."""
    broken = []
    for page in pages:
        tab.visit(address + page, width=PHONE)
        found = tab.errors + [url for url in tab.requests if not url.startswith((address, "data:"))]
        found += tab.run(BROKEN_PICTURES) + tab.run(FORMULAS)
        if (wider := tab.run(OVERFLOW)) > 0:
            found.append(f"{wider} pixels wider than a phone")
        broken += [(page, what) for what in found]
    assert not broken


def test_what_is_broken_is_noticed(tab, address):
    """The checks themselves: a page with one fault of every kind."""
    tab.visit(address + "transforms/sam.html")
    tab.run(
        "document.querySelector('article').append("
        "Object.assign(new Image(), {src: 'http://example.com/a.png'}), '$x$')"
    )
    tab.run("new Promise(done => setTimeout(done, 200))")
    tab.run("document.querySelector('article math').style.fontSize = 0")
    assert tab.run(BROKEN_PICTURES) == ["http://example.com/a.png"]
    assert "http://example.com/a.png" in tab.requests
    assert tab.errors
    assert len(tab.run(FORMULAS)) == 2


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("page", LOOKED_AT)
def test_text_is_legible(page, dark, tab, address):
    tab.visit(address + page, dark=dark)
    contrast, text = tab.run(FAINTEST)
    assert contrast >= READABLE, text


@pytest.mark.parametrize(
    ("name", "page"),
    [("eigsh", "api/linalg"), ("plot_density", "api/plots"), ("shard_batch", "api/parallel")],
)
def test_the_search_finds_a_name(name, page, tab, address):
    tab.visit(f"{address}search.html?q={name}")
    tab.wait(
        "document.querySelector('#search-results .search-summary, #search-results p')"
        "?.textContent.includes('found')"
    )
    first = tab.run("document.querySelector('#search-results li a').getAttribute('href')")
    assert re.fullmatch(rf"{page}\.html#flatjax\.([a-z]+\.)?{name}", first)


def test_there_is_one_search_box(tab, address):
    tab.visit(address)
    boxes = "document.querySelectorAll('.search-button, .search-button-field, input[type=search]')"
    assert tab.run(f"[...{boxes}].filter(e => e.checkVisibility()).length") == 1


def test_every_public_name_has_an_entry(pages):
    text = "".join((SITE / page).read_text() for page in pages if page.startswith("api/"))
    entries = re.findall(r'<dt class="[^"]*" id="(flatjax\.[\w.]+)"', text)
    assert {item.name for item in public_names()} <= set(entries)


def test_pages_with_code_show_what_it_printed_and_drew(tab, address):
    tab.visit(address + "quickstart.html")
    assert "training loss" in tab.run("document.querySelector('.cell_output').textContent")
    tab.visit(address + "guide/draw-the-landscape.html")
    assert tab.run("document.querySelectorAll('.cell_output img').length") > 0
