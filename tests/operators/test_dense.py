"""Every operator, plain and linearised, is the dense matrix of its textbook formula."""

import itertools

import jax.numpy as jnp
import pytest

from tests.models import NETWORKS
from tests.operators import references

# In float32 the kinds with arithmetic of their own; the others share it.
FLOAT32_KINDS = ("hessian", "ggn", "covariance")


def operator_and_matrix(name, kind, dtype):
    network = NETWORKS[name]
    op = references.make(kind, network.apply, *network.cast(dtype))
    draws = op.draws if kind == "fisher_sampled" else None
    return op, references.dense(kind, references.reference(name), draws=draws)


@pytest.mark.parametrize("kind", references.OPERATORS)
@pytest.mark.parametrize("name", NETWORKS)
def test_float64(name, kind, x64):
    op, wanted = operator_and_matrix(name, kind, jnp.float64)
    matrix = op.to_dense()
    assert matrix.dtype == jnp.float64
    references.assert_close(matrix, wanted, references.FLOAT64)
    references.assert_product(op.linearize(), wanted, references.FLOAT64)


# Every network and every kind once; float64 has all their pairs.
PAIRS = set(zip(NETWORKS, FLOAT32_KINDS, strict=True))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pair if pair in PAIRS else pytest.param(*pair, marks=pytest.mark.slow)
        for pair in itertools.product(NETWORKS, FLOAT32_KINDS)
    ],
)
def test_float32(name, kind):
    op, wanted = operator_and_matrix(name, kind, jnp.float32)
    matrix = op.to_dense()
    assert matrix.dtype == jnp.float32
    references.assert_close(matrix, wanted, references.FLOAT32)
    references.assert_product(op.linearize(), wanted, references.FLOAT32)
