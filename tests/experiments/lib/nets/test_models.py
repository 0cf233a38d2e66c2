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


@pytest.mark.parametrize("name", ["mlp", "resnet", "wide_resnet"])
def test_a_network_without_skips_is_one_chain(name):
    """With the weights of one layer zero nothing gets through, and with skips something does."""
    inputs = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    for skip in (False, True):
        model = make_model(ModelConfig(name=name, width=2, norm="batch", skip=skip), 10)
        params, state = jax.jit(model.init)(jax.random.key(0), inputs)
        block = params.get("BasicBlock_1") or params.get("WideBlock_1") or params
        layer = block.get("Conv_0") or block["Dense_1"]
        layer["kernel"] = jnp.zeros_like(layer["kernel"])
        logits = jax.jit(lambda params, model=model, state=state: model.model_fn(
            params, inputs, state))(params)  # fmt: skip
        # The logits are the last bias, zero, or a sum of what came around the layer.
        assert np.any(logits) == skip


def test_skips_cost_the_convolutions_where_the_width_doubles():
    counts = [size(ModelConfig(name="resnet", norm="none", skip=skip)) for skip in (False, True)]
    assert counts[1] - counts[0] == (16 * 32 + 32) + (32 * 64 + 64)
    assert size(ModelConfig(name="mlp")) == size(ModelConfig(name="mlp", skip=True))


def test_an_mlp_with_skips_adds_each_hidden_layer_to_the_one_before():
    model = make_model(ModelConfig(name="mlp", width=3, depth=3, skip=True), 2)
    inputs = jax.random.normal(jax.random.key(1), (5, 3))
    params, state = model.init(jax.random.key(0), inputs)
    kernels = [params[f"Dense_{i}"]["kernel"] for i in range(3)]
    x = jax.nn.relu(inputs @ kernels[0])
    for kernel in kernels[1:]:
        x = jax.nn.relu(x + x @ kernel / 2**0.5)  # without a norm: 1 / sqrt(two blocks)
    # Sums of three terms, in another order.
    np.testing.assert_allclose(
        model.model_fn(params, inputs, state), x @ params["head"]["kernel"], rtol=1e-5, atol=1e-6
    )


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
    ("options", "message"),
    [
        ({"name": "lenet"}, "unknown model 'lenet'; choose from mlp, s2cnn, cnn"),
        ({"name": "resnet", "depth": 9}, r"a resnet's depth is 6n \+ 2"),
        ({"name": "wide_resnet", "depth": 12}, r"a wide_resnet's depth is 6n \+ 4"),
        ({"name": "cnn", "skip": True}, "skip is for mlp, resnet and wide_resnet"),
        ({"name": "transformer", "heads": 3}, r"heads \(3\) must divide the model's width \(64\)"),
        ({"name": "transformer", "patch": 3}, "do not cut into patches of 3"),
    ],
)
def test_bad_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        shapes(ModelConfig(**options))
