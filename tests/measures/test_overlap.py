"""Overlap with a subspace: the share of the norm, invariant to the choice of basis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.measures import subspace_overlap

pytestmark = pytest.mark.usefixtures("x64")

DIM, K = 7, 3
RNG = np.random.default_rng(0)
V, U = (RNG.normal(size=(k, DIM)) for k in (K, 2))
G = RNG.normal(size=DIM)


def tree(flat):
    """The last axis cut into two leaves."""
    flat = jnp.asarray(flat)
    return {"a": flat[..., :4].reshape(*flat.shape[:-1], 2, 2), "b": flat[..., 4:]}


def projector(rows):
    return rows.T @ np.linalg.pinv(rows.T)


def test_vector():
    result = subspace_overlap(tree(G), tree(V))
    expected = G @ projector(V) @ G / (G @ G)
    np.testing.assert_allclose(result.value, expected, rtol=1e-12)
    np.testing.assert_allclose(result.cosines, np.sqrt(expected), rtol=1e-12)
    directions = V / np.linalg.norm(V, axis=1, keepdims=True)
    np.testing.assert_allclose(result.components, directions @ G / np.linalg.norm(G), rtol=1e-12)
    assert result.random == K / DIM


def test_subspaces():
    result = subspace_overlap(tree(U), tree(V))
    expected = np.trace(projector(U) @ projector(V)) / np.sqrt(2 * K)
    assert result.random == np.sqrt(2 * K) / DIM
    np.testing.assert_allclose(result.value, expected, rtol=1e-12)
    q, p = (np.linalg.qr(a.T)[0] for a in (U, V))
    cosines = np.linalg.svd(q.T @ p, compute_uv=False)
    np.testing.assert_allclose(result.cosines, cosines, rtol=1e-12)


def test_equal_and_orthogonal_subspaces():
    eye = jnp.eye(DIM)
    np.testing.assert_allclose(subspace_overlap(eye[:3], eye[:3]).value, 1.0, rtol=1e-15)
    assert float(subspace_overlap(eye[:3], eye[3:5]).value) == 0.0


def test_ignores_bases_scales_and_rotations():
    mix = RNG.normal(size=(K, K))
    q = np.linalg.qr(RNG.normal(size=(DIM, DIM)))[0]
    plain = subspace_overlap(tree(G), tree(V)).value
    # The Gram matrix of the mixed directions squares their condition number, about 1e2.
    np.testing.assert_allclose(
        subspace_overlap(tree(-5.0 * G), tree(mix @ V)).value, plain, rtol=1e-9
    )
    np.testing.assert_allclose(
        subspace_overlap(tree(G @ q), tree(V @ q * 1e-6)).value, plain, rtol=1e-12
    )


def test_dependent_directions_count_once():
    doubled = np.concatenate([V, V[:2], np.zeros((1, DIM))])
    plain, repeated = (subspace_overlap(tree(U), tree(b)) for b in (V, doubled))
    np.testing.assert_allclose(repeated.value, plain.value, rtol=1e-9)


@pytest.mark.slow
def test_random_vectors_have_the_random_overlap():
    keys = jax.random.split(jax.random.key(0), 2000)

    def one(key):
        u, v = jax.random.normal(key, (2, 3, DIM))
        single = subspace_overlap(u[0], v)
        return single.value, subspace_overlap(u, v).value

    values = np.asarray(jax.jit(jax.vmap(one))(keys))
    expected = subspace_overlap(tree(G), tree(V)).random, 3 / DIM
    for sample, exact in zip(values, expected, strict=True):
        assert abs(sample.mean() - exact) < 4 * sample.std() / 2000**0.5


def test_bad_arguments():
    with pytest.raises(ValueError, match="basis must be a stack of vectors"):
        subspace_overlap(jnp.ones(()), jnp.ones(()))
    with pytest.raises(ValueError, match="a has shape"):
        subspace_overlap(jnp.ones(3), jnp.ones((2, 4)))
    with pytest.raises(TypeError, match="tree structure"):
        subspace_overlap(tree(G), jnp.ones((2, DIM)))
