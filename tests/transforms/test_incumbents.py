"""Defects of other implementations, each reproduced in a survey, as tests that pass here."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatjax.transforms as ft
from tests.transforms.zoo import Dense, assert_close, flat, network, one_update

LOSS = lambda w: jnp.sum(jnp.array([1.0, 4.0]) * w**2) / 2  # noqa: E731
GRAD = jax.grad(LOSS)
W = jnp.array([3.0, 1.0])


def update(tx, w=W, state=None, grad_fn=GRAD, **extra):
    return tx.update(GRAD(w), tx.init(w) if state is None else state, w, grad_fn=grad_fn, **extra)


def test_zero_gradient_is_no_nan():
    # optax.contrib.sam, issue 1743: normalize() divides by a norm of zero.
    w = jnp.zeros(2)
    tx = optax.chain(ft.sam(), optax.sgd(0.1))
    assert not np.isnan(update(tx, w)[0]).any()
    theirs = optax.contrib.normalize()
    assert np.isnan(theirs.update(w, theirs.init(w))[0]).all()


def test_unknown_extra_arguments_reach_the_inner_optimiser():
    # optax.contrib.sam raises TypeError, and forwards nothing to polyak_sgd.
    tx = optax.chain(ft.sam(0.1), optax.polyak_sgd(1.0))
    updates, _ = update(tx, value=LOSS(W))
    assert np.abs(updates).max() > 0


def test_schedule_of_the_radius_advances():
    # In optax.contrib.sam the schedule's count is reset on every synchronisation.
    tx = ft.sam(lambda t: jnp.where(t == 19, 1.0, 0.0))
    state = tx.init(W)
    for _ in range(20):
        out, state = update(tx, state=state)
    np.testing.assert_allclose(out, GRAD(W + GRAD(W) / jnp.linalg.norm(GRAD(W))), rtol=1e-6)


def test_typed_keys_beside_sam():
    # optax.contrib.sam multiplies the inner state, keys included, by 0 and 1.
    tx = optax.chain(ft.sam(0.1), optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.sgd(0.1))
    state = tx.init(W)
    for _ in range(2):
        updates, state = update(tx, state=state)
    assert np.isfinite(updates).all()


def test_clipping_bounds_the_update():
    # chain(clip, optax.contrib.sam) clips the ascent gradient only: an update of 2e5 was seen.
    steep = lambda w: 1e6 * w  # noqa: E731
    tx = optax.chain(ft.sam(0.1), optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    updates, _ = tx.update(steep(W), tx.init(W), W, grad_fn=steep)
    assert float(jnp.linalg.norm(updates)) == pytest.approx(0.1, rel=1e-5)


def test_every_step_is_a_whole_step():
    # Transparent optax.contrib.sam alternates between w and w + epsilon; with sync_period 1 the
    # update is garbage.
    tx = optax.chain(ft.sam(0.1), optax.sgd(0.1))
    w, state, losses = W, tx.init(W), [float(LOSS(W))]
    for _ in range(5):
        updates, state = update(tx, w, state)
        w = optax.apply_updates(w, updates)
        losses.append(float(LOSS(w)))
    assert losses == sorted(losses, reverse=True)


def test_nan_of_the_branch_not_taken_stays_there():
    # c * a + (1 - c) * b lets 0 * NaN through.
    tx = ft.sam(0.1, every=2)
    state = tx.init(W)
    _, state = update(tx, state=state)
    out, _ = update(tx, state=state, grad_fn=lambda w: jnp.full_like(w, jnp.nan))
    np.testing.assert_array_equal(out, GRAD(W))


def test_update_may_be_jitted_on_its_own():
    # optax.contrib.sam: jit(opt.update) with grad_fn= raises TypeError.
    tx = ft.sam(0.1)
    grad_fn = jax.tree_util.Partial(GRAD)
    out, _ = jax.jit(tx.update)(GRAD(W), tx.init(W), W, grad_fn=grad_fn)
    np.testing.assert_allclose(out, update(tx)[0], rtol=1e-6)


def test_gradient_norm_penalty_mixes_the_raw_gradient():
    # gnp (default configuration) mixes the normalised g with the raw perturbed gradient.
    w, g = 100.0 * W, GRAD(100.0 * W)
    out, _ = update(ft.gradient_norm_penalty(0.1, alpha=0.5), w)
    perturbed = GRAD(w + 0.1 * g / jnp.linalg.norm(g))
    np.testing.assert_allclose(out, 0.5 * g + 0.5 * perturbed, rtol=1e-6)


def test_looksam_evaluates_and_scales_as_it_should():
    # pytorch_optimizer's LookSAM: a second gradient on every step, and twice the gradient between.
    calls = []

    def counted(w):
        jax.debug.callback(lambda: calls.append(0))
        return GRAD(w)

    tx = ft.looksam(0.1, every=5, alpha=0.0)
    run = jax.jit(lambda s: tx.update(GRAD(W), s, W, grad_fn=counted))
    state = tx.init(W)
    for t in range(10):
        out, state = run(state)
        if t % 5:
            np.testing.assert_allclose(out, GRAD(W), rtol=1e-6)
    jax.effects_barrier()
    assert len(calls) == 2


def test_every_k_skips_its_gradients():
    calls = []

    def counted(w):
        jax.debug.callback(lambda: calls.append(0))
        return GRAD(w)

    tx = ft.sam(0.1, every=5)
    run = jax.jit(lambda s: tx.update(GRAD(W), s, W, grad_fn=counted)[1])
    state = tx.init(W)
    for _ in range(20):
        state = run(state)
    jax.effects_barrier()
    assert len(calls) == 4


def test_norms_are_global(x64):
    # rollovd/LookSAM and several ASAM ports take norms a tensor: rho then grows with the depth.
    params, batch = network(jnp.float64)
    _, state = one_update(ft.sam(0.3, diagnostics=True), params, batch)
    assert float(state.metrics.perturbation_norm) == pytest.approx(0.3, rel=1e-12)


def test_the_friendly_average_is_of_raw_gradients():
    # pytorch_optimizer averages the already subtracted gradient: 0.58 of the right norm.
    tx = ft.friendly_sam(0.1, decay=0.5)
    state = tx.init(W)
    for _ in range(3):
        _, state = update(tx, state=state)
    np.testing.assert_allclose(state.average, GRAD(W), rtol=1e-6)


def test_adaptive_scaling_is_that_of_the_paper():
    # big_vision's adaptive_perturbation is |w| g / |g|, neither scaled twice nor normalised.
    out, _ = update(ft.sam(0.5, ascent=ft.Ascent(adaptive=True, offset=0.01)))
    scale = jnp.abs(W) + 0.01
    epsilon = 0.5 * scale**2 * GRAD(W) / jnp.linalg.norm(scale * GRAD(W))
    np.testing.assert_allclose(out, GRAD(W + epsilon), rtol=1e-6)


def test_zero_learning_rate_moves_nothing():
    # pytorch_optimizer's bSAM walks with a learning rate of zero: the perturbation stays in w.
    for tx in (optax.chain(ft.sam(0.5), optax.sgd(0.0)), ft.langevin(0.0, num_data=8)):
        updates, _ = update(tx)
        np.testing.assert_array_equal(updates, 0.0)


def test_finite_difference_and_exact_penalties_have_one_coefficient(x64):
    # fullbatchtraining: finite differences add half of what autograd-pen does.
    params, batch = network(jnp.float64)
    exact, forward, central = (
        flat(one_update(ft.gradient_penalty(0.5, mode=m, step=1e-4), params, batch)[0])
        for m in ("linearize", "forward", "central")
    )
    dense = Dense(params, batch)
    penalty = exact - dense.grad(dense.w)
    for other in (forward, central):
        ratio = (other - dense.grad(dense.w)) @ penalty / (penalty @ penalty)
        assert ratio == pytest.approx(1.0, abs=1e-3)


def test_penalty_has_an_effect(x64):
    # A torch port of the Fisher penalty calls backward() without create_graph: no effect.
    # Here a small step along what is added lowers the gradient norm.
    params, batch = network(jnp.float64)
    dense = Dense(params, batch)
    g = dense.grad(dense.w)
    added = flat(one_update(ft.gradient_penalty(1.0), params, batch)[0]) - g
    assert np.linalg.norm(dense.grad(dense.w - 0.1 * added)) < np.linalg.norm(g)


def test_langevin_noise_scales_with_the_rate_and_the_data():
    # The scaling question of every SGLD repository: U is the sum over the data, sqrt(2 eta T).
    w = jnp.zeros(20_000)
    tx = ft.langevin(1e-3, num_data=50, temperature=2.0)
    updates, _ = tx.update(w, tx.init(w), w)
    # 20,000 draws: the standard deviation is known to 0.5 %, here four of those.
    assert float(jnp.std(updates)) == pytest.approx((2 * 1e-3 * 2.0) ** 0.5, rel=0.02)
    drift, _ = ft.langevin(1e-3, num_data=50, temperature=0.0).update(w + 1, tx.init(w), w)
    np.testing.assert_allclose(drift, -1e-3 * 50, rtol=1e-6)


def test_averages_work_anywhere_in_a_nested_state():
    # ivon-optax reads states[0], optax-swag must stand alone: states in chains break them.
    tx = optax.chain(optax.chain(ft.sam(0.1), optax.adam(0.1)), ft.ema_params(0.5))
    updates, state = update(tx)
    w = optax.apply_updates(W, updates)
    assert_close(ft.averaged_params(state, w), (W + w) / 2, rtol=1e-6)
