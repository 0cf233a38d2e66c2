"""Defects of other implementations, each reproduced in a survey, as tests that pass here."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatjax.transforms as ft
from tests.transforms.zoo import assert_close

LOSS = lambda w: jnp.sum(jnp.array([1.0, 4.0]) * w**2) / 2  # noqa: E731
GRAD = jax.grad(LOSS)
W = jnp.array([3.0, 1.0])


def update(tx, w=W, state=None, grad_fn=GRAD, **extra):
    return tx.update(GRAD(w), tx.init(w) if state is None else state, w, grad_fn=grad_fn, **extra)


RHO = 0.3
NORMALIZED = optax.chain(optax.contrib.normalize(), optax.sgd(RHO))
SCHEDULE = optax.linear_schedule(0.1, 0.5, 5)
SCHEDULED = optax.chain(optax.contrib.normalize(), optax.sgd(SCHEDULE))
MOMENTUM = optax.sgd(0.1, momentum=0.9)
# The table of docs/transforms/from_optax_sam.md: theirs by name of the row, and ours.
MIGRATION = {
    "sam": ({"adv_optimizer": NORMALIZED}, {"rho": RHO}),
    "not normalised": (
        {"adv_optimizer": optax.sgd(RHO)},
        {"rho": RHO, "ascent": ft.Ascent(normalize=False)},
    ),
    "sign": (
        {"adv_optimizer": optax.sign_sgd(RHO)},
        {"rho": RHO, "ascent": ft.Ascent(p=jnp.inf)},
    ),
    "sync_period": (
        {"adv_optimizer": NORMALIZED, "sync_period": 4},
        {"rho": 3 * RHO, "ascent_steps": 3},
    ),
    "schedule": ({"adv_optimizer": SCHEDULED, "reset_state": False}, {"rho": SCHEDULE}),
    "schedule that is reset": ({"adv_optimizer": SCHEDULED}, {"rho": SCHEDULE(0)}),
    "transparent": ({"adv_optimizer": NORMALIZED, "opaque_mode": False}, {"rho": RHO}),
    "transparent, kept": (
        {"adv_optimizer": NORMALIZED, "opaque_mode": False, "reset_state": False},
        {"rho": RHO},
    ),
}


@pytest.mark.parametrize("row", MIGRATION)
def test_the_numbers_of_optax_contrib_sam(row):
    options, ours = MIGRATION[row]
    theirs = optax.contrib.sam(MOMENTUM, **{"opaque_mode": True, **options})
    calls = 1 if options.get("opaque_mode", True) else 2

    def walk(tx, calls, grad_fn):
        def call(_, carry):
            w, state = carry
            updates, state = tx.update(GRAD(w), state, w, grad_fn=grad_fn)
            return optax.apply_updates(w, updates), state

        return jax.jit(lambda w: jax.lax.fori_loop(0, calls, call, (w, tx.init(w)))[0])(W)

    expected = walk(theirs, 5 * calls, lambda w, i: GRAD(w))
    found = walk(optax.chain(ft.sam(**ours), MOMENTUM), 5, GRAD)
    np.testing.assert_allclose(found, expected, rtol=2e-6)  # float32, two programs


def test_unknown_extra_arguments_reach_the_inner_optimiser():
    # optax.contrib.sam raises TypeError, and forwards nothing to polyak_sgd.
    tx = optax.chain(ft.sam(0.1), optax.polyak_sgd(1.0))
    updates, _ = update(tx, value=LOSS(W))
    assert np.abs(updates).max() > 0


def test_typed_keys_beside_sam():
    # optax.contrib.sam multiplies the inner state, keys included, by 0 and 1.
    tx = optax.chain(ft.sam(0.1), optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.sgd(0.1))
    state = tx.init(W)
    for _ in range(2):
        updates, state = update(tx, state=state)
    assert np.isfinite(updates).all()


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


# pytorch_optimizer's LookSAM: a second gradient on every step, and twice the gradient between.
@pytest.mark.parametrize("tx", [ft.looksam(0.1, every=5, alpha=0.0), ft.sam(0.1, every=5)])
def test_every_k_skips_gradients_and_hands_out_the_plain_one(tx):
    calls = []

    def counted(w):
        jax.debug.callback(lambda: calls.append(0))
        return GRAD(w)

    run = jax.jit(lambda s: tx.update(GRAD(W), s, W, grad_fn=counted))
    state = tx.init(W)
    for t in range(10):
        out, state = run(state)
        if t % 5:
            np.testing.assert_allclose(out, GRAD(W), rtol=1e-6)
    jax.effects_barrier()
    assert len(calls) == 2


def test_zero_learning_rate_moves_nothing():
    # pytorch_optimizer's bSAM walks with a learning rate of zero: the perturbation stays in w.
    for tx in (optax.chain(ft.sam(0.5), optax.sgd(0.0)), ft.langevin(0.0, num_data=8)):
        updates, _ = update(tx)
        np.testing.assert_array_equal(updates, 0.0)


def test_averages_work_anywhere_in_a_nested_state():
    # ivon-optax reads states[0], optax-swag must stand alone: states in chains break them.
    tx = optax.chain(optax.chain(ft.sam(0.1), optax.adam(0.1)), ft.ema_params(0.5))
    updates, state = update(tx)
    w = optax.apply_updates(W, updates)
    assert_close(ft.averaged_params(state, w), (W + w) / 2, rtol=1e-6)
