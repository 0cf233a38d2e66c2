"""The network of most tests, in float64, which stays on for the rest of the module."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from tests.transforms.zoo import STEPS, Dense, descend, network


@functools.cache
def _dense():
    return Dense(*network(jnp.float64))  # compiled once for all modules


@pytest.fixture(scope="module")
def net():
    """Params and batch."""
    with jax.enable_x64(True):
        yield network(jnp.float64)


@pytest.fixture(scope="module")
def dense(net):
    """The same network as a function of a vector, with its dense derivatives."""
    del net
    return _dense()


@pytest.fixture(scope="module")
def path(net):
    """The params along some steps of SGD, a row each."""
    params, batch = net
    trajectory, _ = descend(optax.sgd(0.5), params, batch, STEPS)
    return trajectory.reshape(STEPS, -1)
