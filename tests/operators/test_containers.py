"""Params in a dict, a list, a NamedTuple, or of flax linen, flax nnx and equinox."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tests.models import CONTAINERS, NETWORKS, permutation
from tests.operators import references

KINDS = ("hessian", "ggn", "covariance")


@jax.jit
def products(operators, v):
    # Through jit as arguments: every operator is a pytree, whatever its params are.
    return [op.mv(v) for op in operators]


@pytest.mark.parametrize("name", CONTAINERS)
def test_equals_the_dense_matrix(name, x64):
    network = NETWORKS["mlp"]
    params, batch = network.cast(jnp.float64)
    params, apply = CONTAINERS[name](params)
    plain = [references.make(kind, apply, params, batch) for kind in KINDS]
    linearized = [op.linearize() for op in plain]
    order = permutation(CONTAINERS[name])
    flat, unravel = ravel_pytree(params)
    row = np.random.default_rng(0).normal(size=flat.size)
    found = products(plain + linearized, unravel(jnp.asarray(row)))
    for kind, product in zip(2 * KINDS, found, strict=True):
        assert jax.tree.structure(product) == jax.tree.structure(params)
        matrix = references.dense(kind, references.reference("mlp"))[order][:, order]
        references.assert_close(ravel_pytree(product)[0], matrix @ row, references.FLOAT64)
    for op in plain + linearized:
        assert jax.tree.structure(op.structure) == jax.tree.structure(params)
        assert op.size == 31
