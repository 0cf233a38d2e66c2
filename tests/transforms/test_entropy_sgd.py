"""Entropy-SGD against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import Dense, assert_close, descend

XENT = losses.softmax_cross_entropy


def test_entropy_sgd(net):
    params, batch = net
    dense = Dense(params, batch)
    options = {"inner_steps": 3, "inner_learning_rate": 0.1, "gamma": 0.5, "scoping": 0.2}
    tx = ft.entropy_sgd(0.8, averaging=0.75, noise=0.0, **options)
    trajectory, state = descend(tx, params, batch, 8)
    anchor = inner = mean = dense.w
    expected = []
    for t in range(8):
        gamma = 0.5 * 1.2 ** (t // 3)
        inner = inner - 0.1 * (dense.grad(inner) - gamma * (anchor - inner))
        mean = 0.75 * mean + 0.25 * inner
        if t % 3 == 2:
            anchor = anchor - 0.8 * (anchor - mean)
            inner = mean = anchor
        expected.append(inner)
    assert_close(trajectory, np.concatenate(expected))
    assert_close(ft.entropy_sgd_eval_params(state, params), anchor)


def test_entropy_sgd_noise_and_abstract_init():
    w = jnp.zeros(20_000)
    tx = ft.entropy_sgd(inner_steps=5, inner_learning_rate=0.25, noise=0.2)
    state = tx.init(jax.ShapeDtypeStruct(w.shape, w.dtype))
    updates, state = tx.update(w, state, w + 3)
    # sqrt(eta') epsilon = 0.1; 20,000 draws know it to 0.5 %.
    assert float(jnp.std(updates)) == pytest.approx(0.1, rel=0.02)
    np.testing.assert_array_equal(ft.entropy_sgd_eval_params(state, w), 3.0)
