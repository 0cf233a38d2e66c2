"""The networks have the papers' numbers of parameters."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from experiments.lib.nets import named


def _dense(inputs, outputs):
    return (inputs + 1) * outputs


def _convolutions(*channels):
    return sum(_dense(9 * a, b) for a, b in itertools.pairwise(channels))


@pytest.mark.parametrize(
    ("name", "side", "count"),
    [
        ("small_inception", 28, 1_649_402),  # Zhang et al. 2017, table 1
        ("simple_cnn", 32, _convolutions(3, 32, 32, 64, 64) + _dense(4096, 128) + _dense(128, 10)),
        # Without the biases 9,217,728 of VGG-11's convolutions, 2,752 biases, and the last layer.
        ("vgg11", 32, 9_217_728 + 2_752 + _dense(512, 10)),
    ],
)
def test_their_parameters_are_as_many_as_in_the_papers(name, side, count):
    model = named.model(f"experiments.lib.nets.papers:{name}", 10)
    image = jnp.zeros((1, side, side, 3))
    params, _ = jax.eval_shape(model.init, jax.random.key(0), image)
    assert sum(a.size for a in jax.tree.leaves(params)) == count


def test_only_inception_has_batch_statistics():
    for name, batch_norm in (("small_inception", True), ("simple_cnn", False)):
        model = named.model(f"experiments.lib.nets.papers:{name}", 10)
        _, state = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        assert bool(state) == batch_norm
