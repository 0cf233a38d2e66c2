"""Orthonormal rows from vectors in blocks are those from one vector after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.linalg.vectors import _orthonormal as orthonormal

N, ROWS = 120, 14
EPS = float(jnp.finfo(jnp.float32).eps)


def tree(v):
    return {
        "a": jnp.asarray(v[:50].reshape(5, 10), jnp.float32),
        "b": jnp.asarray(v[50:], jnp.float32),
    }


def matrix(basis):
    return np.concatenate(
        [np.asarray(a, float).reshape(ROWS, -1) for a in jax.tree.leaves(basis)], 1
    )


def vectors(kind):
    """Of scales far apart; and with combinations of others, in the same block or an earlier one."""
    rng = np.random.default_rng(0)
    found = rng.normal(size=(ROWS, N)) * 10.0 ** rng.uniform(-5, 5, size=(ROWS, 1))
    if kind == "nearly dependent":
        # What is left of these is 1e-4 of them: one pass would leave 1e-3 of it along the others.
        for i, of in ((5, 4), (9, 1), (12, 11)):
            found[i] = found[of] + 1e-4 * np.linalg.norm(found[of]) / N**0.5 * rng.normal(size=N)
    if kind == "dependent":
        found[3], found[6], found[9] = 2 * found[1], 0, found[2] / 3
        found[11] = found[10] - found[8]
    return np.asarray(found, np.float32)


def in_blocks(found, size):
    basis = jax.tree.map(lambda a: jnp.zeros((ROWS, *a.shape)), tree(found[0]))
    columns = []
    for start in range(0, ROWS, size):
        real = min(size, ROWS - start)
        block = [tree(found[min(start + i, ROWS - 1)]) for i in range(size)]
        basis, more = orthonormal.extend(basis, np.int32(start), block, np.int32(real))
        columns.append(np.asarray(more, float)[:, :real])
    return matrix(basis), np.concatenate(columns, axis=1)


def one_by_one(found):
    basis = jax.tree.map(lambda a: jnp.zeros((ROWS, *a.shape)), tree(found[0]))
    columns = []
    for i in range(ROWS):
        basis, column = orthonormal.append(basis, jnp.int32(i), tree(found[i]))
        columns.append(np.asarray(column, float))
    return matrix(basis), np.stack(columns, axis=1)


@pytest.mark.parametrize("kind", ["independent", "nearly dependent", "dependent"])
@pytest.mark.parametrize("size", [4, 8])
def test_a_block_is_its_vectors(kind, size):
    found = vectors(kind)
    q, r = in_blocks(found, size)
    kept = np.diag(q @ q.T) > 0.5
    # Sums of 120 and 14 terms in float32: a few units of rounding.
    np.testing.assert_allclose(q @ q.T, np.diag(kept.astype(float)), atol=16 * EPS)
    lengths = np.linalg.norm(found, axis=1)
    safe = np.where(lengths > 0, lengths, 1)
    np.testing.assert_allclose(q.T @ r / safe, found.T / safe, atol=32 * EPS)
    np.testing.assert_array_equal(np.tril(r, -1), 0)
    # The same rows are left empty, and the same directions found, up to what rounding has left of
    # 1e-4 of a vector.
    other, triangle = one_by_one(found)
    np.testing.assert_array_equal(kept, np.diag(other @ other.T) > 0.5)
    assert kept.sum() == ROWS - {"dependent": 4}.get(kind, 0)
    np.testing.assert_allclose(np.abs(np.sum(q * other, axis=1)), kept, atol=1e-5)
    # Such a direction is off by some units of rounding over 1e-4, and so are coefficients along it.
    atol = 8 * EPS / 1e-4 if kind == "nearly dependent" else 1e-5
    np.testing.assert_allclose(r / safe, triangle / safe, atol=atol)
