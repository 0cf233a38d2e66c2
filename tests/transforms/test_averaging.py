"""Averages of the params, batch-norm statistics for them, and Entropy-SGD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax.transforms as ft
from tests.transforms.zoo import STEPS, assert_close, averaged, flat


@pytest.mark.parametrize("options", [{}, {"debias": True}, {"warmup": True}], ids=str)
def test_ema(options, net, path):
    trajectory, _, average = averaged(ft.ema_params(0.8, **options), net)
    np.testing.assert_array_equal(trajectory, path.ravel())
    expected = np.zeros_like(path[0]) if "debias" in options else flat(net[0])
    for t, w in enumerate(path):
        d = min(0.8, (1 + t) / (10 + t)) if "warmup" in options else 0.8
        expected = d * expected + (1 - d) * w
    if "debias" in options:
        expected = expected / (1 - 0.8**STEPS)
    assert_close(average, expected)


def test_debiased_ema_with_a_schedule_is_a_weighted_mean(net, path):
    # Decay t/(t+1) on update t is the plain mean.
    tail = ft.ema_params(lambda t: t / (t + 1.0), debias=True)
    assert_close(averaged(tail, net)[2], path.mean(axis=0))


@pytest.mark.parametrize("make", [ft.ema_params, ft.swa, ft.swag])
def test_averages_are_the_params_before_anything_is_collected(make):
    w = {"a": jnp.array([1.0, 2.0])}
    assert_close(ft.averaged_params(make().init(w), w), w)
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), w)
    assert_close(ft.averaged_params(make().init(abstract), w), w)


def test_average_of_bfloat16_params_does_not_stall():
    # In bfloat16 0.999 * 1 + 0.001 * 2 is 1 for ever.
    w = jnp.ones(1, jnp.bfloat16)
    tx = ft.ema_params(0.999)
    state = tx.init(w)
    for _ in range(3):
        _, state = tx.update(jnp.ones_like(w), state, w)
    assert state.average.dtype == jnp.float32
    np.testing.assert_allclose(state.average, 2 - 0.999**3, rtol=1e-6)
    assert ft.averaged_params(state, w).dtype == jnp.bfloat16
