"""Formulas become MathML; one that cannot be read is a warning."""

import logging

import pytest
from docutils import nodes

from tests.docs.extensions import load

mathml = load("mathml")


class Translator:
    def __init__(self):
        self.body = []

    def starttag(self, node, name, CLASS):  # as docutils has it
        return f'<{name} class="{CLASS}">'


def drawn(visit, node):
    translator = Translator()
    with pytest.raises(nodes.SkipNode):
        visit(translator, node)
    return "".join(translator.body)


def test_a_formula_in_a_line():
    text = drawn(mathml.visit_inline, nodes.math("", r"\frac{a}{b} < 1"))
    assert text.startswith("<math><mfrac><mi>a</mi><mi>b</mi></mfrac><mo>&lt;</mo>")


def test_a_formula_on_its_own():
    text = drawn(mathml.visit_block, nodes.math_block("", r"\sum_i x_i"))
    assert text.startswith('<div class="math"><math display="block">')
    assert "<munder>" in text
    assert text.endswith("</math></div>\n")


def test_a_formula_that_cannot_be_read_is_a_warning(caplog):
    with caplog.at_level(logging.WARNING, "sphinx"):
        text = drawn(mathml.visit_inline, nodes.math("", r"\nosuch < 1"))
    assert text == r"<code>\nosuch &lt; 1</code>"
    assert r"the formula '\\nosuch < 1' cannot be read: " in caplog.text
