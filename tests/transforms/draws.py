"""Draws of a transform over many seeds, and the covariance that they should have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

SEEDS = 4000


def draws(make, params, batch):
    """The outgoing update on a zero gradient, over seeds, raveled."""
    zero = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    @jax.vmap
    def draw(seed):
        tx = make(seed)
        return ravel_pytree(tx.update(zero, tx.init(params), params, batch=batch)[0])[0]

    return np.asarray(draw(jnp.arange(SEEDS)))


def assert_covariance(samples, covariance):
    """The variance along five directions, each within four standard errors, and a zero mean."""
    rng = np.random.default_rng(0)
    for u in rng.normal(size=(5, samples.shape[1])):
        expected, along = u @ covariance @ u, samples @ u
        # The sample variance of a Gaussian has a relative standard error of sqrt(2 / n).
        assert along.var() == pytest.approx(expected, rel=4 * np.sqrt(2 / SEEDS))
        assert abs(along.mean()) < 4 * np.sqrt(expected / SEEDS)
