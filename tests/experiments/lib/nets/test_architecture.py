"""The network of an architecture: every option reaches it, and it is one object."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lib.nets.architecture import Architecture, network
from experiments.lib.nets.mlp import apply_mlp, init_mlp
from experiments.lib.training.recipes import Recipe


def test_every_option_reaches_the_mlp():
    architecture = Architecture(hidden=(4,), activation="relu", init_scale=0.3, classes=2)
    params, state = network(architecture).init(jax.random.key(5), jnp.zeros((1, 3)))
    expected = init_mlp(jax.random.key(5), (3, 4, 2), scale=0.3)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert state == {}
    inputs = jax.random.normal(jax.random.key(6), (5, 3))
    logits = apply_mlp(expected, inputs, activation=jax.nn.relu)
    np.testing.assert_array_equal(network(architecture).model_fn(params, inputs), logits)


@pytest.mark.parametrize(("name", "flat"), [("mlp", True), ("mlp-5", False), ("s2cnn-2", False)])
def test_a_named_network_has_the_outputs_and_takes_images(name, flat):
    architecture = Architecture(network=name, classes=3)
    assert architecture.flat is flat
    shape = (2, 12) if flat else (2, 4, 3, 1)
    model, inputs = network(architecture), jnp.zeros(shape)
    params, state = jax.eval_shape(model.init, jax.random.key(0), inputs)
    logits = jax.eval_shape(model.model_fn, params, inputs, state)
    assert logits.shape == (2, 3)


def test_one_object_for_each_whatever_else_a_recipe_says():
    architecture = Architecture(network="s2cnn-2")
    assert network(architecture) is network(Recipe(network="s2cnn-2", epochs=3))
    assert network(architecture) is not network(Architecture(network="s2cnn-2", classes=3))


@pytest.mark.parametrize("name", ["mlp", "s2cnn-2"])
def test_over_runs_is_each_run_by_itself(name):
    architecture = Architecture(network=name, hidden=(3,))
    model = network(architecture)
    shape = (2, 5, 16) if architecture.flat else (2, 5, 4, 4, 1)
    inputs = jnp.asarray(np.random.RandomState(0).randn(*shape), jnp.float32)
    params = jax.vmap(lambda key: model.init(key, inputs[0])[0])(
        jax.random.split(jax.random.key(0))
    )

    def logits(params, inputs):
        return {"logits": model.apply(params, {}, inputs, train=False)[0]}

    found = jax.jit(architecture.over_runs(logits))(params, inputs)["logits"]
    for i in range(2):
        alone = logits(jax.tree.map(lambda a, i=i: a[i], params), inputs[i])["logits"]
        # Float32 sums of some ten terms, in another order.
        np.testing.assert_allclose(found[i], alone, rtol=1e-5, atol=1e-6)
