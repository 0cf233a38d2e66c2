"""Hessian products by finite differences: their formulas, their order, zero gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import assert_close, flat, loss_fn, one_update

XENT = losses.softmax_cross_entropy


@pytest.mark.parametrize("mode", ["forward", "central"])
def test_finite_difference_modes_are_their_formulas(net, dense, mode):
    params, batch = net
    norm, r = np.linalg.norm(dense.g), 0.01
    shifted = dense.grad(dense.w + r * dense.g / norm)
    back = dense.g if mode == "forward" else dense.grad(dense.w - r * dense.g / norm)
    product = (shifted - back) * norm / (r if mode == "forward" else 2 * r)
    out, _ = one_update(ft.gradient_penalty(0.3, mode=mode, step=r), params, batch)
    # A difference of two gradients, each equal to 1e-14, over a step of 0.01.
    assert_close(out, dense.g + 0.6 * product, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("mode", "order"), [("forward", 1), ("central", 2)])
def test_finite_differences_converge_to_the_exact_penalty(net, dense, mode, order):
    params, batch = net
    steps = np.array([4e-2, 2e-2, 1e-2])
    grad_fn = lambda p: jax.grad(loss_fn)(p, batch)  # noqa: E731

    @jax.jit
    def update(step):
        tx = ft.gradient_penalty(0.5, mode=mode, step=step)
        return tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)[0]

    errors = [np.linalg.norm(flat(update(s)) - (dense.g + dense.h @ dense.g)) for s in steps]
    assert np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("mode", ["linearize", "forward", "central"])
def test_zero_gradient_is_safe(mode):
    tx = ft.gradient_penalty(0.1, mode=mode)
    w = jnp.zeros(3)
    out, _ = tx.update(w, tx.init(w), w, grad_fn=lambda v: 2 * v)
    assert not flat(out).any()
