"""Any network as a function of one vector: the network's own numbers, whatever its kind."""

import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lib.nets.architecture import Architecture, network
from experiments.lib.nets.flat import flat_network
from experiments.lib.nets.losses import per_example
from experiments.lib.nets.mlp import apply_mlp, init_mlp
from experiments.lib.runs.errors import BadNetwork


class Dropping(nn.Module):
    """A user's own network."""

    classes: int
    norm: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(6)(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(self.classes)(nn.Dropout(0.5, deterministic=not train)(x))


class Scaled(nn.Module):
    """With a state that is no batch norm's."""

    classes: int

    @nn.compact
    def __call__(self, x, train=False):
        scale = self.variable("given", "scale", lambda: jnp.float32(2))
        return nn.Dense(self.classes, use_bias=False)(x) * scale.value


def normed(classes):
    return Dropping(classes, norm=True)


def some(shape, seed=0):
    """A batch of three classes."""
    draw = np.random.RandomState(seed)
    inputs = draw.randn(*shape).astype(np.float32)
    return jnp.asarray(inputs), jnp.asarray(draw.randint(0, 3, shape[0]))


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_the_plain_mlp_to_the_last_bit(loss):
    net = flat_network(Architecture(hidden=(4, 3), init_scale=0.6, classes=5, loss=loss), (7,))
    trees = [init_mlp(jax.random.key(seed), (7, 4, 3, 5), scale=0.6) for seed in (3, 8)]
    params = net.init_seeds([3, 8])
    for row, tree in zip(params, trees, strict=True):
        np.testing.assert_array_equal(row, jax.flatten_util.ravel_pytree(tree)[0])
    assert net.size == params.shape[1] == 7 * 4 + 4 + 4 * 3 + 3 + 3 * 5 + 5
    inputs, targets = some((9, 7))
    logits = apply_mlp(trees[1], inputs)
    np.testing.assert_array_equal(net(params[1], inputs), logits)
    losses = per_example(loss)(logits, targets)
    np.testing.assert_array_equal(net.losses_fn(params[1], (inputs, targets)), losses)
    assert net.accuracy(params[1], inputs, targets) == (logits.argmax(-1) == targets).mean()


def test_batch_norm_normalises_over_what_it_is_given():
    architecture = Architecture(network="mlp-6-batch", classes=3)
    net, model = flat_network(architecture, (5,)), network(architecture)
    inputs, targets = some((16, 5))
    params, state = model.init(jax.random.key(2), inputs[:1])
    vector = net.init(jax.random.key(2))
    logits = model.apply(params, state, inputs, train=True)[0]
    np.testing.assert_array_equal(net(vector, inputs), logits)
    assert net.accuracy(vector, inputs, targets) == (logits.argmax(-1) == targets).mean()
    # No averages of earlier batches, neither at first nor later.
    evaluated = model.apply(params, state, inputs, train=False)[0]
    assert not np.allclose(logits, evaluated, atol=1e-2)
    assert not np.allclose(net(vector, inputs[:8]), logits[:8], atol=1e-2)


def test_dropout_is_off_and_refused_beside_batch_norm():
    net = flat_network(Architecture(network=f"{__name__}:Dropping", classes=3), (5,))
    inputs, _ = some((2, 5))
    vector = net.init(jax.random.key(0))
    tree = net.unravel(vector)
    hidden = inputs @ tree["Dense_0"]["kernel"]
    # Sums of five and of six products in float32.
    np.testing.assert_allclose(net(vector, inputs), hidden @ tree["Dense_1"]["kernel"], atol=1e-5)
    with pytest.raises(BadNetwork, match="normed has batch norm and dropout"):
        flat_network(Architecture(network=f"{__name__}:normed", classes=3), (5,))


def test_any_other_state_is_that_of_the_start():
    net = flat_network(Architecture(network=f"{__name__}:Scaled", classes=3), (5,))
    inputs, _ = some((2, 5))
    vector = net.init(jax.random.key(0))
    # Sums of five products in float32.
    np.testing.assert_allclose(
        net(vector, inputs), 2 * inputs @ net.unravel(vector)["Dense_0"]["kernel"], atol=1e-5
    )


def test_seeds_of_a_convolutional_network_go_one_after_the_other(quick_compilation):
    net = flat_network(Architecture(network="s2cnn-2", classes=3), (6, 5, 1))
    batches = [some((4, 6, 5, 1), seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    params = net.init_seeds([0, 1, 2])

    def one(params, batch):
        return jax.value_and_grad(lambda p: net.losses_fn(p, batch).mean())(params)

    found = jax.jit(net.over_seeds(one))(params, stacked)
    alone = jax.jit(one)
    for i, batch in enumerate(batches):
        for ours, theirs in zip(found, alone(params[i], batch), strict=True):
            # In a loop a convolution may sum its few products in another order.
            np.testing.assert_allclose(ours[i], theirs, rtol=1e-4, atol=1e-6)
    # Side by side each seed would have a group of channels of its own.
    programs = [
        str(jax.make_jaxpr(f)(params, stacked)) for f in (net.over_seeds(one), jax.vmap(one))
    ]
    assert ["group_count=3" in program for program in programs] == [False, True]


def test_one_object_for_each_network_and_shape():
    net = flat_network(Architecture(hidden=(3,)), (5,))
    assert flat_network(Architecture(hidden=(3,)), (5,)) is net
    assert flat_network(Architecture(hidden=(3,)), (6,)).size == net.size + 3
