"""The plain MLP: the scale of its kernels, a linear last layer."""

import jax
import numpy as np
import pytest

from experiments.lib.nets.mlp import apply_mlp, init_mlp


def test_kernels_have_the_variance_of_their_fan_in():
    params = init_mlp(jax.random.key(0), (400, 100, 10), scale=0.6)
    for name, fan_in in (("layer_0", 400), ("layer_1", 100)):
        kernel = params[name]["kernel"]
        # 1,000 draws and more: 2 per cent, three of them.
        assert kernel.std() == pytest.approx(0.6 / fan_in**0.5, rel=0.07)
        assert not params[name]["bias"].any()


def test_the_last_layer_is_linear():
    params = init_mlp(jax.random.key(0), (3, 4, 2))
    x = np.ones((1, 3), np.float32)
    hidden = np.tanh(x @ params["layer_0"]["kernel"])
    # Two products in float32.
    np.testing.assert_allclose(
        apply_mlp(params, x), hidden @ params["layer_1"]["kernel"], rtol=1e-5
    )
