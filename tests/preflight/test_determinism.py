"""Operators that are another matrix at every product are caught, and the cause is named."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax.operators import ggn, gradient_covariance, hessian, over_batches
from flatjax.operators._precondition import preconditioned
from flatjax.preflight._determinism import check_deterministic

X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
Y = jnp.sin(3 * X[:, 0])
W = jnp.array([0.5, -1.0, 2.0])


def loss_fn(w, batch):
    x, y = batch
    return jnp.square(jnp.tanh(x @ w) - y)


def names(report):
    return {cause.split(":")[0] for cause in report.causes}


def test_a_fixed_operator_passes():
    report = check_deterministic(hessian(loss_fn, W, (X, Y)))
    assert report.ok
    assert report.causes == report.notes == ()
    assert report.repeat_error == report.trace_error == 0.0
    # Rounding of sums of eight float32 terms.
    assert report.symmetry_error < 1e-6
    assert report.batch_error < 1e-6


def test_composed_operators_pass():
    op = hessian(loss_fn, W, (X, Y))
    sum_ = preconditioned(2.0 * op + gradient_covariance(loss_fn, W, (X, Y)), jnp.ones(3))
    assert check_deterministic(sum_).ok
    assert check_deterministic(op.linearize()).ok
    assert check_deterministic(gradient_covariance(loss_fn, W, (X, Y), chunk_size=3)).ok
    assert check_deterministic(lambda v: 2.0 * v, structure=W).ok
    assert check_deterministic(lambda: op).ok
    assert check_deterministic(hessian(lambda w, b: loss_fn(w, b).mean(), W, (X[:7], Y[:7]))).ok


class Loader:
    """Batches of four examples, shuffled or changed at every pass."""

    def __init__(self, *, shuffle=False, augment=False, drop=False):
        self.rng, self.shuffle = np.random.default_rng(0), shuffle
        self.augment, self.drop = augment, drop

    def __iter__(self):
        order = self.rng.permutation(8) if self.shuffle else np.arange(8)
        for rows in order.reshape(2, 4)[: 1 if self.drop else 2]:
            noise = self.rng.normal(size=(4, 3)) if self.augment else np.zeros((4, 3))
            yield X[rows] + jnp.asarray(0.1 * noise, jnp.float32), Y[rows]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, set()),
        ({"shuffle": True}, {"shuffled data"}),
        ({"augment": True}, {"changing data", "run-to-run noise", "asymmetric product"}),
        (
            {"shuffle": True, "drop": True},
            {"changing data", "run-to-run noise", "asymmetric product"},
        ),
    ],
    ids=["fixed", "shuffled", "augmented", "dropped"],
)
def test_streams(options, expected):
    stream = over_batches(lambda b: hessian(loss_fn, W, b), Loader(**options))
    report = check_deterministic(stream)
    assert names(report) == expected
    assert report.ok == (not expected)


def test_a_factory_that_draws_new_data_or_keys():
    rng, counter = np.random.default_rng(0), itertools.count()
    fresh = lambda: hessian(loss_fn, W, (X[rng.permutation(8)[:4]], Y[:4]))  # noqa: E731
    assert names(check_deterministic(fresh)) == {"changing data"}

    def keyed(w, batch, key):
        return loss_fn(w, batch) * jax.random.bernoulli(key, 0.5, (batch[1].shape[0],)).astype(
            jnp.float32
        )

    def new_key():
        return hessian(keyed, W, (X, Y), jax.random.key(next(counter)))

    assert names(check_deterministic(new_key)) == {"changing arguments"}


def dropout(w, batch, key):
    x, y = batch
    keep = jax.random.bernoulli(key, 0.5, x.shape).astype(x.dtype)
    return jnp.square(jnp.tanh((x * keep) @ w) - y)


def test_dropout_with_a_key_is_a_note():
    report = check_deterministic(hessian(dropout, W, (X, Y), jax.random.key(0)))
    assert report.ok
    assert report.notes[0].startswith("keyed randomness")
    assert report.batch_error > 0.01


def test_dropout_without_a_key():
    rng = np.random.default_rng(0)

    def loss(w, batch):
        return dropout(w, batch, jax.random.key(int(rng.integers(2**31))))

    report = check_deterministic(hessian(loss, W, (X, Y)))
    assert names(report) == {"unkeyed randomness"}
    assert "pass a key through *args" in report.causes[0]
    assert report.trace_error > 0.01


def normalised(w, x):
    h = x * w[None]
    return (h - h.mean(axis=0, keepdims=True)) / jnp.sqrt(h.var(axis=0, keepdims=True) + 1e-3)


def test_batch_normalisation_in_training_mode():
    def model(w, x):
        return normalised(w, x).sum(axis=1)

    report = check_deterministic(ggn(model, flatjax.squared_error, W, (X, Y)))
    assert names(report) == {"batch statistics"}
    mean_loss = lambda w, b: jnp.mean(jnp.square(model(w, b[0]) - b[1]))  # noqa: E731
    assert names(check_deterministic(hessian(mean_loss, W, (X, Y)))) == {"batch statistics"}


def test_run_to_run_noise():
    rng = np.random.default_rng(0)

    def noisy(v):
        shape = jax.ShapeDtypeStruct(v.shape, v.dtype)
        noise = lambda: rng.normal(size=v.shape).astype(v.dtype)  # noqa: E731
        return v + jax.pure_callback(noise, shape)

    report = check_deterministic(noisy, structure=W)
    assert names(report) == {"run-to-run noise", "asymmetric product"}


def test_an_asymmetric_matrix_and_one_with_nan():
    matrix = jnp.array([[1.0, 2.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    report = check_deterministic(lambda v: jnp.dot(matrix, v), structure=W)
    assert names(report) == {"asymmetric product"}
    assert report.repeat_error == 0.0
    report = check_deterministic(lambda v: jnp.nan * v, structure=W)
    assert names(report) == {"not finite"}


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="op must be an operator or make one"):
        check_deterministic(3)
    with pytest.raises(TypeError, match="a function without arguments that returns one"):
        check_deterministic(lambda: 3)
    op = hessian(loss_fn, W, (X, Y))
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(check_deterministic)(op)
