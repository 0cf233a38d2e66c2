"""The step of a Lanczos run: when it breaks down, and how orthogonal it leaves its vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax import _trees as trees
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.vectors import _basis as bases
from flatjax.operators._base import as_operator

EPS = float(jnp.finfo(jnp.float32).eps)


def test_a_vector_drawn_into_an_almost_full_basis_is_orthogonal_to_it():
    # Of a random vector 1/45 is left beside 1999 of 2000 directions: the first pass leaves
    # rounding 45 times as large, beside what is left, as the second does.
    n = 2000
    rng = np.random.default_rng(0)
    mirror = rng.standard_normal(n)
    mirror = np.asarray(mirror / np.linalg.norm(mirror))
    basis = np.asarray(np.eye(n) - 2 * np.outer(mirror, mirror), np.float32)
    basis[-1] = 0
    state = krylov.start(jnp.asarray(basis[0]), n, jax.random.key(0))
    state = state._replace(basis=jnp.asarray(basis), step=jnp.int32(n - 1))
    found = krylov.inject(state, np.int32(n - 1))
    assert int(found.step) == n - 1
    found = np.asarray(found.vector, np.float64)
    np.testing.assert_allclose(np.linalg.norm(found), 1, atol=10 * EPS)
    overlap = np.linalg.norm(basis.astype(np.float64) @ found)
    # Rounding of the basis itself is eps/2 a number, so eps in all.
    assert overlap < 4 * EPS, overlap / EPS


def run(values, steps, dtype=jnp.float32):
    d = jnp.asarray(values, dtype)
    start = np.random.default_rng(0).standard_normal(len(values))
    v0, _ = trees.normalized(jnp.asarray(start, dtype))
    op = as_operator(jax.tree_util.Partial(jnp.multiply, d), d)
    return krylov.run(op, krylov.start(v0, steps, jax.random.key(0)), steps)


def tridiagonal(state):
    a, b = (np.asarray(x, np.float64) * float(state.scale) for x in (state.alphas, state.betas))
    return np.diag(a) + np.diag(b[:-1], 1) + np.diag(b[:-1], -1), b[-1]


def test_small_couplings_are_no_breakdown():
    # A cluster at 1e-3 of the norm couples its vectors by 1e-4 of it: far above rounding, and
    # below the root of eps, 3.5e-4. What is dropped there is missing from every Ritz pair.
    values = np.append(1e-3 * np.linspace(0.5, 1, 59), 1.0)
    state = run(values, 12)
    betas = np.asarray(state.betas)
    assert not np.asarray(state.breakdown).any()
    assert (betas[2:] * float(state.scale) < EPS**0.5).all()  # it is the case that it claims to be
    t, last = tridiagonal(state)
    q = np.asarray(state.basis, np.float64)
    residual = np.zeros_like(q)
    residual[-1] = last * np.asarray(state.vector, np.float64)
    np.testing.assert_allclose(q * values, t @ q + residual, atol=20 * EPS)


@pytest.mark.parametrize("scale", [1e-24, 1.0, 1e30])
def test_rounding_is_a_breakdown(scale):
    # Three distinct values: after three steps nothing but rounding is left.
    values = scale * np.repeat([1.0, 2.0, 4.0], 10)
    state = run(values, 12)
    assert np.asarray(state.breakdown).tolist().index(True) == 2
    t, _ = tridiagonal(state)
    ritz = np.linalg.eigvalsh(t) / scale
    # Every Ritz value is one of the three: nothing of a corrupted coupling.
    nearest = np.abs(ritz[:, None] - np.array([1.0, 2.0, 4.0])).min(axis=1)
    assert nearest.max() < 20 * EPS * 4
    q = np.asarray(state.basis, np.float64)
    np.testing.assert_allclose(q @ q.T, np.eye(12), atol=20 * EPS)


@pytest.mark.parametrize(
    ("x", "expected"), [(1.0, 1.0), (3.9, 2.0), (4.0, 4.0), (0.0, 1.0), (np.inf, 1.0), (np.nan, 1)]
)
def test_the_power_of_two_below(x, expected):
    assert float(krylov.power_of_two(jnp.float32(x))) == expected


def test_the_power_of_two_has_an_inverse():
    for x in (1.2e-38, 3e38):
        unit = krylov.power_of_two(jnp.float32(x))
        assert float(unit * (1 / unit)) == 1


def full_state(rows):
    """A state of ``rows`` filled rows; the next vector has no place yet."""
    vector = jnp.full(12, 7.0)
    state = krylov.start(vector, rows, jax.random.key(0))
    basis = jnp.arange(12.0 * rows).reshape(rows, 12)
    return state._replace(basis=basis, step=jnp.int32(rows)), np.asarray(basis)


@pytest.mark.parametrize(
    ("rows", "last", "sizes"),
    [(32, 160, [32, 32, 64, 32]), (32, 50, [32, 18]), (8, 160, [8, 32, 40, 80]), (8, 9, [8, 1])],
)
def test_rows_are_doubled_in_parts_of_their_own(rows, last, sizes):
    state, old = full_state(rows)
    assert krylov.with_room(state._replace(step=jnp.int32(rows - 1)), last).basis is state.basis
    while state.alphas.shape[0] < last:
        begin = state.alphas.shape[0]
        state = krylov.with_room(state._replace(step=jnp.int32(begin)), last)
        assert state.alphas.shape == state.betas.shape == state.breakdown.shape
        assert bases.size(state.basis) == state.alphas.shape[0]
        np.testing.assert_array_equal(bases.row(state.basis, begin), 7)
    assert [bases.size(part) for part in state.basis.parts] == sizes
    np.testing.assert_array_equal(state.basis.parts[0], old)
    np.testing.assert_array_equal(bases.row(state.basis, last - 1), 7 if sizes[-1] == 1 else 0)


def test_a_small_run_begins_with_all_its_rows():
    assert krylov.first_rows(1000, 160) == 160
    assert krylov.first_rows(100_000, 160) == 32
    assert krylov.first_rows(100_000, 20) == 20


def test_long_vectors_take_few_rows_at_a_time(monkeypatch):
    assert krylov.first_rows(1 << 24, 160) == 32
    assert krylov.first_rows((1 << 24) + 1, 160) == 16
    assert krylov.first_rows(1 << 30, 10) == 10
    monkeypatch.setattr(krylov, "LARGE", 11)
    state, _ = full_state(32)
    assert [bases.size(part) for part in krylov.with_room(state, 160).basis.parts] == [32, 16]
