"""Preconditioners read from optax states."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flatjax.optimizers._preconditioner import preconditioner

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


@pytest.mark.parametrize("name", ["adam", "amsgrad"])
def test_the_bias_correction_of_the_momentum(name):
    options = {"b1": 0.9, "b2": 0.5, "eps": 1e-2}
    state, _ = state_after(getattr(optax, name)(1e-3, **options))
    second, largest = 0.0, 0.0
    for step, g in enumerate(GRADS, 1):
        second = 0.5 * second + 0.5 * np.asarray(g["a"]) ** 2
        corrected = second / (1 - 0.5**step)
        largest = np.maximum(largest, corrected)  # of the corrected second moments, over the steps
    root = np.sqrt(largest if name == "amsgrad" else corrected)
    # Some ten float32 operations.
    found = preconditioner(state, **options)["a"]
    np.testing.assert_allclose(found, (1 - 0.9**3) * (root + 1e-2), rtol=2e-6)


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
