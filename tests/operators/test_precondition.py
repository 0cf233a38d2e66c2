"""Preconditioned operators."""

import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.operators import hessian
from flatjax.operators._precondition import preconditioned

PARAMS = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[0.5]])}


def test_product_and_dense_matrix():
    matrix = jnp.array([[4.0, 1.0, 0.5], [1.0, -3.0, 0.2], [0.5, 0.2, 2.0]])

    def loss(p, _):
        flat = jnp.concatenate([p["a"], p["b"].reshape(-1)])
        return flat @ matrix @ flat / 2

    diagonal = {"a": jnp.array([4.0, 9.0]), "b": jnp.array([[0.25]])}
    op = preconditioned(hessian(loss, PARAMS, None), diagonal)
    root = np.array([2.0, 3.0, 0.5])
    expected = np.asarray(matrix) / np.outer(root, root)
    # atol: the products of entries up to 20 in float32.
    np.testing.assert_allclose(op.to_dense(), expected, atol=2e-6)
    np.testing.assert_allclose(op.linearize().to_dense(), expected, atol=2e-6)
    assert op.structure == hessian(loss, PARAMS, None).structure


def test_an_infinite_entry_freezes_a_coordinate():
    op = preconditioned(
        hessian(lambda w, _: jnp.sum(w**2), jnp.ones(2), None), jnp.array([1.0, jnp.inf])
    )
    assert op.to_dense().tolist() == [[2.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_entries_that_are_not_positive_are_refused(bad):
    op = hessian(lambda w, _: jnp.sum(w**2), jnp.ones(2), None)
    with pytest.raises(ValueError, match="must be positive"):
        preconditioned(op, jnp.array([1.0, bad]))


def test_another_structure_is_refused():
    op = hessian(lambda w, _: jnp.sum(w**2), jnp.ones(2), None)
    with pytest.raises(TypeError, match="diagonal must have the tree structure"):
        preconditioned(op, {"a": jnp.ones(2)})
    with pytest.raises(ValueError, match="diagonal has shape"):
        preconditioned(op, jnp.ones(3))
