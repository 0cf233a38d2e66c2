"""Noise on activations: its size, where it is, and that evaluation has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lib.nets import named
from experiments.lib.nets.noise import Noise

KEY = jax.random.key(1)


def test_noise_is_normal_with_its_deviation_and_follows_its_key():
    x = jnp.arange(40_000.0).reshape(200, 200)

    def noisy(key):
        return np.asarray(Noise(0.5).apply({}, x, train=True, rngs={"dropout": key}))

    found = noisy(KEY) - np.asarray(x)
    # Four standard errors of the mean and of the deviation; the inputs go up to 40,000 in float32.
    assert abs(found.mean()) < 4 * 0.5 / 200
    assert found.std() == pytest.approx(0.5, abs=4 * 0.5 / (2 * 40_000) ** 0.5)
    assert (abs(found) < 0.5).mean() == pytest.approx(0.683, abs=0.01)  # that of a normal number
    np.testing.assert_array_equal(noisy(KEY), noisy(KEY))
    assert (noisy(KEY) != noisy(jax.random.key(2))).mean() > 0.9
    np.testing.assert_array_equal(Noise(0.5).apply({}, x, train=False), x)


@pytest.mark.parametrize("name", ["mlp-1-5", "s2cnn-2", "resnet-8-2", "wide_resnet-10-1"])
def test_a_network_with_noise_has_the_parameters_of_the_one_without(name):
    inputs = jax.random.normal(KEY, (2, 8, 8, 1))
    plain, noisy = named.model(name, 3), named.model(f"{name}-noise2", 3)
    shapes = [jax.eval_shape(m.init, KEY, inputs[:1]) for m in (plain, noisy)]
    assert shapes[0] == shapes[1]


def test_noise_comes_before_the_non_linearity_and_is_off_in_evaluation():
    inputs = jax.random.normal(KEY, (4, 3))
    plain, noisy = named.model("mlp-1-5", 3), named.model("mlp-1-5-noise2", 3)
    params, state = plain.init(KEY, inputs)
    expected = plain.model_fn(params, inputs)
    np.testing.assert_array_equal(noisy.model_fn(params, inputs), expected)
    first, again, other = (
        noisy.apply(params, state, inputs, train=True, key=jax.random.key(k))[0] for k in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert abs(first - other).min() > 0
    # Units far below zero stay off, whatever the noise: it is inside of the ReLU.
    off = params | {"Dense_0": params["Dense_0"] | {"bias": jnp.full(5, -100.0)}}
    silent, _ = noisy.apply(off, state, inputs, train=True, key=KEY)
    np.testing.assert_array_equal(silent, jnp.broadcast_to(params["head"]["bias"], (4, 3)))
