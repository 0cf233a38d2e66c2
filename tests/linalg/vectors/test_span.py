"""Vectors of their own and combinations of a basis are the same span."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _span as spans
from flatjax.linalg.vectors._span import Span

N, M, E = 30, 8, 3


@pytest.fixture
def case(dtype):
    """The span in both forms, its vectors, a block, and what float64 may differ by from these."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((N, M)))[0].T
    columns = np.linalg.qr(rng.standard_normal((M, E)))[0]
    block = rng.standard_normal((2, N))
    parts = tuple({"a": jnp.asarray(p[:, :10], dtype), "b": jnp.asarray(p[:, 10:], dtype)}
                  for p in (q[:5], q[5:]))  # fmt: skip
    v = columns.T @ q
    tree = {"a": jnp.asarray(block[:, :10], dtype), "b": jnp.asarray(block[:, 10:], dtype)}
    own = {"a": jnp.asarray(v[:, :10], dtype), "b": jnp.asarray(v[:, 10:], dtype)}
    forms = Span(own), Span(bases.Basis(parts), jnp.asarray(columns, dtype))
    return forms, v, tree, block, 20 * float(jnp.finfo(dtype).eps)  # sums of some 30 products


def glued(tree):
    return np.concatenate([np.asarray(tree["a"]), np.asarray(tree["b"])], axis=-1)


@pytest.mark.parametrize("form", [0, 1])
def test_both_forms_are_the_same_vectors(case, form):
    forms, v, tree, block, slack = case
    span = forms[form]
    np.testing.assert_allclose(glued(spans.formed(span)), v, atol=slack)
    inner = spans.gram(span, tree)
    np.testing.assert_allclose(inner, v @ block.T, atol=5 * slack)
    c = jnp.asarray([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]], inner.dtype)
    np.testing.assert_allclose(glued(spans.combine(span, c)), np.asarray(c).T @ v, atol=5 * slack)
    rest = block - block @ v.T @ v
    np.testing.assert_allclose(glued(spans.project_block(span, tree)), rest, atol=5 * slack)
    one = spans.project(span, jax.tree.map(lambda a: a[1], tree))
    np.testing.assert_allclose(glued(one), rest[1], atol=5 * slack)


def test_nothing_is_projected_out_of_no_span(case):
    _, _, tree, block, slack = case
    np.testing.assert_allclose(glued(spans.project_block(None, tree)), block, atol=slack)
    np.testing.assert_allclose(glued(spans.project(None, tree)), block, atol=slack)
