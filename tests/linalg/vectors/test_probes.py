"""Probes have identity covariance, and do not depend on how a vector is cut into leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from flatjax.linalg.vectors import _probes as probes
from tests.problems import structure_of

SIZE, MANY = 40, 20_000


@pytest.fixture(scope="module", params=probes.KINDS)
def draws(request):
    """Many probes of one kind, as rows."""
    keys = jax.random.split(jax.random.key(0), MANY)
    block = probes.block(keys, structure_of(SIZE), request.param)
    return request.param, np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(block), np.float64)


def test_the_covariance_is_the_identity(draws):
    _, z = draws
    # Each entry of the sample covariance has the standard error 1/sqrt(MANY), twice that squared
    # for a normal's variance; 5 of them for the largest of 1600.
    np.testing.assert_allclose(z.T @ z / MANY, np.eye(SIZE), atol=5 * np.sqrt(2 / MANY))
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=5 / np.sqrt(MANY))


def test_the_length_is_what_the_kind_says(draws):
    kind, z = draws
    squares = (z**2).sum(axis=1)
    if kind == "normal":
        # A chi-square of 40 degrees: variance 80.
        np.testing.assert_allclose(squares.var(), 2 * SIZE, rtol=0.1)
    else:
        np.testing.assert_allclose(squares, SIZE, rtol=1e-5)
    assert (set(np.unique(z)) == {-1.0, 1.0}) == (kind == "rademacher")


@pytest.mark.parametrize("kind", probes.KINDS)
def test_leaves_are_cut_from_one_draw(kind):
    whole = probes.probe(jax.random.key(3), jnp.zeros(SIZE), kind)
    parts = probes.probe(jax.random.key(3), structure_of(SIZE), kind)
    # Two roundings: the code of two shapes may leave another rest to each loop of vectors.
    np.testing.assert_allclose(ravel_pytree(parts)[0], whole, rtol=2.5e-7)


def test_a_block_is_its_probes():
    keys = jax.random.split(jax.random.key(1), 3)
    block = probes.block(keys, structure_of(SIZE))
    one = probes.probe(keys[1], structure_of(SIZE))
    assert jax.tree.structure(block) == jax.tree.structure(one)
    for many, single in zip(jax.tree.leaves(block), jax.tree.leaves(one), strict=True):
        np.testing.assert_array_equal(many[1], single)


def test_dtypes_follow_the_structure():
    with jax.enable_x64(True):
        structure = {"a": jnp.zeros(3, jnp.float64), "b": jnp.zeros(2, jnp.float32)}
        z = probes.probe(jax.random.key(0), structure, "normal")
        assert z["a"].dtype == jnp.float64
        assert z["b"].dtype == jnp.float32


def test_another_kind_is_an_error():
    with pytest.raises(ValueError, match="kind must be one of 'rademacher', 'normal', 'sphere'"):
        probes.probe(jax.random.key(0), jnp.zeros(2), "cauchy")
