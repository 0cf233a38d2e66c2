"""Preconditioned operators, preconditioners read from optax states, stability thresholds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flatjax.operators import hessian
from flatjax.operators._precondition import preconditioned
from flatjax.optimizers._preconditioner import preconditioner
from flatjax.optimizers._stability_threshold import stability_threshold

PARAMS = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[0.5]])}
GRADS = [
    {"a": jnp.array([0.3, -4.0]), "b": jnp.array([[2.0]])},
    {"a": jnp.array([-1.0, 0.1]), "b": jnp.array([[0.7]])},
    {"a": jnp.array([0.2, 0.5]), "b": jnp.array([[-3.0]])},
]


def state_after(optimizer, grads=GRADS, params=PARAMS):
    # optax promotes dtypes itself.
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
        for gradient in grads:
            updates, state = optimizer.update(gradient, state, params)
    return state, updates


def close(tree, other, rtol=2e-6):
    # A handful of float32 operations, each with an error of 6e-8.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), tree, other)


def test_product_and_dense_matrix():
    matrix = jnp.array([[4.0, 1.0, 0.5], [1.0, -3.0, 0.2], [0.5, 0.2, 2.0]])

    def loss(p, _):
        flat = jnp.concatenate([p["a"], p["b"].reshape(-1)])
        return flat @ matrix @ flat / 2

    diagonal = {"a": jnp.array([4.0, 9.0]), "b": jnp.array([[0.25]])}
    op = preconditioned(hessian(loss, PARAMS, None), diagonal)
    root = np.array([2.0, 3.0, 0.5])
    expected = np.asarray(matrix) / np.outer(root, root)
    # atol: the products of entries up to 20 in float32.
    np.testing.assert_allclose(op.to_dense(), expected, atol=2e-6)
    np.testing.assert_allclose(op.linearize().to_dense(), expected, atol=2e-6)
    assert op.structure == hessian(loss, PARAMS, None).structure


def test_an_infinite_entry_freezes_a_coordinate():
    op = preconditioned(
        hessian(lambda w, _: jnp.sum(w**2), jnp.ones(2), None), jnp.array([1.0, jnp.inf])
    )
    assert op.to_dense().tolist() == [[2.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_entries_that_are_not_positive_are_refused(bad):
    op = hessian(lambda w, _: jnp.sum(w**2), jnp.ones(2), None)
    with pytest.raises(ValueError, match="must be positive"):
        preconditioned(op, jnp.array([1.0, bad]))


def test_another_structure_is_refused():
    op = hessian(lambda w, _: jnp.sum(w**2), jnp.ones(2), None)
    with pytest.raises(TypeError, match="diagonal must have the tree structure"):
        preconditioned(op, {"a": jnp.ones(2)})
    with pytest.raises(ValueError, match="diagonal has shape"):
        preconditioned(op, jnp.ones(3))


# The update of an optimiser without momentum is -lr g / D exactly, which is what D means.
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (optax.adam(1.0, b1=0.0, b2=0.9, eps=1e-2), {"b1": 0.0, "b2": 0.9, "eps": 1e-2}),
        (
            optax.adam(1.0, b1=0.0, b2=0.9, eps=1e-2, eps_root=0.5),
            {"b1": 0.0, "b2": 0.9, "eps": 1e-2, "eps_root": 0.5},
        ),
        (optax.amsgrad(1.0, b1=0.0, b2=0.5, eps=1e-2), {"b1": 0.0, "eps": 1e-2}),
        (optax.adabelief(1.0, b1=0.0, eps=1e-2), {"b1": 0.0, "b2": 0.999, "eps": 1e-2}),
        (optax.rmsprop(1.0, eps=0.1), {"eps": 0.1}),
        (optax.rmsprop(1.0, eps=0.1, eps_in_sqrt=False), {"eps": 0.1, "eps_in_sqrt": False}),
        (optax.rmsprop(1.0, eps=0.1, centered=True), {"eps": 0.1}),
        (optax.rmsprop(1.0, eps=0.1, bias_correction=True), {"eps": 0.1, "b2": 0.9}),
        (
            optax.rmsprop(1.0, eps=0.1, bias_correction=True, centered=True),
            {"eps": 0.1, "b2": 0.9},
        ),
        (optax.adagrad(1.0, eps=1e-2), {"eps": 1e-2}),
    ],
)
def test_the_last_update_is_the_gradient_over_the_preconditioner(optimizer, options):
    state, updates = state_after(optimizer)
    diagonal = preconditioner(state, **options)
    # rtol: for the centred RMSprop the difference nu - mu^2 cancels two digits.
    close(updates, jax.tree.map(lambda g, d: -g / d, GRADS[-1], diagonal), rtol=1e-5)


def test_adam_has_the_bias_correction_of_its_momentum():
    state, _ = state_after(optax.adam(1e-3, b1=0.9, b2=0.99))
    diagonal = preconditioner(state, b1=0.9, b2=0.99, eps=1e-8)
    second = sum(0.01 * 0.99 ** (2 - i) * np.asarray(g["a"]) ** 2 for i, g in enumerate(GRADS))
    expected = (1 - 0.9**3) * (np.sqrt(second / (1 - 0.99**3)) + 1e-8)
    np.testing.assert_allclose(diagonal["a"], expected, rtol=2e-6)


def test_amsgrad_has_the_bias_correction_of_its_momentum():
    # The maximum of the corrected second moments, over the steps.
    state, _ = state_after(optax.amsgrad(1e-3, b1=0.9, b2=0.5, eps=1e-2))
    diagonal = preconditioner(state, b1=0.9, eps=1e-2)
    second, largest = 0.0, 0.0
    for step, g in enumerate(GRADS, 1):
        second = 0.5 * second + 0.5 * np.asarray(g["a"]) ** 2
        largest = np.maximum(largest, second / (1 - 0.5**step))
    expected = (1 - 0.9**3) * (np.sqrt(largest) + 1e-2)
    np.testing.assert_allclose(diagonal["a"], expected, rtol=2e-6)


ADAM = {"b1": 0.8, "b2": 0.9, "eps": 1e-3}


def wrapped(inner):
    yield "chain", optax.chain(optax.clip_by_global_norm(100.0), optax.chain(inner))
    yield "multi_steps", optax.MultiSteps(inner, 1)
    yield "apply_if_finite", optax.apply_if_finite(inner, 3)
    yield "masked_all", optax.masked(inner, {"a": True, "b": True})


@pytest.mark.parametrize("name", ["chain", "multi_steps", "apply_if_finite", "masked_all"])
def test_found_inside_wrappers(name):
    reference, _ = state_after(optax.adam(1e-3, **ADAM))
    state, _ = state_after(dict(wrapped(optax.adamw(1e-3, **ADAM)))[name])
    close(preconditioner(state, **ADAM), preconditioner(reference, **ADAM))


def test_hyperparameters_come_from_inject_hyperparams():
    reference, _ = state_after(optax.adam(1e-3, **ADAM))
    expected = preconditioner(reference, **ADAM)
    schedule = optax.linear_schedule(1e-3, 1e-4, 10)
    injected, _ = state_after(optax.inject_hyperparams(optax.adam)(schedule, **ADAM))
    close(preconditioner(injected), expected)
    # An argument wins over the state.
    other = preconditioner(injected, eps=1.0)
    factor = 1 - 0.8**3
    close(other, jax.tree.map(lambda d: d + factor * (1.0 - 1e-3), expected), rtol=1e-5)


def test_a_missing_hyperparameter_is_named():
    state, _ = state_after(optax.adam(1e-3))
    with pytest.raises(ValueError, match=r"does not hold b2.*inject_hyperparams.*pass b2="):
        preconditioner(state, b1=0.9, eps=1e-8)


def test_groups_of_params():
    optimizer = optax.multi_transform(
        {"adam": optax.adam(1e-3, **ADAM), "sgd": optax.sgd(0.1)}, {"a": "adam", "b": "sgd"}
    )
    state, _ = state_after(optimizer)
    reference, _ = state_after(optax.adam(1e-3, **ADAM))
    diagonal = preconditioner(state, **ADAM, params=PARAMS)
    close(diagonal["a"], preconditioner(reference, **ADAM)["a"])
    assert diagonal["b"].tolist() == [[1.0]]
    with pytest.raises(ValueError, match="a part of the params only: pass params="):
        preconditioner(state, **ADAM)


def test_two_preconditioners_are_refused():
    state, _ = state_after(optax.chain(optax.scale_by_adam(), optax.scale_by_rms()))
    with pytest.raises(ValueError, match="two preconditioners act on params"):
        preconditioner(state, b1=0.9, b2=0.9, eps=1e-8, params=PARAMS)


def test_gradient_descent_has_ones():
    momentum, _ = state_after(optax.sgd(0.1, momentum=0.9))
    plain, _ = state_after(optax.sgd(0.1))
    close(preconditioner(momentum), jax.tree.map(jnp.ones_like, PARAMS), rtol=0)
    assert preconditioner(plain, params=PARAMS)["b"].tolist() == [[1.0]]
    with pytest.raises(ValueError, match="pass params="):
        preconditioner(plain)


def test_no_step_taken_yet():
    state = optax.adam(1e-3).init(PARAMS)
    with pytest.raises(ValueError, match="no step yet"):
        preconditioner(state, **ADAM)


@pytest.mark.parametrize("optimizer", [optax.lion(1e-3), optax.adafactor(1e-3)])
def test_an_unknown_preconditioner_is_refused(optimizer):
    with pytest.raises(TypeError, match="no preconditioner that is known here"):
        preconditioner(optimizer.init(PARAMS), params=PARAMS)


def test_an_unused_adagrad_entry_is_frozen():
    optimizer = optax.adagrad(1.0, initial_accumulator_value=0.0)
    state, updates = state_after(optimizer, [jnp.array([0.0, 3.0])], jnp.zeros(2))
    assert preconditioner(state, eps=0.0).tolist() == [float("inf"), 3.0]
    assert updates.tolist() == [0.0, -1.0]


def test_traced_state_compiles_once():
    optimizer = optax.inject_hyperparams(optax.adam)(1e-3, **ADAM)
    first, _ = state_after(optimizer, GRADS[:1])
    last, _ = state_after(optimizer)
    traced = jax.jit(preconditioner)
    close(traced(first), preconditioner(first))
    close(traced(last), preconditioner(last))
    assert traced._cache_size() == 1


# The quadratic loss lambda w^2 / 2 under a frozen preconditioner: just above the threshold the
# iterates grow without bound, just below they die out. 2,000 steps of growth 1 +- 1e-2 x O(1).
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
    state, _ = state_after(optax.inject_hyperparams(optax.adam)(1e-3, b1=0.5))
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
