"""GSAM, GNP, WSAM, LookSAM, F-SAM and MSAM over several steps, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatjax.transforms as ft
from tests.transforms.zoo import Dense, assert_close, descend, flat, loss_fn, network, one_update

RHO = 0.3


@pytest.fixture(scope="module")
def net():
    with jax.enable_x64(True):
        params, batch = network(jnp.float64)
        yield params, batch, Dense(params, batch)


def unit(v):
    return v / np.linalg.norm(v)


def test_gsam(net):
    params, batch, dense = net
    g = dense.grad(dense.w)
    perturbed = dense.grad(dense.w + RHO * unit(g))
    along = unit(perturbed)
    expected = perturbed - 0.4 * (g - (g @ along) * along)
    assert_close(one_update(ft.gsam(RHO, alpha=0.4), params, batch)[0], expected)


def test_gsam_takes_away_an_orthogonal_component(net):
    params, batch, dense = net
    perturbed = dense.grad(dense.w + RHO * unit(dense.grad(dense.w)))
    difference = flat(one_update(ft.gsam(RHO, alpha=0.4), params, batch)[0]) - perturbed
    # Rounding of two unit vectors of 28 entries.
    assert abs(unit(difference) @ unit(perturbed)) < 1e-13


def test_gradient_norm_penalty(net):
    params, batch, dense = net
    g = dense.grad(dense.w)
    expected = 0.2 * g + 0.8 * dense.grad(dense.w + RHO * unit(g))
    out, _ = one_update(ft.gradient_norm_penalty(RHO, alpha=0.8), params, batch)
    assert_close(out, expected)


def test_wsam(net):
    params, batch, dense = net
    g = dense.grad(dense.w)
    expected = g + 9.0 * (dense.grad(dense.w + RHO * unit(g)) - g)
    assert_close(one_update(ft.wsam(RHO, gamma=0.9), params, batch)[0], expected, rtol=1e-9)


def test_decoupled_wsam_bypasses_the_optimiser(net):
    params, batch, dense = net
    g = dense.grad(dense.w)
    sharpness = dense.grad(dense.w + RHO * unit(g)) - g
    adam = optax.adam(0.01)
    tx = ft.wsam(RHO, gamma=0.75, optimizer=adam, learning_rate=lambda t: 0.1 / (t + 1))
    out, _ = one_update(tx, params, batch, 2)
    plain, _ = one_update(adam, params, batch, 2)
    assert_close(out, flat(plain) - 0.05 * 3.0 * sharpness)


def test_looksam(net):
    params, batch, dense = net
    w, expected = dense.w, []
    for t in range(5):
        g = dense.grad(w)
        if t % 2 == 0:
            out = dense.grad(w + RHO * unit(g))
            direction = out - (out @ unit(g)) * unit(g)
        else:
            out = g + 0.7 * np.linalg.norm(g) * unit(direction)
        w = w - 0.5 * out
        expected.append(w)
    path, _ = descend(
        optax.chain(ft.looksam(RHO, every=2, alpha=0.7), optax.sgd(0.5)), params, batch, 5
    )
    assert_close(path, np.concatenate(expected))


def test_friendly_sam(net):
    params, batch, dense = net
    w, expected, average = dense.w, [], None
    for t in range(4):
        g = dense.grad(w)
        d = g if t == 0 else g - 0.8 * average
        average = g if t == 0 else 0.6 * average + 0.4 * g
        w = w - 0.5 * dense.grad(w + RHO * unit(d))
        expected.append(w)
    path, state = descend(
        optax.chain(ft.friendly_sam(RHO, sigma=0.8, decay=0.6), optax.sgd(0.5)), params, batch, 4
    )
    assert_close(path, np.concatenate(expected))
    # The average is that of the raw gradients, not of the ones already subtracted.
    assert_close(state[0].average, average)


def test_momentum_sam(net):
    params, batch, dense = net
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
    params, _, _ = net
    tx = optax.chain(optax.clip_by_global_norm(1.0), ft.momentum_sam(0.1))
    state = tx.init(params)
    assert_close(ft.momentum_sam_eval_params(state, params), params)


def test_rho_follows_the_learning_rate():
    lr = optax.cosine_decay_schedule(0.2, 10)
    rho = ft.proportional_schedule(
        lr, rho_max=0.6, rho_min=0.1, learning_rate_max=0.2, learning_rate_min=0.0
    )
    for t in (0, 5, 10):
        assert float(rho(t)) == pytest.approx(0.1 + 0.5 * float(lr(t)) / 0.2, rel=1e-6)


FAMILY = {
    "gsam": ft.gsam,
    "gradient_norm_penalty": ft.gradient_norm_penalty,
    "wsam": ft.wsam,
    "looksam": ft.looksam,
    "friendly_sam": ft.friendly_sam,
}


@pytest.mark.parametrize("name", FAMILY)
def test_diagnostics(name, net):
    params, batch, dense = net
    _, state = one_update(
        FAMILY[name](RHO, diagnostics=True), params, batch, value_fn=lambda w: loss_fn(w, batch)
    )
    g = dense.grad(dense.w)
    gap = dense.value(dense.w + RHO * unit(g)) - dense.value(dense.w)
    assert float(state.metrics.sharpness_gap) == pytest.approx(float(gap), rel=1e-9)
    assert float(state.metrics.grad_norm) == pytest.approx(np.linalg.norm(g), rel=1e-12)


@pytest.mark.parametrize("name", FAMILY)
def test_zero_gradient_is_safe(name):
    tx = FAMILY[name](0.1)
    w = jnp.zeros(3)
    state = tx.init(w)
    for _ in range(2):
        out, state = tx.update(w, state, w, grad_fn=lambda v: 2 * v)
        assert not flat(out).any()
    assert np.isfinite(np.concatenate([np.ravel(a) for a in jax.tree.leaves(state)])).all()
