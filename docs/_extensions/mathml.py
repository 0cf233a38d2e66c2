"""Formulas as MathML, which browsers draw by themselves: no script, and nothing from elsewhere.

The font is in `_static/fonts`, since not every system has one for mathematics. A formula that
cannot be read is a warning, and so fails `make docs`.
"""

import html

import math_core
from docutils import nodes
from sphinx.util import logging

TEX = math_core.LatexToMathML(fancy_error=False)
logger = logging.getLogger(__name__)


def mathml(node, *, display: bool) -> str:
    """The formula of a node as a `<math>` element; its TeX if it cannot be read."""
    tex = node.astext()
    try:
        return TEX.convert_with_local_state(tex, displaystyle=display)
    except math_core.LatexError as error:
        logger.warning("the formula %r cannot be read: %s", tex, error, location=node)
        return f"<code>{html.escape(tex)}</code>"


def visit_inline(translator, node) -> None:
    translator.body.append(mathml(node, display=False))
    raise nodes.SkipNode


def visit_block(translator, node) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    translator.body.append(mathml(node, display=True))
    translator.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
