"""The report page: self-contained, escaped, whole."""

import base64
import html.parser

import pytest

from experiments.lib.verdicts.report import (
    Details,
    Heading,
    Picture,
    Table,
    Text,
    print_table,
    write_report,
)

TABLE = Table(("quantity", "SGD <1>"), [("tr(H) & more", "1 ± 0.1"), ("λ₁", "< 3")], "a caption")


class Page(html.parser.HTMLParser):
    """Collects the tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page(tmp_path):
    picture = tmp_path / "p.png"
    picture.write_bytes(b"\x89PNG made up")
    items = [
        Heading("A <heading>"),
        Text("Some & text"),
        TABLE,
        Picture(picture, 'A "caption"'),
        Details("folded", {"key": [1, 2]}),
    ]
    write_report(tmp_path / "report.html", "Title <&>", items)
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_everything_is_on_the_page_and_escaped(page):
    for text in ("A <heading>", "Some & text", "SGD <1>", "tr(H) & more", "1 ± 0.1", "< 3", "λ₁"):
        assert text in page.text
    for text in ("a caption", 'A "caption"', "folded", '"key"', "Title <&>"):
        assert text in page.text
    assert len(page.all("th")) == 2
    assert len(page.all("td")) == 4


def test_pictures_are_embedded_and_nothing_is_fetched(page):
    (image,) = page.all("img")
    kind, data = image["src"].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == b"\x89PNG made up"
    assert image["alt"] == 'A "caption"'
    assert not page.all("script")
    assert not page.all("link")


def test_a_crooked_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a row of 1 cells under 2 columns"):
        write_report(tmp_path / "report.html", "x", [Table(("a", "b"), [("c",)])])
    assert not list(tmp_path.iterdir())


def test_the_printed_table_has_every_cell_whole(capsys):
    wide = Table(("", *(f"column {i}" for i in range(4))), [("row", *["1.0000 ± 0.0001"] * 4)], "!")
    print_table(wide, title="A title")
    printed = capsys.readouterr().out
    assert printed.count("1.0000 ± 0.0001") == 4
    assert "column 3" in printed
    assert "A title" in printed
