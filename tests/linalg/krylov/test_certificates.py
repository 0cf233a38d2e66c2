"""What one product says of a Krylov relation, and the floor that follows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.linalg.krylov import _certificates as certificates
from flatjax.operators._base import as_operator

N = 24


def relation(matrix, scale):
    """Orthonormal rows, T, h and q with ``matrix Q = Q T + q h'`` for two rows, in units."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal(N)
    rows = [start / np.linalg.norm(start)]
    t, h = np.zeros((2, 2)), np.zeros(2)
    for j in range(2):
        w = matrix @ rows[j]
        for _ in range(2):
            for i in range(j + 1):
                overlap = rows[i] @ w
                t[i, j] += overlap
                w = w - overlap * rows[i]
        below = np.linalg.norm(w)
        rows.append(w / below)
        if j == 0:
            t[1, 0] = below
        else:
            h[1] = below
    return np.array(rows), t / scale, h / scale


def test_pairs_of_the_span_of_skewed_vectors():
    # Within an invariant subspace, so that they are eigenpairs whatever the vectors.
    values = np.concatenate([[5.0, -4.0, 3.0], np.linspace(-1, 1, N - 3)])
    d = jnp.asarray(values, jnp.float32)
    op = as_operator(jax.tree_util.Partial(jnp.multiply, d), d)
    skewed = np.zeros((3, N), np.float32)
    skewed[:, :3] = [[1.0, 0.5, 0.2], [0.0, 2.0, 1.0], [0.3, 0.0, 1.0]]
    found, vectors, residuals, noise = certificates.refined(
        op, jnp.asarray(skewed), jax.random.key(0)
    )
    np.testing.assert_allclose(found, [5, 3, -4], atol=1e-5)
    np.testing.assert_allclose(np.abs(vectors[:, :3]), np.eye(3)[[0, 2, 1]], atol=1e-5)
    assert (residuals < 1e-5).all()
    assert noise < 1e-5
    # An asymmetric part is noise, and it is in every residual.
    matrix = np.diag(values)
    matrix[3:, 0] = 0.1
    op = as_operator(jax.tree_util.Partial(jnp.matmul, jnp.asarray(matrix, jnp.float32)), d)
    first = jnp.asarray(np.eye(N)[:1], jnp.float32)
    _, _, residuals, noise = certificates.refined(op, first, jax.random.key(0))
    assert noise > 0.05
    np.testing.assert_allclose(residuals, np.hypot(0.1 * (N - 3) ** 0.5, noise), rtol=1e-4)


def depart(matrix, scale, change=0.0):
    rows, t, h = relation(matrix, scale)
    c = np.array([0.6, -1.2])
    op = as_operator(jax.tree_util.Partial(jnp.matmul, jnp.asarray(matrix + change)), jnp.zeros(N))
    found = certificates.departure(
        op,
        jnp.asarray(rows[:2]),
        jnp.asarray(c),
        jnp.asarray(t @ c),
        jnp.asarray(h @ c),
        jnp.asarray(rows[2]),
        jnp.asarray(scale),
    )
    return float(found), np.linalg.norm(change * np.eye(N) @ rows[:2].T @ c)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_departure_is_what_the_relation_does_not_say(x64, scale):
    rng = np.random.default_rng(1)
    half = rng.standard_normal((N, N))
    matrix = half + half.T
    exact, _ = depart(matrix, scale)
    assert exact < 1e-12
    found, expected = depart(matrix, scale, 1e-3 * np.eye(N))
    assert found == pytest.approx(expected, rel=1e-9)


def test_no_pair_is_made_small_and_none_cancel():
    weights = certificates.mixture(50)
    assert weights[0] == 1  # of a single pair it is the residual itself
    sizes = np.abs(weights)
    assert (sizes >= 1).all()
    assert (sizes <= 2).all()
    np.testing.assert_array_equal(np.sign(weights), (-1.0) ** np.arange(50))
    gaps = np.abs(sizes[:, None] - sizes[None, :])[np.triu_indices(50, 1)]
    assert gaps.min() > 1e-3


def test_the_floor_is_twice_the_noise_or_eight_roundings():
    eps = float(jnp.finfo(jnp.float32).eps)

    def floor(norm, noise, lost=0.0):
        return float(certificates.noise_floor(jnp.float32(norm), jnp.float32(noise), lost))

    assert floor(4.0, 0.5) == 1.0
    assert floor(4.0, 0.0) == 8 * eps * 4
    assert np.isnan(floor(1.0, 0.0, lost=2.0))
    assert floor(0.0, 0.0, lost=2.0) == 0


def test_the_gap_of_an_asymmetric_product():
    matrix = jnp.asarray(np.diag(np.arange(1.0, N + 1)), jnp.float32).at[1, 0].set(0.5)
    op = as_operator(jax.tree_util.Partial(jnp.matmul, matrix), jnp.zeros(N))
    vector = jnp.zeros(N).at[0].set(1)
    gaps = []
    for seed in range(200):
        key = jax.random.key(seed)
        residual, gap = certificates.certify(op, jnp.ones(()), vector, key)
        gaps.append(float(gap))
    assert float(residual) == 0.5
    # 0.5 z of a standard normal z: the mean square over 200 has an error of 10 %.
    assert np.mean(np.square(gaps)) == pytest.approx(0.25, rel=0.3)


def test_the_residual_that_is_allowed():
    size = np.array([10.0, 10.0, 1.0, 0.1])
    # The tolerance; the noise; a tenth of a value above the noise; what lies below it.
    for floor, wanted in ((0.001, [0.1, 0.1, 0.01, 0.001]), (0.5, [0.5, 0.5, 0.1, 0.5])):
        np.testing.assert_allclose(certificates.allowed(size, floor, 0.01), wanted, rtol=1e-12)
