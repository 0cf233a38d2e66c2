"""What the penalties keep between evaluations."""

import jax
import jax.numpy as jnp
import numpy as np

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import Rigged, assert_close, flat, model

XENT = losses.softmax_cross_entropy


def test_penalty_gradient_is_kept_between_refreshes(net, dense):
    params, batch = net
    tx = ft.fisher_penalty(model, Rigged(), coef=lambda t: 0.1 * (t + 1), every=2)
    labels = jnp.argmin(model(params, batch[0]), axis=-1)
    product = dense.hessian(dense.w, (batch[0], labels)) @ dense.grad(dense.w, (batch[0], labels))
    update = jax.jit(lambda p, b, s: tx.update(jax.tree.map(jnp.zeros_like, p), s, p, batch=b))
    state = tx.init(params)
    out, state = update(params, batch, state)
    assert_close(out, 0.2 * product)
    # Another point and another batch: between refreshes neither is looked at.
    elsewhere = jax.tree.map(lambda a: a + 1, params)
    out, state = update(elsewhere, (batch[0] + 1, batch[1]), state)
    assert_close(out, 0.4 * product)
    out, _ = update(elsewhere, batch, state)
    assert np.abs(flat(out) - 0.6 * product).max() > 1e-3
