"""Directional sharpness against the dense matrix, block by block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax.measures import directional_sharpness

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(0)
A = RNG.normal(size=(6, 6))
H = (A + A.T) / 2
U = RNG.normal(size=6)
BLOCKS = {"in/b": slice(0, 1), "in/w": slice(1, 4), "out/w": slice(4, 6)}


def tree(v):
    v = jnp.asarray(v)
    return {"in": {"b": v[:1], "w": v[1:4]}, "out": {"w": v[4:]}}


def loss_fn(params, _):
    w = jnp.concatenate(jax.tree.leaves(params))
    return 0.5 * w @ jnp.asarray(H) @ w


def operator():
    return flatjax.hessian(loss_fn, tree(np.zeros(6)), None)


def test_the_whole_and_its_blocks():
    op, update = operator(), tree(U)
    whole = U @ H @ U / (U @ U)
    np.testing.assert_allclose(directional_sharpness(op, update), whole, rtol=1e-12)
    pairs = directional_sharpness(op, update, by="leaf")
    expected = {
        (a, b): U[i] @ H[i, j] @ U[j] / (U @ U)
        for a, i in BLOCKS.items()
        for b, j in BLOCKS.items()
    }
    assert pairs.keys() == expected.keys()
    for pair, value in expected.items():
        np.testing.assert_allclose(pairs[pair], value, rtol=1e-12)
    layers = directional_sharpness(op, update, by="layer")
    first = slice(0, 4)
    assert len(layers) == 4
    np.testing.assert_allclose(
        layers["in", "in"], U[first] @ H[first, first] @ U[first] / (U @ U), rtol=1e-12
    )
    np.testing.assert_allclose(sum(layers.values()), whole, rtol=1e-12)


def test_the_scale_of_the_update_is_nothing_to_it():
    op = operator()
    for scale in (1e-200, 1e150):
        found = directional_sharpness(op, tree(scale * U))
        np.testing.assert_allclose(found, U @ H @ U / (U @ U), rtol=1e-12)
    assert np.isnan(directional_sharpness(op, tree(0 * U)))


def test_a_callable_and_jit():
    h = jnp.asarray(H)
    plain = directional_sharpness(lambda v: h @ v, jnp.asarray(U))
    traced = jax.jit(lambda u: directional_sharpness(operator(), u, by="layer"))(tree(U))
    np.testing.assert_allclose(sum(traced.values()), plain, rtol=1e-12)


def test_bad_arguments():
    with pytest.raises(TypeError, match="update must have the tree structure"):
        directional_sharpness(operator(), jnp.asarray(U))
    with pytest.raises(ValueError, match="by must be"):
        directional_sharpness(operator(), tree(U), by="name")
    with pytest.raises(TypeError, match="op must be an operator"):
        directional_sharpness(H, jnp.asarray(U))
