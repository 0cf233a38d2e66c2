"""The buffers of a Lanczos run: short, few, and with every vector in its place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.linalg.krylov import _extremes as lanczos_state
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.vectors import _basis as bases

N = 12


def full_state(rows):
    """A state of ``rows`` filled rows; the next vector has no place yet."""
    vector = jnp.full(N, 7.0)
    state = krylov.start(vector, rows, jax.random.key(0))
    basis = jnp.arange(rows * N, dtype=jnp.float32).reshape(rows, N)
    return state._replace(basis=basis, step=jnp.int32(rows)), np.asarray(basis)


@pytest.mark.parametrize(
    ("rows", "last", "sizes"),
    [
        (32, 160, [32, 32, 32, 32, 32]),
        (32, 50, [32, 18]),
        (32, 432, [32, 100, 100, 100, 100]),  # four new ones, whatever their length
        (8, 9, [8, 1]),
    ],
)
def test_room_comes_in_a_few_short_buffers(monkeypatch, rows, last, sizes):
    monkeypatch.setattr(lanczos_state, "_TINY", 0)
    state, old = full_state(rows)
    grown = lanczos_state.with_room(state, last)
    assert [bases.size(part) for part in grown.basis.parts] == sizes
    assert grown.alphas.shape == grown.betas.shape == grown.breakdown.shape == (last,)
    whole = np.asarray(bases.whole(grown.basis))
    np.testing.assert_array_equal(whole[:rows], old)
    np.testing.assert_array_equal(whole[rows], 7)
    np.testing.assert_array_equal(whole[rows + 1 :], 0)
    assert int(grown.basis.filled) == rows + 1


def test_where_all_is_much_the_rows_are_doubled(monkeypatch):
    monkeypatch.setattr(lanczos_state, "_TINY", 0)
    monkeypatch.setattr(lanczos_state, "_SMALL", 0)
    state, _ = full_state(32)
    grown = lanczos_state.with_room(state, 160)
    assert [bases.size(part) for part in grown.basis.parts] == [32, 32]
    grown = lanczos_state.with_room(grown._replace(step=jnp.int32(64)), 160)
    assert [bases.size(part) for part in grown.basis.parts] == [32, 32, 32, 32]


def test_below_a_size_there_is_one_buffer():
    state, old = full_state(32)
    grown = lanczos_state.with_room(state, 160)
    assert grown.basis.shape == (160, N)
    np.testing.assert_array_equal(grown.basis[:32], old)
    np.testing.assert_array_equal(grown.basis[32], 7)


def test_with_room_left_nothing_changes():
    state = krylov.start(jnp.ones(N), 32, jax.random.key(0))
    assert lanczos_state.with_room(state, 160) is state
