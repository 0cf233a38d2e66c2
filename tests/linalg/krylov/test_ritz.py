"""The small projected problem: which values are wanted, in which order."""

import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.linalg.krylov import _ritz as ritz

VALUES = np.array([-9.0, -1.0, 0.5, 7.0, 8.0])


@pytest.mark.parametrize(
    ("which", "expected"),
    [("LA", [8, 7, 0.5]), ("SA", [-9, -1, 0.5]), ("LM", [-9, 8, 7]), ("BE", [8, 7, -9])],
)
def test_the_wanted_come_best_first(which, expected):
    np.testing.assert_array_equal(VALUES[ritz.wanted(VALUES, 3, which)], expected)
    device = jnp.asarray(VALUES, jnp.float32)
    np.testing.assert_array_equal(device[ritz.wanted(device, 3, which)], expected)
    mixed = VALUES[[3, 0, 4, 2, 1]]
    np.testing.assert_array_equal(mixed[ritz.best(mixed, 3, which)], expected)
    index = ritz.descending(VALUES, ritz.wanted(VALUES, 3, which))
    np.testing.assert_array_equal(VALUES[index], sorted(expected, reverse=True))
    assert len(ritz.wanted(VALUES, 9, which)) == 5


def test_the_last_coupling_leads_out_of_the_matrix():
    t = ritz.tridiagonal(np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0]))
    np.testing.assert_array_equal(t, [[1, 4, 0], [4, 2, 5], [0, 5, 3]])


def test_what_is_not_finite_is_nan_throughout():
    values, vectors = ritz.eigh(np.array([[1.0, np.inf], [np.inf, 1.0]]))
    assert np.isnan(values).all()
    assert np.isnan(vectors).all()


def test_the_host_has_float64():
    found = ritz.to_host({"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2, jnp.int32)})
    assert found["a"].dtype == np.float64
    assert found["b"].dtype == np.int32
    columns = ritz.host_columns([jnp.ones(3), jnp.zeros(3)])
    np.testing.assert_array_equal(columns, np.array([[1.0, 0], [1, 0], [1, 0]]))
