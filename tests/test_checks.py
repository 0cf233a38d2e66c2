"""A wrong type is a TypeError, a wrong value a ValueError, and the text says what is wanted."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatjax
from flatjax import _checks as checks
from flatjax import parallel

INF = float("inf")


@pytest.mark.parametrize("call", [
    lambda: checks.check_count("k", 1),
    lambda: checks.check_count("k", np.int64(0), least=0),
    lambda: checks.check_choice("way", None, ("LA", None)),
    lambda: checks.check_scalar("eta", np.float32(-3.0)),
    lambda: checks.check_scalar("eta", jnp.ones(()), minimum=1.0, maximum=1.0),
    lambda: checks.check_scalar("p", INF, minimum=1.0, infinite=True),
    lambda: checks.check_scalar("rho", lambda step: step, schedule=True),
    lambda: jax.eval_shape(lambda x: checks.check_scalar("rho", x, above=1.0), 0.0),
    lambda: checks.check_batches([np.ones(2), jnp.ones(2)], "a pass"),
    lambda: checks.check_batches(((jnp.ones(2), None), (jnp.ones(1), None)), "a pass"),
    lambda: checks.check_batches(iter([1]), "a pass", again=False),
    lambda: checks.check_tolerance(0),
    lambda: checks.check_tolerance(INF),
])  # fmt: skip
def test_good_values_pass(call):
    assert call() is None


@pytest.mark.parametrize(("call", "error", "text"), [
    (lambda: checks.check_count("k", 2.0), TypeError, "k must be an integer, got 2.0"),
    (lambda: checks.check_count("k", True), TypeError, "k must be an integer, got True"),
    (lambda: checks.check_count("k", 1, 2), ValueError, "k must be at least 2, got 1"),
    (lambda: checks.check_choice("way", "LB", ("LA", "SA")), ValueError, "one of 'LA', 'SA', got"),
    (lambda: checks.check_choice("way", np.ones(2), ("LA",)), ValueError, "one of 'LA', got arr"),
    (lambda: checks.check_scalar("eta", "1"), TypeError, "eta must be a number, got str"),
    (lambda: checks.check_scalar("eta", None), TypeError, "eta must be a number, got NoneType"),
    (lambda: checks.check_scalar("eta", True), TypeError, "eta must be a number, got bool"),
    (lambda: checks.check_scalar("eta", np.ones(1)), TypeError, r"ndarray of shape \(1,\)"),
    (lambda: checks.check_scalar("eta", print), TypeError, "eta must be a number, got builtin"),
    (lambda: checks.check_scalar("eta", "1", schedule=True), TypeError, "a number or a schedule"),
    (lambda: checks.check_scalar("eta", INF), ValueError, "eta must be finite, got inf"),
    (lambda: checks.check_scalar("p", float("nan"), infinite=True), ValueError, "must be finite"),
    (lambda: checks.check_scalar("eta", 0, above=0), ValueError, "eta must be above 0, got 0"),
    (lambda: checks.check_scalar("eta", -1, minimum=0), ValueError, "at least 0, got -1"),
    (lambda: checks.check_scalar("b", 2, minimum=0, maximum=1), ValueError, "0 and at most 1, got"),
    (lambda: checks.check_scalar("b", 1, minimum=0, below=1), ValueError, "0 and below 1, got 1"),
    (lambda: checks.check_tolerance(-1.0), ValueError, "tol must not be negative, got -1"),
    (lambda: checks.check_tolerance(float("nan"), "rtol"), ValueError, "rtol must not be"),
    (lambda: checks.check_tolerance(jnp.ones(())), TypeError, "tol must be a Python number"),
    (lambda: checks.check_key(None), ValueError, "key is missing: pass key="),
    (lambda: checks.check_key(0), TypeError, "key must be one PRNG key"),
    (lambda: checks.check_key(jax.random.split(jax.random.key(0))), TypeError, "one PRNG key"),
])  # fmt: skip
def test_bad_values_say_what_is_wanted(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_an_old_key_becomes_a_typed_one():
    key = checks.check_key(jax.random.PRNGKey(3))
    assert key == jax.random.key(3)
    assert checks.check_key(key) is key


X, Y = np.ones((4, 2)), jnp.arange(4)


def loss(w, batch):
    return (w**2).sum()


def operator(batch) -> Any:
    return flatjax.hessian(loss, jnp.ones(2), batch)


TAKE_BATCHES = {
    "fit_curve": lambda batches: flatjax.fit_curve(
        loss, flatjax.bezier([jnp.ones(2), None, -jnp.ones(2)]), batches,
        optimizer=optax.sgd(0.1), key=jax.random.key(0), num_steps=1,
    ),
    "reestimate_batch_statistics": lambda batches: flatjax.reestimate_batch_statistics(
        lambda w, s, batch: 0.9 * s, jnp.ones(2), jnp.ones(2), batches
    ),
    "over_batches": lambda batches: flatjax.over_batches(operator, batches),
    "shard_batches": lambda batches: parallel.shard_batches(batches, parallel.make_mesh(1)),
    "batch_sharpness": lambda batches: flatjax.batch_sharpness(loss, jnp.ones(2), batches),
    "local_learning_coefficient": lambda batches: flatjax.local_learning_coefficient(
        loss, jnp.ones(2), batches, key=jax.random.key(0), num_data=4, localization=1.0,
        step_size=0.1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKE_BATCHES)
@pytest.mark.parametrize(
    "batch", [X, Y, (X, Y), ((X, X), Y), {"x": X, "y": Y}], ids=["X", "Y", "pair", "nested", "dict"]
)
def test_one_batch_is_not_taken_apart(name, batch):
    with pytest.raises(TypeError, match=r"is one batch: pass \[batch\], or a list"):
        TAKE_BATCHES[name](batch)


def test_an_operator_is_wanted_for_every_batch():
    with pytest.raises(TypeError, match="must be an operator"):
        flatjax.trace_over_batches((X, Y), key=jax.random.key(0), structure=jnp.ones(2))
