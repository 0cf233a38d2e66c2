"""Networks by their names."""

import jax
import jax.numpy as jnp
import pytest

from experiments.lib.nets import named
from experiments.lib.nets.config import ModelConfig


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("s2cnn-8", {"name": "s2cnn", "width": 8}),
        ("s2cnn-8-tanh", {"name": "s2cnn", "width": 8, "activation": "tanh"}),
        ("resnet-20-group", {"name": "resnet", "depth": 20, "norm": "group"}),
        ("mlp-256-batch", {"name": "mlp", "width": 256, "norm": "batch"}),
        ("wide_resnet", {"name": "wide_resnet"}),
        ("wide_resnet-4", {"name": "wide_resnet", "width": 4}),
        ("wide_resnet-28-10", {"name": "wide_resnet", "depth": 28, "width": 10}),
        ("simple_cnn", {"name": "simple_cnn"}),
        ("mlp-3-64-tanh", {"name": "mlp", "depth": 3, "width": 64, "activation": "tanh"}),
        ("resnet-18-64", {"name": "resnet", "depth": 18, "width": 64}),
        ("resnet-20-noskip", {"name": "resnet", "depth": 20, "skip": False}),
        ("mlp-4-32-skip", {"name": "mlp", "depth": 4, "width": 32, "skip": True}),
        ("s2cnn-8-noise0.4", {"name": "s2cnn", "width": 8, "noise": 0.4}),
        ("mlp-1-32-noise3", {"name": "mlp", "depth": 1, "width": 32, "noise": 3.0}),
    ],
)
def test_names(name, options):
    assert named.parsed(name) == ModelConfig(**options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit", "there are mlp, s2cnn"),
        ("resnet-18-64-2", "depth and width at most, got 3 numbers"),
        ("cnn-8-swish", "'swish' is no number and none of none, batch"),
        ("cnn-8-noise", "'noise' is no number"),
        ("cnn-8-noise0.4x", "'noise0.4x' is no number"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        named.parsed(name)


def test_the_strided_network():
    """The parameters of two convolutions and two dense layers, and a quarter of the pixels."""
    model = named.model("s2cnn-8", 10)
    params, state = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    sizes = [25 * 8 + 8, 9 * 8 * 16 + 16, 7 * 7 * 16 * 64 + 64, 64 * 10 + 10]
    assert sum(a.size for a in jax.tree.leaves(params)) == sum(sizes)
    assert state == {}


def test_a_convolution_over_vectors_is_refused():
    init = named.model("cnn-8", 10).init
    with pytest.raises(ValueError, match=r"shape \(6,\): say --network mlp-64"):
        init(jax.random.key(0), jnp.zeros((1, 6)))
