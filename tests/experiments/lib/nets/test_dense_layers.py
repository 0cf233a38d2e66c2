"""Layers of an MLP in arrays of other programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lib.nets import named
from experiments.lib.nets.dense_layers import dense_layers, linen_widths, renamed, widths
from experiments.lib.nets.mlp import apply_mlp


def layer(*shape):
    return {"kernel": np.ones(shape), "bias": np.ones(shape[1:])}


CHAIN = {
    "Dense_10": layer(4, 3),
    "Dense_2": layer(5, 4),
    "Dense_0": layer(6, 5),
    "out": layer(3, 2),
}


def test_layers_are_in_the_order_of_their_numbers():
    layers = dense_layers(CHAIN)
    assert [name for name, _ in layers] == ["Dense_0", "Dense_2", "Dense_10", "out"]
    assert widths(layers) == (5, 4, 3)
    params = renamed(layers)
    assert list(params) == ["layer_0", "layer_1", "layer_2", "layer_3"]
    assert apply_mlp(params, jnp.ones((1, 6))).shape == (1, 2)
    assert widths(dense_layers({"out": layer(6, 2)})) == ()


def test_nested_calls_are_in_the_order_of_their_shapes():
    """Flax counts them from the outermost."""
    nested = {"Dense_0": layer(12, 10), "Dense_1": layer(20, 12), "Dense_2": layer(20, 20),
              "Dense_3": layer(64, 20)}  # fmt: skip
    names = [name for name, _ in dense_layers(nested)]
    assert names == ["Dense_3", "Dense_2", "Dense_1", "Dense_0"]
    assert widths(dense_layers(nested)) == (20, 20, 12)
    # Which of two alike comes first, or where a circle begins, no shape tells.
    many = {f"a{i}": layer(20, 20) for i in range(20)}  # and this is said at once
    assert dense_layers(nested | many) is None
    assert dense_layers({"a0": layer(6, 5), "a1": layer(7, 6), "a2": layer(5, 7)}) is None


@pytest.mark.parametrize(
    "params",
    [
        {},
        [layer(2, 2)],
        {"a0": layer(6, 5), "a1": layer(4, 2)},
        {"a0": {"kernel": np.ones((6, 5))}},
        {"a0": layer(6, 5) | {"scale": np.ones(5)}},
        {"a0": {"kernel": np.ones((6, 5)), "bias": np.ones(6)}},
        {"a0": layer(3, 3, 1, 4)},
        {"a0": np.ones(3)},
    ],
    ids=["empty", "list", "no chain", "no bias", "more", "bias", "convolution", "array"],
)
def test_other_arrays_are_no_mlp(params):
    assert dense_layers(params) is None


@pytest.mark.parametrize("name", ["mlp-3-7", "mlp-2-7-batch", "mlp-1-7-tanh"])
def test_widths_of_the_laboratory_s_own(name):
    network = named.model(name, 2)
    params, _ = jax.eval_shape(network.init, jax.random.key(0), jnp.ones((1, 5)))
    assert linen_widths(params) == (7,) * int(name.split("-")[1])


@pytest.mark.parametrize(
    "params",
    [
        {"Dense_0": layer(6, 5), "Dense_1": layer(5, 5)},
        {"Dense_0": layer(6, 5), "Dense_1": layer(5, 4), "head": layer(4, 2)},
        {"head": 0},
        [0],
    ],
    ids=["no head", "two widths", "linear", "list"],
)
def test_widths_of_other_arrays(params):
    assert linen_widths(params) is None
