"""The networks: shapes, state, initialisation, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lib.nets.config import ModelConfig
from experiments.lib.nets.models import make_model

IMAGES = jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)


def shapes(config, inputs=IMAGES, classes=10):
    """Traces a network without computing: parameters, model state, logits, new model state."""
    model = make_model(config, classes)
    params, state = jax.eval_shape(model.init, jax.random.key(0), inputs)

    def call(params, state, inputs, key):
        return model.apply(params, state, inputs, train=True, key=key)

    logits, new_state = jax.eval_shape(call, params, state, inputs, jax.random.key(1))
    return params, state, logits, new_state


@pytest.mark.parametrize("norm", ["none", "batch", "group", "layer"])
@pytest.mark.parametrize(
    "name", ["mlp", "cnn", "simple_cnn", "resnet", "wide_resnet", "transformer"]
)
def test_every_network_has_logits_and_keeps_its_state(name, norm):
    _, state, logits, new_state = shapes(ModelConfig(name=name, norm=norm, dropout=0.1))
    assert logits.shape == (4, 10)
    assert jax.tree.structure(state) == jax.tree.structure(new_state)
    assert bool(state) == (norm == "batch")


def size(config, **options):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(config, **options)[0]))


def test_parameter_counts_are_those_of_the_papers():
    colour = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    # He et al. 2016, table 6: ResNet-20 has 0.27M parameters, ResNet-56 0.85M. Ours has
    # projection shortcuts where theirs pads, a few thousand more.
    assert size(ModelConfig(name="resnet", depth=20), inputs=colour) == pytest.approx(
        0.27e6, rel=0.03
    )
    # Zagoruyko and Komodakis 2016, table 4: WRN-16-4 has 2.75M (their 2.7M), WRN-40-1 0.6M.
    assert size(ModelConfig(name="wide_resnet", depth=16, width=4), inputs=colour) == pytest.approx(
        2.75e6, rel=0.01
    )
    # ResNet-18 with 64 channels for 32 x 32 images: 11.17M (Nakkiran et al. 2020 use this one).
    assert size(ModelConfig(name="resnet", depth=18, width=64), inputs=colour) == pytest.approx(
        11.17e6, rel=0.01
    )


def test_the_simple_network_is_that_of_the_paper():
    """Convolutions of 32, 32, 64 and 64 channels, two poolings, 128 units, ten classes."""
    colour = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    channels = [(3, 32), (32, 32), (32, 64), (64, 64)]
    convolutions = sum(9 * a * b + b for a, b in channels)
    dense = 8 * 8 * 64 * 128 + 128 + 128 * 10 + 10
    assert size(ModelConfig(name="simple_cnn"), inputs=colour) == convolutions + dense


def test_width_and_depth_make_an_mlp():
    assert size(ModelConfig(name="mlp", width=5, depth=3)) == (64 * 5 + 5) + 2 * 30 + 60


def test_weights_have_the_stated_variance_and_biases_are_zero():
    model = make_model(ModelConfig(name="mlp", width=400, depth=1, activation="tanh"), 10)
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 100)))
    kernel = np.asarray(params["Dense_0"]["kernel"])
    # 40,000 normal draws: the standard deviation has a relative standard error of 0.35 %.
    assert kernel.std() == pytest.approx(100**-0.5, rel=0.015)
    assert not np.any(params["Dense_0"]["bias"])


def test_batch_norm_trains_on_the_batch_and_evaluates_on_running_averages():
    model = make_model(ModelConfig(name="mlp", width=6, depth=1, norm="batch"), 3)
    inputs = jax.random.normal(jax.random.key(1), (64, 5)) * 3 + 2
    params, state = model.init(jax.random.key(0), inputs)
    hidden = inputs @ params["Dense_0"]["kernel"]
    _, new_state = model.apply(params, state, inputs, train=True)
    statistics = new_state["batch_stats"]["BatchNorm_0"]
    # Momentum 0.9 from 0 and 1; float32 sums of 64 terms.
    np.testing.assert_allclose(statistics["mean"], 0.1 * hidden.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * hidden.var(0), rtol=1e-5)
    logits, same = model.apply(params, new_state, inputs, train=False)
    assert same is new_state
    alone, _ = model.apply(params, new_state, inputs[:1], train=False)
    # One example among others or alone: only the order of a dot product may differ.
    np.testing.assert_allclose(alone, logits[:1], atol=1e-5)
    np.testing.assert_array_equal(model.model_fn(params, inputs, new_state), logits)


def test_dropout_follows_its_key_and_is_off_in_evaluation():
    model = make_model(ModelConfig(name="mlp", dropout=0.5), 3)
    inputs = jnp.ones((2, 4))
    params, state = model.init(jax.random.key(0), inputs)
    first, again, other = (
        model.apply(params, state, inputs, train=True, key=jax.random.key(k))[0] for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    off, _ = model.apply(params, state, inputs, train=False)
    np.testing.assert_array_equal(off[0], off[1])


def test_transformer_reads_tokens_and_a_causal_one_never_ahead():
    config = ModelConfig(
        name="transformer", width=8, heads=2, depth=1, vocabulary=7, causal=True, per_token=True
    )
    model = make_model(config, 7)
    tokens = jnp.array([[1, 2, 3, 4], [1, 2, 5, 6]])
    params, state = jax.jit(model.init)(jax.random.key(0), tokens)
    logits = jax.jit(model.model_fn)(params, tokens, state)
    assert logits.shape == (2, 4, 7)
    # The same past gives the same logits, up to the order of sums.
    np.testing.assert_allclose(logits[0, :2], logits[1, :2], atol=1e-5)
    assert not np.allclose(logits[0, 2], logits[1, 2], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "block", "layer"), [("resnet", "BasicBlock_1", "Conv_1"), ("mlp", "Dense_1", None)]
)
def test_without_skips_nothing_passes_by_a_block(name, block, layer):
    inputs = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    spread = {}
    for skip in (True, False):
        model = make_model(ModelConfig(name=name, width=4, norm="none", skip=skip), 10)
        params, state = jax.jit(model.init)(jax.random.key(0), inputs)
        inner = params[block] if layer is None else {layer: params[block][layer]}
        params[block] |= jax.tree.map(jnp.zeros_like, inner)
        logits = jax.jit(model.model_fn)(params, inputs, state)
        spread[skip] = float(jnp.abs(logits[0] - logits[1]).max())
    assert spread[False] == 0 < spread[True]


def test_skips_of_an_mlp():
    config = ModelConfig(name="mlp", width=4, depth=2, activation="identity", skip=True)
    model, inputs = make_model(config, 4), jnp.eye(4)
    params, _ = model.init(jax.random.key(0), inputs)
    first, second, head = (params[name]["kernel"] for name in ("Dense_0", "Dense_1", "head"))
    expected = first @ (jnp.eye(4) + second / 2**0.5) @ head
    np.testing.assert_allclose(model.model_fn(params, inputs), expected, rtol=1e-5)  # float32


def test_without_skips_only_the_shortcuts_are_missing():
    whole, plain = (
        shapes(ModelConfig(name="resnet", depth=14, skip=skip))[0] for skip in (True, False)
    )
    for block in whole.values():
        block.pop("shortcut", None)
        block.pop("shortcut_norm", None)
    assert whole == plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cnn", "skip": False}, "skip is for a resnet and an mlp, not for a cnn"),
        ({"name": "lenet"}, "unknown model 'lenet'; choose from mlp, s2cnn, cnn"),
        ({"name": "resnet", "depth": 9}, r"a resnet's depth is 6n \+ 2"),
        ({"name": "wide_resnet", "depth": 12}, r"a wide_resnet's depth is 6n \+ 4"),
        ({"name": "transformer", "heads": 3}, r"heads \(3\) must divide the model's width \(64\)"),
        ({"name": "transformer", "patch": 3}, "do not cut into patches of 3"),
    ],
)
def test_bad_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        shapes(ModelConfig(**options))
