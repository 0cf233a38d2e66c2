"""Equally weighted averages and their covariance."""

import jax
import numpy as np
import pytest

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import assert_close, averaged, flat

XENT = losses.softmax_cross_entropy


def test_swa(net, path):
    _, state, average = averaged(ft.swa(2, every=2), net)
    assert_close(average, path[[3, 5]].mean(axis=0))
    assert int(state[-1].collected) == 2


def columns(state, rank):
    """The deviations, one raveled row each."""
    return np.stack([flat([a[k] for a in jax.tree.leaves(state.deviations)]) for k in range(rank)])


def test_swag_moments(net, path):
    _, state, average = averaged(ft.swag(1, every=1, rank=3), net)
    kept = path[1:]
    assert_close(average, kept.mean(axis=0))
    assert_close(state[-1].square, kept.var(axis=0), rtol=1e-9)
    running = np.cumsum(kept, axis=0) / np.arange(1, len(kept) + 1)[:, None]
    # Columns 3, 4, 5 have overwritten 0, 1, 2.
    assert_close(columns(state[-1], 3), (kept - running)[3:])


@pytest.mark.parametrize("rank", [0, 3])
def test_swag_samples_have_its_covariance(rank, net):
    params, _ = net
    _, state, average = averaged(ft.swag(1, rank=rank), net)
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(
        jax.vmap(
            lambda k: jax.flatten_util.ravel_pytree(
                ft.swag_sample(state, params, key=k, scale=0.5)
            )[0]
        )
    )
    samples = np.asarray(draw(keys)) - average
    covariance = np.diag(flat(state[-1].square))
    if rank:
        d = columns(state[-1], rank)
        covariance = covariance / 2 + d.T @ d / (2 * (rank - 1))
    for u in np.random.default_rng(0).normal(size=(5, samples.shape[1])):
        expected = 0.25 * u @ covariance @ u
        # Four standard errors of the variance of 4000 Gaussian draws.
        assert (samples @ u).var() == pytest.approx(expected, rel=4 * np.sqrt(2 / 4000))


def test_a_state_of_another_rank_is_refused_and_numpy_is_taken(net):
    params, _ = net
    few, more = ft.swag(1, rank=3), ft.swag(1, rank=5)
    state = few.init(params)
    with pytest.raises(ValueError, match="holds 3 deviations, and rank=5"):
        more.update(params, state, params)
    # As a checkpoint gives it back.
    restored = jax.tree.map(np.asarray, state)
    found, expected = (flat(few.update(params, s, params)[1]) for s in (restored, state))
    np.testing.assert_array_equal(found, expected)
