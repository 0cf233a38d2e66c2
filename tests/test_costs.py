"""The costs of products that the documentation promises, on networks of benchmark size."""

import pytest

from benchmarks import costs


@pytest.mark.parametrize(
    "name",
    # Some twenty programs of a real network each.
    ["mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cnn", "transformer"))],
)
def test_products_cost_what_is_promised(name):
    for row, cost in costs.measure(name).items():
        # Flops of the compiled program are exact; the elementwise work of softmax, normalisation
        # and their derivatives comes on top of the matrix products, at most 1 % here.
        assert cost["flops"] <= 1.01 * cost["bound"], row
        assert cost["flops"] <= cost["target"], row
        assert cost["programs"] == (2 if "linearised" in row else 1), row
        assert cost["again"] == 0, row
