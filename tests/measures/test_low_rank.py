"""The low-rank matrix against the dense one, in float64 and where float32 is short of digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax.linalg.vectors import _probes as probes
from flatjax.measures import low_rank
from flatjax.operators import as_operator
from tests.measures import networks

DIM, K = 9, 3
VALUES = np.array([500.0, 20.0, -0.002])


class Pairs:
    """Eigenpairs of a tree of two leaves."""

    def __init__(self, dtype, values=VALUES):
        rng = np.random.default_rng(0)
        self.dense = np.linalg.qr(rng.normal(size=(DIM, K)))[0].T
        self.values = jnp.asarray(values, dtype)
        self.vectors = tree(self.dense, dtype)


def tree(rows, dtype):
    rows = np.asarray(rows)
    shape = rows.shape[:-1]
    return {
        "a": jnp.asarray(rows[..., :6].reshape(*shape, 2, 3), dtype),
        "b": jnp.asarray(rows[..., 6:], dtype),
    }


def flat(tree):
    rows = np.asarray(tree["a"], np.float64), np.asarray(tree["b"], np.float64)
    return np.concatenate([rows[0].reshape(*rows[0].shape[:-2], 6), rows[1]], axis=-1)


def power(pairs, damping, exponent):
    """The dense matrix to a power."""
    v = pairs.dense
    rest = damping**exponent * (np.eye(DIM) - v.T @ v)
    return rest + (v.T * (VALUES + damping) ** exponent) @ v


def test_against_dense(dtype):
    # The condition number of 1e5 leaves float32 two digits where the solution is not split.
    damping, pairs = 0.005, Pairs(dtype)
    low = low_rank(pairs, damping=damping)
    x = np.random.default_rng(1).normal(size=DIM) + 3 * pairs.dense[0]
    # Vectors that are rounded, in a sum of order one.
    rtol = 100 * float(jnp.finfo(dtype).eps)
    for product, exponent in [(low.mv, 1.0), (low.solve, -1.0), (low.sqrt, 0.5)]:
        expected = power(pairs, damping, exponent) @ x
        atol = rtol * np.abs(expected).max()
        np.testing.assert_allclose(flat(product(tree(x, dtype))), expected, rtol=rtol, atol=atol)
    # Along the largest eigenvector the solution is 1e5 times smaller than anywhere else.
    top = tree(pairs.dense[0], dtype)
    np.testing.assert_allclose(
        flat(low.solve(top)) @ pairs.dense[0], 1 / (VALUES[0] + damping), rtol=rtol
    )
    dense = power(pairs, damping, 1.0)
    # The dense determinant has lost 1e5 units of rounding in its least eigenvalues.
    logdet = np.linalg.slogdet(dense)[1]
    np.testing.assert_allclose(low.logdet(), logdet, rtol=rtol, atol=1e-10)
    np.testing.assert_allclose(low.to_dense(), dense, atol=rtol * 500)


def test_draws_have_the_matrix_for_their_precision(x64, key):
    low = low_rank(Pairs("float64"), damping=0.005)
    # The root of the matrix undoes what makes the covariance out of a standard normal draw.
    one = low.sample(key=key)
    z = probes.probe(key, low.structure, "normal")
    np.testing.assert_allclose(flat(low.sqrt(one)), flat(z), rtol=1e-10)
    draws = low.sample(key=key, num=4000)
    whitened = flat(jax.vmap(low.sqrt)(draws))
    # Five standard errors of a variance and of a covariance of 4,000 draws.
    np.testing.assert_allclose(whitened.T @ whitened / 4000, np.eye(DIM), atol=5 * 1.42 / 4000**0.5)


def test_eigenpairs_as_a_preconditioner(x64, key):
    h = jnp.asarray(networks.spd(60, condition=1e6))
    op = as_operator(lambda v: h @ v, jnp.zeros(60))
    pairs = flatjax.eigsh(op, 20, key=key, tol=1e-6)
    low = low_rank(pairs, damping=float(pairs.values[-1]))
    b = jnp.ones(60)
    alone = flatjax.inverse(op, tol=1e-6).solve(b)
    helped = flatjax.inverse(op, tol=1e-6, preconditioner=as_operator(low.solve, b)).solve(b)
    assert helped.converged
    assert int(helped.iterations) < 0.7 * int(alone.iterations)


def test_bad_arguments():
    pairs = Pairs("float32")
    for damping, error, message in [
        (0.0, ValueError, "damping must be above 0"),
        (0.001, ValueError, "all damped eigenvalues must be positive"),
        ("1", TypeError, "damping must be a number"),
    ]:
        with pytest.raises(error, match=message):
            low_rank(pairs, damping=damping)
    with pytest.raises(TypeError, match="must have values and vectors"):
        low_rank((pairs.values, pairs.vectors), damping=1.0)
    with pytest.raises(ValueError, match="3 vectors and values of shape"):
        low_rank(Pairs("float32", VALUES[:2]), damping=1.0)
    with pytest.raises(ValueError, match="all damped eigenvalues"):
        low_rank(Pairs("float32", VALUES * np.nan), damping=1.0)
    low = low_rank(pairs, damping=1.0)
    with pytest.raises(TypeError, match="v must have the tree structure"):
        low.solve(jnp.ones(9))
    with pytest.raises(ValueError, match="key is missing"):
        low.sample(key=None)
