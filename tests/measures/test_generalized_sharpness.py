"""Generalised sharpness of small dense matrices against a search of the whole ball."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax.measures import generalized_sharpness
from tests.measures import networks

pytestmark = pytest.mark.usefixtures("x64")

ANGLES = np.linspace(0, 2 * np.pi, 721)


def flat(tree):
    return np.concatenate([np.asarray(a).ravel() for a in jax.tree.leaves(tree)])


def operator(h, params):
    h = jnp.asarray(h)
    unravel = jax.flatten_util.ravel_pytree(params)[1]
    return lambda v: unravel(h @ jax.flatten_util.ravel_pytree(v)[0])


def measured(h, params, norm, **options):
    options = {"key": jax.random.key(0), "num_starts": 8, "max_products": 800} | options
    return generalized_sharpness(operator(h, params), params, norm=norm, **options)


def check(found, h, maximum, rtol):
    np.testing.assert_allclose(found.value, maximum, rtol=rtol)
    d = flat(found.vector)
    np.testing.assert_allclose(d @ h @ d, found.value, rtol=1e-12)
    np.testing.assert_allclose(found.starts.max(), found.value, rtol=1e-15)
    assert found.converged
    assert 0 <= found.gap <= 1e-3 * found.value
    assert isinstance(found.num_products, int)


def test_max_norm():
    h = networks.spd(7, condition=30.0)
    corners = np.array(list(itertools.product([-1.0, 1.0], repeat=7)))
    maximum = np.einsum("ki,ij,kj->k", corners, h, corners).max()
    found = measured(h, jnp.zeros(7), "max")
    check(found, h, maximum, 1e-12)
    np.testing.assert_array_equal(np.abs(found.vector), 1)
    assert found.num_products <= 8 * 10  # a handful of corners each


def test_max_norm_with_the_maximum_on_a_side():
    # x^2 - y^2 on the square: at (1, 0), no corner. The plain power method alternates.
    found = measured(np.diag([1.0, -1.0]), jnp.zeros(2), "max")
    check(found, np.diag([1.0, -1.0]), 1.0, 1e-12)
    assert found.num_products == 8 * 2  # the best point on the way is the maximum itself


def test_spectral_norm():
    # A 2 x 2 matrix and a vector: the corners are rotations, reflections and directions.
    h = networks.spd(6, seed=1, condition=20.0)
    cos, sin = np.cos(ANGLES), np.sin(ANGLES)
    rotations = np.stack([cos, -sin, sin, cos], axis=1)
    reflections = np.stack([cos, sin, sin, -cos], axis=1)
    matrices, vectors = np.concatenate([rotations, reflections]), np.stack([cos, sin], axis=1)
    within = np.einsum("ki,ij,kj->k", matrices, h[:4, :4], matrices)
    across = 2 * matrices @ h[:4, 4:] @ vectors.T
    own = np.einsum("ki,ij,kj->k", vectors, h[4:, 4:], vectors)
    maximum = (within[:, None] + across + own).max()
    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
    found = measured(h, params, "spectral")
    # Half a degree from the maximum the search misses at most 20 (pi / 720)^2 of 30; a gap of tol.
    check(found, h, maximum, 1e-3)
    a = np.asarray(found.vector["a"])
    np.testing.assert_allclose(a @ a.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found.vector["b"]), 1, rtol=1e-12)


def test_spectral_norm_of_a_kernel_is_that_of_its_last_axis_against_the_others():
    rng = np.random.default_rng(2)
    g = rng.normal(size=(2, 3, 4))
    # A matrix of rank one has the one maximum <g, d>^2, of the square of the nuclear norm.
    h = np.outer(g, g)
    nuclear = np.linalg.svd(g.reshape(6, 4), compute_uv=False).sum()
    found = measured(h, jnp.zeros((2, 3, 4)), "spectral", num_starts=1, max_products=5)
    np.testing.assert_allclose(found.value, nuclear**2, rtol=1e-12)


def test_block_norm_of_a_positive_matrix_is_the_largest_of_its_blocks():
    h = networks.spd(6, seed=4, condition=50.0)
    params = {"a": jnp.zeros(2), "b": jnp.zeros((1, 4))}
    maximum = max(np.linalg.eigvalsh(h[s, s])[-1] for s in (slice(0, 2), slice(2, 6)))
    found = measured(h, params, "block")
    check(found, h, maximum, 1e-3)
    assert sum(np.any(np.asarray(a)) for a in jax.tree.leaves(found.vector)) == 1


def test_negative_and_zero_curvature():
    for h in (-np.eye(3), np.zeros((3, 3))):
        found = measured(h, jnp.zeros(3), "max", num_starts=1)
        np.testing.assert_allclose(found.value, 0, atol=1e-12)


def test_products_that_run_out_or_are_not_finite():
    h = networks.spd(6, seed=4, condition=50.0)
    short = measured(h, jnp.zeros(6), "block", num_starts=2, max_products=5, tol=1e-9)
    assert short.num_products == 4
    assert not short.converged
    d = np.asarray(short.vector)  # of one leaf, so that the ball is the Euclidean one
    gap = 2 * (np.linalg.norm(h @ d) - d @ h @ d)
    np.testing.assert_allclose(short.gap, gap, rtol=1e-9)
    broken = measured(np.full((6, 6), np.nan), jnp.zeros(6), "max")
    assert np.isnan(broken.value)
    assert not broken.converged


def test_same_under_jit():
    h = networks.spd(4)
    params = {"a": jnp.zeros((2, 2))}
    eager = measured(h, params, "spectral", num_starts=2)
    traced = jax.jit(lambda h: measured(h, params, "spectral", num_starts=2))(h)
    np.testing.assert_allclose(traced.value, eager.value, rtol=1e-12)
    assert int(traced.num_products) == eager.num_products


def test_bad_arguments():
    op = flatjax.operators.as_operator(lambda v: v, jnp.zeros(3))
    for options, message in [
        ({"norm": "nuclear"}, "norm must be one of"),
        ({"num_starts": 0}, "num_starts must be at least 1"),
        ({"max_products": 7}, "max_products must be at least 8"),
        ({"tol": -1.0}, "tol must not be negative"),
    ]:
        with pytest.raises(ValueError, match=message):
            generalized_sharpness(op, jnp.zeros(3), key=jax.random.key(0), **options)
    with pytest.raises(ValueError, match="params has shape"):
        generalized_sharpness(op, jnp.zeros(4), key=jax.random.key(0))
