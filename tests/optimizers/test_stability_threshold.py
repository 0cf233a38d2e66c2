"""Descent diverges just above the stability threshold."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flatjax.optimizers._preconditioner import preconditioner
from flatjax.optimizers._stability_threshold import stability_threshold

QUADRATICS = [
    ("gd", {}, lambda lr: optax.sgd(lr)),
    ("heavy_ball", {"momentum": 0.9}, lambda lr: optax.sgd(lr, momentum=0.9)),
    ("nesterov", {"momentum": 0.9}, lambda lr: optax.sgd(lr, momentum=0.9, nesterov=True)),
]


def iterate(optimizer, sharpness, steps=2000):
    def step(carry, _):
        w, state = carry
        updates, state = optimizer.update(sharpness * w, state, w)
        return (optax.apply_updates(w, updates), state), None

    w = jnp.ones(())
    (w, _), _ = jax.lax.scan(step, (w, optimizer.init(w)), length=steps)
    return float(jnp.nan_to_num(jnp.abs(w), nan=jnp.inf))  # overflow is divergence


@pytest.mark.parametrize(("kind", "options", "make"), QUADRATICS)
@pytest.mark.parametrize("weight_decay", [0.0, 3.0])
def test_descent_diverges_just_above_the_threshold(
    kind, options, make, weight_decay, standard_promotion
):
    threshold = stability_threshold(kind, 0.05, weight_decay=weight_decay, **options)

    def optimizer():
        inner = optax.chain(make(1.0), optax.scale(-1.0))  # the direction, without the step
        return optax.chain(inner, optax.add_decayed_weights(weight_decay), optax.scale(-0.05))

    assert iterate(optimizer(), 0.99 * threshold) < 1e-3
    assert iterate(optimizer(), 1.01 * threshold) > 1e3


def frozen(b1, diagonal, learning_rate, nesterov=False):
    """Adam with its denominator held fixed and the bias correction gone, as in the theory."""
    momentum = optax.ema(b1, debias=False) if not nesterov else _nesterov_ema(b1)
    return optax.chain(momentum, optax.scale(-learning_rate / diagonal))


def _nesterov_ema(b1):
    def init(params):
        return jnp.zeros_like(params)

    def update(updates, mu, params=None):
        del params
        mu = b1 * mu + (1 - b1) * updates
        return b1 * mu + (1 - b1) * updates, mu

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize("kind", ["adam", "nadam"])
def test_frozen_adam_diverges_just_above_the_threshold(kind, standard_promotion):
    diagonal, eta = 0.25, 1e-2
    threshold = stability_threshold(kind, eta, b1=0.9)
    optimizer = frozen(0.9, diagonal, eta, nesterov=kind == "nadam")
    # The preconditioned sharpness is sharpness / diagonal.
    assert iterate(optimizer, 0.99 * threshold * diagonal) < 1e-3
    assert iterate(optimizer, 1.01 * threshold * diagonal) > 1e3


@pytest.mark.parametrize(("factor", "stable"), [(0.98, True), (1.02, False)])
def test_adam_itself_diverges_just_above_the_threshold(factor, stable, standard_promotion):
    """optax's Adam, far into a run and near a minimum, where its second moment hardly moves."""
    options = {"b1": 0.9, "b2": 1 - 1e-6, "eps": 1e-8}
    optimizer = optax.inject_hyperparams(optax.adam)(1e-2, **options)
    state = optimizer.init(jnp.ones(2))
    adam, *rest = state.inner_state
    moments = jnp.array([4e-2, 9e-2])
    adam = adam._replace(count=jnp.int32(10**8), nu=moments)
    state = state._replace(inner_state=(adam, *rest))
    diagonal = preconditioner(state)
    # rtol: eps, and b2 rounded to float32.
    np.testing.assert_allclose(diagonal, jnp.sqrt(moments), rtol=1e-6)
    threshold = stability_threshold("adam", opt_state=state)
    curvature = factor * threshold * diagonal

    def step(carry, _):
        w, state = carry
        updates, state = optimizer.update(curvature * w, state, w)
        return (optax.apply_updates(w, updates), state), None

    # Gradients of 1e-9 do not change the second moment.
    start = jnp.full(2, 1e-12)
    (w, _), _ = jax.lax.scan(step, (start, state), length=100)
    ratio = np.asarray(jnp.abs(w) / start)
    assert (ratio < 0.1).all() if stable else (ratio > 10.0).all()


def test_rmsprop_and_adagrad_and_aliases():
    assert stability_threshold("rmsprop", 0.1) == 20.0
    assert stability_threshold("rmsprop", 0.1, momentum=0.5) == pytest.approx(30.0)
    assert stability_threshold("adagrad", 0.1) == 20.0
    for alias, kind in [("sgd", "gd"), ("adamw", "adam")]:
        options = {"b1": 0.9} if kind == "adam" else {}
        assert stability_threshold(alias, 0.1, **options) == stability_threshold(
            kind, 0.1, **options
        )
    assert stability_threshold("adam", 1e-3, b1=0.9) == pytest.approx(38_000)


def test_threshold_reads_injected_hyperparameters():
    state = optax.inject_hyperparams(optax.adam)(1e-3, b1=0.5).init(jnp.ones(2))
    assert stability_threshold("adam", opt_state=state) == pytest.approx(6000.0)
    assert stability_threshold("adam", 1e-4, opt_state=state) == pytest.approx(60_000.0)
    nested = (optax.EmptyState(), state)
    assert stability_threshold("adam", opt_state=nested) == pytest.approx(6000.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stability_threshold("lbfgs", 0.1), "kind must be one of"),
        (lambda: stability_threshold("gd"), "needs learning_rate"),
        (lambda: stability_threshold("adam", 0.1), "needs b1"),
        (lambda: stability_threshold("heavy_ball", 0.1), "needs momentum"),
        (lambda: stability_threshold("gd", 0.1, momentum=0.9), "gd has no momentum"),
        (lambda: stability_threshold("adam", 0.1, momentum=0.9), "pass b1="),
        (lambda: stability_threshold("gd", 0.1, b1=0.9), "gd has no b1"),
        (lambda: stability_threshold("gd", -0.1), "must be above 0"),
        (lambda: stability_threshold("adam", 0.1, b1=1.0), "at least 0 and below 1"),
        (lambda: stability_threshold("gd", 0.1, weight_decay=-1.0), "at least 0"),
    ],
)
def test_bad_thresholds_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
