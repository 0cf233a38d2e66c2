"""Noise of a chosen covariance, and Langevin dynamics, against their distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import flatjax.transforms as ft
from flatjax.transforms import _prng as prng
from tests.transforms.draws import assert_covariance, draws
from tests.transforms.zoo import (
    CLASSES,
    LENGTHS,
    assert_close,
    flat,
    loss_fn,
    per_example,
    sequence_means,
    sequences,
    token_mean,
)


@pytest.fixture(scope="module")
def each(net):
    """The gradients of the examples, a raveled row each."""
    params, batch = net
    w, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.jacrev(lambda w: per_example(unravel(w), batch)))(w))


def centred(each):
    return (each - each.mean(axis=0)).T @ (each - each.mean(axis=0)) / len(each)


@pytest.mark.parametrize("loss", [per_example, loss_fn])
def test_true_gradient_noise(net, each, loss):
    params, batch = net
    make = lambda s: ft.gradient_noise(0.5, covariance="gradient", loss_fn=loss, seed=s)  # noqa: E731
    assert_covariance(draws(make, params, batch), 0.25 * centred(each))


def test_diagonal_of_the_true_noise(net, each):
    params, batch = net
    make = lambda s: ft.gradient_noise(  # noqa: E731
        0.5, covariance="diagonal", loss_fn=per_example, seed=s
    )
    assert_covariance(draws(make, params, batch), 0.25 * np.diag(np.diag(centred(each))))


@pytest.mark.parametrize("loss", [token_mean, sequence_means])
def test_noise_of_a_loss_with_weights(loss, x64):
    # Exact, from the draws themselves: the covariance is that of the means of the sequences.
    params, batch = sequences(jnp.float64)
    w, unravel = ravel_pytree(params)
    kept = np.flatnonzero(LENGTHS)
    p = np.asarray(LENGTHS)[kept] / sum(LENGTHS)

    def means(w):
        out = sequence_means(unravel(w), tuple(a[kept] for a in batch))
        return out.total / out.weight

    each = np.asarray(jax.jit(jax.jacrev(means))(w))
    each = each - p @ each
    key = jax.random.fold_in(jax.random.key(0), 0)
    zero = jax.tree.map(jnp.zeros_like, params)

    def drawn(covariance):
        tx = ft.gradient_noise(0.5, covariance=covariance, loss_fn=loss, seed=0)
        return jax.jit(lambda: tx.update(zero, tx.init(params), params, batch=batch)[0])()

    z = np.array([jax.random.normal(jax.random.fold_in(key, i)) for i in kept])
    assert_close(drawn("gradient"), 0.5 * (np.sqrt(p) * z) @ each)
    normal = flat(prng.normal_like(key, params))
    assert_close(drawn("diagonal"), 0.5 * np.sqrt(p @ each**2) * normal)


def test_isotropic_and_given_variances(net):
    params, batch = net
    size = flat(params).size
    samples = draws(lambda s: ft.gradient_noise(0.5, seed=s), params, batch)
    assert_covariance(samples, 0.25 * np.eye(size))
    variances = {"first": 4.0, "last": {"w": jnp.ones((4, CLASSES))}}
    samples = draws(lambda s: ft.gradient_noise(0.5, covariance=variances, seed=s), params, batch)
    expected = np.concatenate([np.full(size - 12, 4.0), np.ones(12)])
    assert_covariance(samples, 0.25 * np.diag(expected))


def test_noise_is_fresh_every_step_and_reproducible(net):
    params, _ = net
    tx = ft.gradient_noise(1.0, seed=3)
    zero = jax.tree.map(jnp.zeros_like, params)
    state = tx.init(params)
    first, state = tx.update(zero, state, params)
    second, _ = tx.update(zero, state, params)
    again, _ = tx.update(zero, tx.init(params), params)
    assert not np.array_equal(flat(first), flat(second))
    np.testing.assert_array_equal(flat(first), flat(again))
