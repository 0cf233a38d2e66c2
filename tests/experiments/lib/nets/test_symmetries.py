"""The symmetries of the networks of the experiments: right, complete, and found again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from experiments.lib.nets.architecture import Architecture, network
from experiments.lib.nets.config import ModelConfig
from experiments.lib.nets.models import make_model
from experiments.lib.nets.symmetries import evaluated, symmetries

IMAGES = np.random.default_rng(0).normal(size=(3, 4, 4, 1)).astype(np.float32)
# The groups of each: one for every hidden layer, one inside every block of a residual network and
# one stream between shortcuts, heads with their queries and values.
NETWORKS = {
    "mlp": (Architecture(hidden=(6, 5)), IMAGES.reshape(3, -1), 2),
    "mlp-6-batch": (Architecture(network="mlp-6-batch"), IMAGES, 2),
    "mlp-9-group": (Architecture(network="mlp-9-group"), IMAGES, 2 * 2),
    "mlp-3-9-skip": (Architecture(network="mlp-3-9-skip"), IMAGES, 1),
    "s2cnn-4": (Architecture(network="s2cnn-4"), IMAGES, 3),
    "cnn-9-group": (Architecture(network="cnn-9-group"), IMAGES, 4 * 2),
    "simple_cnn-4-layer": (Architecture(network="simple_cnn-4-layer"), IMAGES, 5),
    "resnet-8-6": (Architecture(network="resnet-8-6"), IMAGES, 3 + 3),
    "resnet-8-9-group": (Architecture(network="resnet-8-9-group"), IMAGES, 2 * (3 + 3)),
    "resnet-8-6-none": (Architecture(network="resnet-8-6-none"), IMAGES, 3 + 3),
    "resnet-8-6-noskip": (Architecture(network="resnet-8-6-noskip"), IMAGES, 1 + 3 + 3),
    "wide_resnet-10-1": (Architecture(network="wide_resnet-10-1"), IMAGES, 3 + 3),
    "wide_resnet-10-2-none": (Architecture(network="wide_resnet-10-2-none"), IMAGES, 4 + 3),
    "transformer-8": (Architecture(network="transformer-8"), IMAGES, 1 + 2 * 4),
    "tokens": (
        ModelConfig(name="transformer", width=8, heads=2, depth=1, vocabulary=7, per_token=True),
        np.random.default_rng(1).integers(0, 7, (3, 5)),
        1 + 4,
    ),
}
# One of every kind; the others are slow tests.
FAST = ("mlp", "mlp-6-batch", "s2cnn-4", "resnet-8-6", "tokens")
each = pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS]
)


def made(name):
    """The model, a tree of normal numbers (variances positive), its spec, the inputs."""
    which, inputs, _ = NETWORKS[name]
    model = network(which) if isinstance(which, Architecture) else make_model(which, 4)
    params, state = jax.eval_shape(model.init, jax.random.key(0), inputs)
    rng = np.random.default_rng(0)

    def drawn(path, a):
        scale = np.sqrt(max(a.size // a.shape[-1], 1)) if a.ndim > 1 else 1.0
        values = rng.normal(size=a.shape) / scale
        values = np.abs(values) + 0.5 if "var" in jax.tree_util.keystr(path) else values
        return values.astype(np.float32)

    tree = jax.tree_util.tree_map_with_path(drawn, {"params": params, "model_state": dict(state)})
    return model, tree, symmetries(which, tree), inputs


@each
def test_the_spec_is_right(name, key):
    model, tree, spec, inputs = made(name)
    assert len(spec.sizes) == NETWORKS[name][2]
    found = flatjax.check_symmetry(evaluated(model), tree, spec, inputs, key=key)
    assert found.holds, found.message


@each
def test_a_permuted_network_is_found_again(name, key):
    _, tree, spec, _ = made(name)
    truth = flatjax.random_permutations(spec, key=key)
    target = flatjax.apply_permutation(tree, truth, spec)
    found = flatjax.match_weights(target, tree, spec, key=key, restarts=4)
    jax.tree.map(np.testing.assert_array_equal, found.params, target)


def test_a_forgotten_leaf_is_named(key):
    model, tree, spec, inputs = made("resnet-8-6")
    path = "model_state/batch_stats/BasicBlock_1/shortcut_norm/mean"
    wrong = spec._replace(axes={**spec.axes, path: (None,)})
    found = flatjax.check_symmetry(evaluated(model), tree, wrong, inputs, key=key)
    assert found.leaves == (path,)
    assert found.groups == ("BasicBlock_1-stream",)


def test_statistics_are_made_anew_between_matched_networks(key):
    """REPAIR with batch norm: each point of the chord has the statistics of its own units."""
    model, tree, spec, inputs = made("mlp-6-batch")
    truth = flatjax.random_permutations(spec, key=key)
    other = flatjax.apply_permutation(tree, truth, spec)

    def loss_fn(params, batch, state):
        return jnp.square(model.model_fn(params, batch, state)).mean(-1)

    def running(params, state, batch):
        return model.apply(params, state, batch, train=True)[1]

    def barrier(a, b):
        repaired = lambda params: flatjax.reestimate_batch_statistics(  # noqa: E731
            running, params, tree["model_state"], [inputs]
        )
        return flatjax.barrier(
            loss_fn, a["params"], b["params"], inputs, num_points=3, args_fn=repaired
        )

    matched = flatjax.match_weights(tree, other, spec, key=key, restarts=4).params
    found = barrier(tree, matched)

    # The same network at both ends: the losses are those of its own statistics, all alike.
    @jax.jit
    def expected(params, state):
        own = running(params, jax.tree.map(jnp.zeros_like, state), inputs)
        own = jax.tree.map(lambda a: 10 * a, own)  # momentum 0.9, from zero
        return loss_fn(params, inputs, own).mean()

    there = expected(tree["params"], tree["model_state"])
    # Float32 means and variances by way of a running average.
    np.testing.assert_allclose(found.line.losses, np.full(3, there), rtol=1e-3)
    unmatched = barrier(tree, other).line.losses
    np.testing.assert_allclose(unmatched[::2], np.full(2, there), rtol=1e-3)
    assert abs(unmatched[1] - there) > 1e-2 * there  # ten times what rounding may do


def test_a_user_s_own_network_is_not_known():
    with pytest.raises(ValueError, match="my_nets:tiny are not known"):
        symmetries(Architecture(network="my_nets:tiny"), {"params": {}, "model_state": {}})
