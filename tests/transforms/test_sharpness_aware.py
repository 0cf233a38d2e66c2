"""What holds of every transform around the gradient at the worst point nearby."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import RHO, flat, loss_fn, one_update, unit

XENT = losses.softmax_cross_entropy

FAMILY = {
    "sam": ft.sam,
    "gsam": ft.gsam,
    "gradient_norm_penalty": ft.gradient_norm_penalty,
    "wsam": ft.wsam,
    "looksam": ft.looksam,
    "friendly_sam": ft.friendly_sam,
}


@pytest.mark.parametrize("name", FAMILY)
def test_diagnostics(name, net, dense):
    params, batch = net
    _, state = one_update(
        FAMILY[name](RHO, diagnostics=True), params, batch, value_fn=lambda w: loss_fn(w, batch)
    )
    gap = dense.value(dense.w + RHO * unit(dense.g)) - dense.value(dense.w)
    assert float(state.metrics.sharpness_gap) == pytest.approx(float(gap), rel=1e-9)
    assert float(state.metrics.grad_norm) == pytest.approx(np.linalg.norm(dense.g), rel=1e-12)


@pytest.mark.parametrize("name", FAMILY)
def test_zero_gradient_is_safe(name):
    tx = FAMILY[name](0.1)
    w = jnp.zeros(3)
    state = tx.init(w)
    for _ in range(2):
        out, state = tx.update(w, state, w, grad_fn=lambda v: 2 * v)
        assert not flat(out).any()
    assert np.isfinite(np.concatenate([np.ravel(a) for a in jax.tree.leaves(state)])).all()
