"""The implicit regularisers against dense Hessians in float64."""

import jax
import jax.numpy as jnp
import pytest

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import (
    Dense,
    assert_close,
    flat,
    loss_fn,
    one_update,
    per_example,
    sequence_means,
    sequences,
    token_mean,
)

XENT = losses.softmax_cross_entropy


def test_coefficients_may_be_schedules(net, dense):
    params, batch = net
    tx = ft.implicit_gradient_regularization(lambda t: 0.2 * (t + 1))
    assert_close(one_update(tx, params, batch, 3)[0], dense.g + 0.3 * dense.h @ dense.g)


@pytest.mark.parametrize("mode", ["linearize", "central"])
def test_halves_are_the_unbiased_estimator(net, dense, mode):
    params, batch = net
    a, b = ([x[:4] for x in batch], [x[4:] for x in batch])
    product = dense.hessian(dense.w, a) @ dense.grad(dense.w, b)
    product += dense.hessian(dense.w, b) @ dense.grad(dense.w, a)
    tx = ft.implicit_gradient_regularization(
        0.4, loss_fn=per_example, estimator="halves", mode=mode, step=1e-4, diagnostics=True
    )
    out, state = one_update(tx, params, batch)
    # Central differences of step 1e-4: 1e-8 of truncation, 1e-11 of round-off.
    tolerance = 1e-10 if mode == "linearize" else 1e-6
    assert_close(out, dense.g + 0.1 * product, rtol=tolerance, atol=tolerance / 100)
    inner = dense.grad(dense.w, a) @ dense.grad(dense.w, b)
    assert float(state.penalty) == pytest.approx(inner, rel=1e-12)


@pytest.mark.parametrize("group_mode", ["vmap", "loop"])
def test_stochastic_implicit_gradient_regularization(net, dense, group_mode):
    params, batch = net
    parts = [[x[2 * k : 2 * k + 2] for x in batch] for k in range(4)]
    total = sum(dense.hessian(dense.w, b) @ dense.grad(dense.w, b) for b in parts)
    tx = ft.stochastic_implicit_gradient_regularization(
        0.4, loss_fn=loss_fn, micro_batches=4, group_mode=group_mode
    )
    assert_close(one_update(tx, params, batch)[0], dense.g + 0.4 / 8 * total)


def test_regularisers_of_a_loss_with_weights(x64):
    params, batch = sequences(jnp.float64)
    dense = Dense(params, batch, lambda p, b: token_mean(p, b).value)
    zero = jax.tree.map(jnp.zeros_like, params)

    def product(tx, batch):
        return jax.jit(lambda: tx.update(zero, tx.init(params), params, batch=batch)[0])()

    def rows(start, stop):
        return tuple(a[start:stop] for a in batch)

    def along(b, v):
        return dense.hessian(dense.w, b) @ v

    isgr = ft.stochastic_implicit_gradient_regularization(0.4, loss_fn=token_mean, micro_batches=4)
    parts = [(rows(0, 2), 4), (rows(4, 6), 6), (rows(6, 8), 4)]
    expected = sum(w / 14 * along(b, dense.grad(dense.w, b)) for b, w in parts)
    assert_close(product(isgr, batch), 0.2 * expected)

    igr = ft.implicit_gradient_regularization(0.4, loss_fn=token_mean, estimator="halves")
    a, b = rows(4, 6), rows(6, 8)
    expected = along(a, dense.grad(dense.w, b)) + along(b, dense.grad(dense.w, a))
    assert_close(product(igr, rows(4, 8)), 0.1 * expected)
    # Examples of weight zero are not seen by the model.
    rowwise = ft.implicit_gradient_regularization(0.4, loss_fn=sequence_means, estimator="halves")
    a, b = rows(0, 2), rows(4, 8)
    expected = along(a, dense.grad(dense.w, b)) + along(b, dense.grad(dense.w, a))
    assert_close(product(rowwise, batch), 0.1 * expected)
    # With nothing in a half there is nothing to penalise.
    assert not flat(product(igr, rows(2, 6))).any()
