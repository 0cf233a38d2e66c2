"""A step is Rayleigh and Ritz in the span of vectors, residuals and candidates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.linalg.krylov import _lobpcg as lobpcg

pytestmark = pytest.mark.usefixtures("x64")

N, K = 12, 2


def matrix(seed=0):
    a = np.random.default_rng(seed).normal(size=(N, N))
    return (a + a.T) / 2


def orthonormal_rows(k=K, seed=1):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(N, k)))[0].T


def tree(rows):
    return {"a": jnp.asarray(rows[..., :9]).reshape(*rows.shape[:-1], 3, 3), "b": rows[..., 9:]}


def flat(block):
    a, b = np.asarray(block["a"]), np.asarray(block["b"])
    return np.concatenate([a.reshape(*b.shape[:-1], 9), b], axis=-1)


def mv(v):
    image = jnp.asarray(matrix()) @ jnp.concatenate([v["a"].reshape(9), v["b"]])
    return {"a": image[:9].reshape(3, 3), "b": image[9:]}


def ritz(space, which, k=K):
    """The best pairs of a space given by its rows, by dense algebra."""
    basis = np.linalg.svd(space, full_matrices=False)
    basis = basis[2][basis[1] > 1e-8 * basis[1].max()]
    theta, rotation = np.linalg.eigh(basis @ matrix() @ basis.T)
    best = np.argsort({"LA": -theta, "SA": theta, "LM": -np.abs(theta)}[which])[:k]
    return theta[best], rotation[:, best].T @ basis


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
@pytest.mark.parametrize("extra", [None, "a block", "zero and dependent"])
def test_step_is_the_best_of_its_search_space(which, extra):
    start, a = orthonormal_rows(), matrix()
    theta, vectors = ritz(start, which)
    residuals = vectors @ a - theta[:, None] * vectors
    more = np.random.default_rng(2).normal(size=(K, N))
    if extra == "zero and dependent":
        more = np.stack([np.zeros(N), 3 * start[0]])
    candidates, space = (), [start, residuals]
    if extra:
        candidates, space = (tree(more),), [*space, more]
    values, expected = ritz(np.concatenate(space), which)
    found = lobpcg.step(mv, jax.tree.map(jnp.asarray, tree(start)), which, candidates)
    new = flat(found.vectors)
    np.testing.assert_allclose(found.values, values, rtol=1e-12)
    # Vectors are what they are up to a sign.
    np.testing.assert_allclose(np.abs((new * expected).sum(1)), 1, rtol=1e-12)
    np.testing.assert_allclose(new @ new.T, np.eye(K), atol=1e-13)
    lengths = np.linalg.norm(new @ a - values[:, None] * new, axis=1)
    np.testing.assert_allclose(found.residual_norms, lengths, rtol=1e-10)
    outside = new - new @ start.T @ start
    np.testing.assert_allclose(flat(found.change), outside, atol=1e-13)


def test_orthogonal_iteration_reports_the_start_and_goes_to_its_images():
    start, a = orthonormal_rows(), matrix()
    found = lobpcg.orthogonal_iteration(mv, jax.tree.map(jnp.asarray, tree(start)), "SA")
    theta, vectors = ritz(start, "SA")
    np.testing.assert_allclose(found.values, theta, rtol=1e-12)
    lengths = np.linalg.norm(vectors @ a - theta[:, None] * vectors, axis=1)
    np.testing.assert_allclose(found.residual_norms, lengths, rtol=1e-12)
    new, images = flat(found.vectors), np.linalg.qr(a @ start.T)[0]
    np.testing.assert_allclose(new.T @ new, images @ images.T, atol=1e-12)


def test_second_pass_makes_a_nearly_dependent_block_orthonormal():
    rng = np.random.default_rng(0)
    basis, block = orthonormal_rows(3), rng.normal(size=(K, N))
    # Almost inside the basis, and almost parallel: one pass leaves 1e-16 / 1e-6.
    block[0] = basis[0] + 1e-6 * block[0]
    block[1] = block[0] + 1e-6 * block[1]
    block, kept = lobpcg.orthonormal(jnp.asarray(basis), 1e8 * jnp.asarray(block))
    assert kept.all()
    both = np.concatenate([basis, np.asarray(block)])
    np.testing.assert_allclose(both @ both.T, np.eye(3 + K), atol=1e-14)


def test_polishing_squares_the_loss_of_orthogonality():
    rows = orthonormal_rows() @ (np.eye(N) + 1e-4 * np.random.default_rng(3).normal(size=(N, N)))
    lost = np.abs(rows @ rows.T - np.eye(K)).max()
    polished = np.asarray(lobpcg.polished(jnp.asarray(rows)))
    # Newton: 3/4 of the square of the loss, times K in the products.
    assert np.abs(polished @ polished.T - np.eye(K)).max() < K * lost**2
    np.testing.assert_allclose(polished, rows, atol=lost)
