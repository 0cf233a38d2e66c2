"""Orthonormal vectors, as they are or as combinations of the rows of a basis that is held anyway.

Ritz vectors of a run need no memory of their own to be projected out: their coefficients over its
basis do. Every pass then reads all rows of the basis in place of a few vectors.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flatjax._trees import Tree
from flatjax.linalg.vectors import _basis as bases


class Span(NamedTuple):
    """Orthonormal (or zero) vectors.

    Attributes:
      basis: the vectors, or the rows that they combine, a tree with a leading axis.
      columns: ``(rows, e)``, the combinations; ``None`` where the rows are the vectors.
    """

    basis: Tree
    columns: jax.Array | None = None


def gram(span: Span, block: Tree) -> jax.Array:
    """The inner products of the vectors with all rows of ``block``, ``(e, l)``."""
    inner = bases.gram(span.basis, block)
    return inner if span.columns is None else _dot(span.columns.T, inner)


def combine(span: Span, c: jax.Array) -> Tree:
    """Combinations of the vectors by coefficients ``(e, l)``, a tree with leading axis ``l``."""
    return bases.combine(span.basis, c if span.columns is None else _dot(span.columns, c))


def _dot(a, b):
    return jnp.dot(a, b, precision="highest")


@jax.jit
def project(span: Span | None, v: Tree) -> Tree:
    """A vector less its part along the vectors; of ``None``, the vector itself."""
    if span is None:
        return v
    inner = bases.coefficients(span.basis, v)[0]
    if span.columns is not None:
        inner = _dot(span.columns, _dot(span.columns.T, inner))
    return bases.less(span.basis, v, inner)


def formed(span: Span) -> Tree:
    """The vectors, in memory of their own."""
    return span.basis if span.columns is None else _combined(span.basis, span.columns)


_combined = jax.jit(bases.combine)


@jax.jit
def project_block(span: Span | None, block: Tree) -> Tree:
    """Stacked vectors less their parts along the vectors."""
    return block if span is None else bases.subtract(block, combine(span, gram(span, block)))
