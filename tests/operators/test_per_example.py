"""The materialised gradients of single examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import flatjax
from tests.models import CONTAINERS, NETWORKS, mlp, permutation
from tests.operators import references


def rows(gradients):
    """Stacked gradients as a matrix ``(n, P)``."""
    return np.asarray(jax.vmap(lambda g: ravel_pytree(g)[0])(gradients))


@pytest.mark.parametrize("name", NETWORKS)
def test_stacked_gradients(name, x64):
    network = NETWORKS[name]
    params, batch = network.cast()
    losses_fn = references.losses_fn(network.apply)
    found = rows(flatjax.per_example_gradients(losses_fn, params, batch))
    assert found.dtype == jnp.float64
    references.assert_close(found, references.reference(name).gradients, references.FLOAT64)


@pytest.mark.parametrize("name", ["named_tuple", "nnx", "equinox"])
def test_containers(name):
    params, batch = NETWORKS["mlp"].cast(jnp.float32)
    params, apply = CONTAINERS[name](params)
    gradients = flatjax.per_example_gradients(references.losses_fn(apply), params, batch)
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    wanted = references.reference("mlp").gradients[:, permutation(CONTAINERS[name])]
    references.assert_close(rows(gradients), wanted, references.FLOAT32)


@pytest.mark.parametrize("chunk_size", [3, 8, 100])
def test_chunks(chunk_size):
    params, batch = NETWORKS["mlp"].cast(jnp.float32)
    found = flatjax.per_example_gradients(
        references.losses_fn(mlp), params, batch, chunk_size=chunk_size
    )
    references.assert_close(rows(found), references.reference("mlp").gradients, references.FLOAT32)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_under_jit(chunk_size):
    params, batch = NETWORKS["mlp"].cast(jnp.float32)
    losses_fn = references.losses_fn(mlp)

    @jax.jit
    def traced(params):
        return flatjax.per_example_gradients(losses_fn, params, batch, chunk_size=chunk_size)

    references.assert_close(
        rows(traced(params)), references.reference("mlp").gradients, references.FLOAT32
    )


def test_a_mean_loss_and_arguments():
    x, w = jnp.arange(6.0).reshape(3, 2), jnp.zeros(2)
    found = flatjax.per_example_gradients(
        lambda w, x, s: s * (x @ w).mean(), w, x, jnp.float32(2.0)
    )
    np.testing.assert_array_equal(found, 2 * x)


def test_errors():
    losses_fn, w, x = (lambda w, x: x @ w), jnp.ones(2), jnp.ones((3, 2))
    with pytest.raises(ValueError, match="per_example_gradients needs a batch of examples"):
        flatjax.per_example_gradients(losses_fn, w, ())
    with pytest.raises(ValueError, match="batch is empty: it needs at least one example"):
        flatjax.per_example_gradients(losses_fn, w, x[:0])
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        flatjax.per_example_gradients(losses_fn, w, x, chunk_size=0)
    with pytest.raises(TypeError, match="loss_fn must be a function, got int"):
        flatjax.per_example_gradients(3, w, x)
    with pytest.raises(TypeError, match="params must be a real floating array"):
        flatjax.per_example_gradients(losses_fn, jnp.ones(2, jnp.int32), x)
    with pytest.raises(ValueError, match=r"scalar or one value per example.*got \(3, 1\)"):
        flatjax.per_example_gradients(lambda w, x: (x @ w)[:, None], w, x)
