"""Every operator, plain and linearised, is the dense matrix of its textbook formula."""

import itertools

import jax
import pytest

from tests.models import NETWORKS
from tests.operators import references

# In float32 the kinds with arithmetic of their own: the others share it. Every network and every
# kind once; float64 has all their pairs.
FLOAT32_KINDS = ("hessian", "ggn", "covariance")
ONCE = set(zip(NETWORKS, FLOAT32_KINDS, strict=True))
CASES = [("float64", *pair) for pair in itertools.product(NETWORKS, references.OPERATORS)] + [
    pytest.param("float32", *pair, marks=() if pair in ONCE else pytest.mark.slow)
    for pair in itertools.product(NETWORKS, FLOAT32_KINDS)
]


@pytest.mark.parametrize(("name_of_dtype", "name", "kind"), CASES)
def test_the_matrix_and_a_linearised_product(name_of_dtype, name, kind):
    with jax.enable_x64(name_of_dtype == "float64"):
        network = NETWORKS[name]
        op = references.make(kind, network.apply, *network.cast(name_of_dtype))
        draws = op.draws if kind == "fisher_sampled" else None
        wanted = references.dense(kind, references.reference(name), draws=draws)
        matrix = op.to_dense()
        assert matrix.dtype == name_of_dtype
        tolerance = references.tolerance(name_of_dtype)
        references.assert_close(matrix, wanted, tolerance)
        references.assert_product(op.linearize(), wanted, tolerance)
