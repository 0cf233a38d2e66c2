"""``sam`` against its formulas, in float64 on a small network with a dense Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax.transforms as ft
from tests.transforms.zoo import assert_close, loss_fn, one_update, unit

CHOSEN = np.concatenate([np.zeros(4), np.ones(12), np.zeros(12)])
BALLS = {
    "p=2": (ft.Ascent(), lambda w, g: unit(g)),
    "p=1": (ft.Ascent(1.0), lambda w, g: np.where(np.abs(g) == np.abs(g).max(), np.sign(g), 0.0)),
    "p=inf": (ft.Ascent(np.inf), lambda w, g: np.sign(g)),
    "p=1.5": (ft.Ascent(1.5), lambda w, g: dual(g, 1.5)),
    "p=3": (ft.Ascent(3.0), lambda w, g: dual(g, 3.0)),
    "ASAM": (
        ft.Ascent(adaptive=True, offset=0.01),
        lambda w, g: (np.abs(w) + 0.01) * unit((np.abs(w) + 0.01) * g),
    ),
    "USAM": (ft.Ascent(normalize=False), lambda w, g: g),
    "a mask": (
        ft.Ascent(mask=lambda p: {"first": {"w": True, "b": False}, "last": False}),
        lambda w, g: unit(CHOSEN * g),
    ),
}


def dual(g, p):
    q = p / (p - 1)
    return np.sign(g) * np.abs(g) ** (q - 1) / (np.abs(g) ** q).sum() ** (1 / p)


@pytest.mark.parametrize("name", BALLS)
def test_gradient_at_the_worst_point_of_a_ball(name, net, dense):
    ascent, direction = BALLS[name]
    out, _ = one_update(ft.sam(0.1, ascent=ascent), *net)
    assert_close(out, dense.grad(dense.w + 0.1 * direction(dense.w, dense.g)))


def test_value_fn_serves_as_well(net, dense):
    params, batch = net
    tx = ft.sam(0.3)
    gradients = jax.grad(loss_fn)(params, batch)
    out, _ = jax.jit(
        lambda: tx.update(gradients, tx.init(params), params, value_fn=lambda w: loss_fn(w, batch))
    )()
    assert_close(out, dense.sam())


def test_every_k_passes_the_gradient_between(net, dense):
    params, batch = net
    tx = ft.sam(0.3, every=3)
    sam = dense.sam()
    for steps, expected in ((1, sam), (2, dense.g), (3, dense.g), (4, sam)):
        assert_close(one_update(tx, params, batch, steps)[0], expected)


def test_schedule_follows_the_transforms_own_count(net, dense):
    params, batch = net
    tx = ft.sam(lambda count: 0.1 * (count + 1))
    for steps in (1, 3):
        out, state = one_update(tx, params, batch, steps)
        assert_close(out, dense.grad(dense.w + 0.1 * steps * unit(dense.g)))
        assert int(state.count) == steps


def test_diagnostics(net, dense):
    params, batch = net
    point = dense.w + 0.3 * unit(dense.g)
    tx = ft.sam(0.3, diagnostics=True)
    _, state = one_update(tx, params, batch, value_fn=lambda w: loss_fn(w, batch))
    metrics = state.metrics
    assert float(metrics.grad_norm) == pytest.approx(np.linalg.norm(dense.g), rel=1e-12)
    assert float(metrics.perturbation_norm) == pytest.approx(0.3, rel=1e-12)
    gap = dense.value(point) - dense.value(dense.w)
    assert float(metrics.sharpness_gap) == pytest.approx(float(gap), rel=1e-9)
    cosine = unit(dense.g) @ unit(dense.grad(point))
    assert float(metrics.cosine) == pytest.approx(cosine, rel=1e-12)


def test_one_eager_call_under_jax_debug_nans():
    w, grad_fn = jnp.ones(3), jax.grad(lambda w: jnp.sum(w**2))
    tx = ft.sam(0.1)
    with jax.debug_nans(True):
        found, _ = tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)
    assert float(found[0]) > 2
