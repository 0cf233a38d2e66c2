"""Momentum SAM over several steps, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import assert_close, loss_fn, unit

XENT = losses.softmax_cross_entropy


def test_momentum_sam(net, dense):
    params, batch = net
    rates, radii = [0.1, 0.2, 0.05], [0.3, 0.1, 0.4]
    tx = ft.momentum_sam(
        lambda t: jnp.array(rates)[t],
        rho=lambda t: jnp.array(radii)[t],
        momentum=0.9,
        weight_decay=0.01,
    )

    @jax.jit
    def step(params, state):
        g = jax.grad(loss_fn)(params, batch)
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    w = displaced = dense.w
    v = np.zeros_like(w)
    for rate, radius in zip(rates, radii, strict=True):
        v = 0.9 * v + dense.grad(displaced) + 0.01 * displaced
        w = w - rate * v
        displaced = w - radius * unit(v)
        params, state = step(params, state)
        assert_close(params, displaced)
        assert_close(ft.momentum_sam_eval_params(state, params), w)


def test_momentum_sam_state_is_found_in_a_chain(net):
    params, _ = net
    tx = optax.chain(optax.clip_by_global_norm(1.0), ft.momentum_sam(0.1))
    state = tx.init(params)
    assert_close(ft.momentum_sam_eval_params(state, params), params)
