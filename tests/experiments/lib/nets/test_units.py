"""Units go into another order and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lib.nets.architecture import Architecture, network
from experiments.lib.nets.units import Units
from experiments.lib.runs.errors import BadNetwork


def test_units_go_into_another_order_and_back(key):
    architecture = Architecture(network="mlp-6-batch")
    inputs = jax.random.normal(key, (9, 4))
    params, state = network(architecture).init(key, inputs)
    units = Units(architecture, inputs[:1])
    other = units.reordered(params, key)
    assert (other["Dense_0"]["kernel"] != params["Dense_0"]["kernel"]).any()
    one, another = (
        network(architecture).apply(p, state, inputs, train=True)[0] for p in (params, other)
    )
    # Sums of six numbers in another order.
    np.testing.assert_allclose(one, another, atol=1e-5 * float(jnp.abs(one).max()))
    back = units.matched(params, other, key)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_a_network_of_which_no_units_are_known():
    with pytest.raises(BadNetwork, match="papers:VGG11 are not known: state them"):
        Units(Architecture(network="experiments.lib.nets.papers:VGG11"), np.zeros((1, 8, 8, 1)))
