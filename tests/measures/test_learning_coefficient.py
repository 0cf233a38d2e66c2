"""The local learning coefficient against quadrature of the very expectation that it estimates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.measures import local_learning_coefficient
from flatjax.measures._batches import Objectives
from flatjax.measures._chains import diagnosed
from flatjax.measures._learning_coefficient import _initial
from tests.compilations import count_compilations

N = 1000
DATA_WEIGHT = N / np.log(N)


def quadratic(params, _):
    w = jnp.concatenate(jax.tree.leaves(params))
    return 0.5 * (jnp.asarray([20.0, 5.0, 1.0, 1.0, 0.2, 3.0], w.dtype) * w**2).sum()


def crossing(w, _):
    """A normal crossing: the coefficient 1/2 with multiplicity 2."""
    return (w[0] * w[1]) ** 2


def deep(w, x):
    """A deep linear network of width one whose target is zero; one loss an example."""
    return 0.5 * (w[0] * w[1] * w[2] * x) ** 2


def expectation(loss, localization, dim, half_width, points=301):
    """The tempered expectation of n beta L under the normal distribution about zero, on a grid."""
    grid = np.linspace(0, half_width, points)  # even in every coordinate
    at = np.meshgrid(*[grid] * dim, indexing="ij", sparse=True)
    potential = DATA_WEIGHT * loss(at)
    weight = np.exp(-potential - localization / 2 * sum(x**2 for x in at))
    for axis in range(dim):  # the trapezoidal rule
        np.moveaxis(weight, axis, 0)[0] /= 2
    return (potential * weight).sum() / weight.sum()


# Unequal batches, with a mean square of 9.
X = np.random.default_rng(0).uniform(0.8, 1.2, size=20)
X *= 3 / np.sqrt((X**2).mean())
BATCHES = [X[:8].astype(np.float32), X[8:16].astype(np.float32), X[16:].astype(np.float32)]
CASES = {
    "quadratic": (
        quadratic, {"a": jnp.zeros(2), "b": jnp.zeros(4)}, [None],
        {"localization": 10.0, "step_size": 3e-4, "num_steps": 1000, "num_burnin": 200},
    ),
    "crossing": (
        crossing, jnp.zeros(2), [None],
        {"localization": 10.0, "step_size": 2e-3, "num_steps": 3000, "num_burnin": 300},
    ),
    "deep": (
        deep, jnp.zeros(3), BATCHES,
        {"localization": 10.0, "step_size": 1e-3, "num_steps": 3000, "num_burnin": 300},
    ),
}  # fmt: skip


def truth(name):
    if name == "quadratic":
        h = DATA_WEIGHT * np.array([20.0, 5.0, 1.0, 1.0, 0.2, 3.0])
        return 0.5 * (h / (h + 10.0)).sum()
    if name == "crossing":
        return expectation(lambda w: (w[0] * w[1]) ** 2, 10.0, 2, 3.0)
    return expectation(lambda w: 4.5 * (w[0] * w[1] * w[2]) ** 2, 10.0, 3, 2.2, 121)


def measured(name, seed, **changes):
    loss_fn, params, batches, options = CASES[name]
    options = {"key": jax.random.key(seed), "num_data": N} | options | changes
    return local_learning_coefficient(loss_fn, params, batches, **options)


@pytest.mark.parametrize("name", CASES)
def test_against_quadrature(name, seed):
    found = measured(name, seed)
    expected = truth(name)
    assert abs(float(found.value) - expected) < 4 * float(found.standard_error)
    assert float(found.standard_error) < 0.1 * expected  # so that it could fail
    assert bool(found.converged)
    # The fields are those of one series.
    excess = np.asarray(found.losses, np.float64) - float(found.initial_loss)
    assert excess.shape == (4, CASES[name][3]["num_steps"])
    np.testing.assert_allclose(DATA_WEIGHT * excess.mean(axis=1), found.per_chain, rtol=1e-4)
    np.testing.assert_allclose(found.per_chain.mean(), found.value, rtol=1e-5)
    diagnosis = diagnosed(DATA_WEIGHT * excess, len(CASES[name][2]))  # over whole passes
    for field in ("standard_error", "r_hat", "effective_samples"):
        np.testing.assert_allclose(getattr(found, field), getattr(diagnosis, field), rtol=1e-3)
    low, high = np.asarray(found.interval)
    assert low < float(found.value) < high
    # The 97.5 % quantile of Student's t, near the normal one for many effective samples.
    assert 1.95 < (high - low) / (2 * float(found.standard_error)) < 2.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "preconditioner"), [*((name, "rmsprop") for name in CASES), ("crossing", None)]
)
def test_intervals_cover(name, preconditioner, seed):
    expected = truth(name)
    covered = 0
    for i in range(50):
        low, high = measured(name, 1000 * seed + i, preconditioner=preconditioner).interval
        covered += float(low) <= expected <= float(high)
    # Of 50 intervals of 95 % fewer than 44 hold the truth in one sweep of 85.
    assert covered >= 44


def test_a_mask_holds_the_other_leaves(seed):
    found = measured("quadratic", seed, mask={"a": True, "b": False}, num_steps=600)
    h = DATA_WEIGHT * np.array([20.0, 5.0])
    expected = 0.5 * (h / (h + 10.0)).sum()
    assert abs(float(found.value) - expected) < 4 * float(found.standard_error) < 0.5


def test_new_params_data_and_numbers_compile_nothing_and_the_noise_of_batches_cancels():
    def loss_fn(w, batch):
        return 0.5 * (w**2).sum() + batch["offset"]

    def run(offsets, key, step_size):
        batches = [{"offset": np.asarray(o, np.float32)} for o in offsets]
        return local_learning_coefficient(
            loss_fn, jnp.zeros(3), batches, key=jax.random.key(key), num_data=N, localization=1.0,
            step_size=step_size, num_chains=2, num_steps=40, num_burnin=10,
        )  # fmt: skip

    # Powers of two, so that nothing is rounded where they are added and taken off again.
    quiet = run([[0.0, 0.0], [0.0, 0.0]], 0, 1e-3)
    with count_compilations() as count:
        loud = run([[16.0, 16.0], [-16.0, -16.0]], 0, 1e-3)
        other = run([[0.0, 0.0], [0.0, 0.0]], 1, 2e-3)
    assert count.value == 0
    assert float(loud.initial_loss) == 0
    # 16 times a rounding error of float32, per loss, in n beta; the signal is 1.5.
    np.testing.assert_allclose(loud.value, quiet.value, atol=DATA_WEIGHT * 16 * 1.2e-7)
    assert float(other.value) != float(quiet.value)


def test_the_initial_loss_is_a_mean_over_examples():
    batches = [np.full(3, 1.0, np.float32), np.full(1, 5.0, np.float32)]
    ops = Objectives("a test", lambda w, x: w + x, jnp.float32(1), batches, (), precision=None)
    # (3 x 2 + 6) / 4, in two batches of two examples on average.
    assert _initial(ops)[1:] == (3.0, 2.0, 2)


def test_a_point_that_is_no_minimum_is_flagged(seed):
    def loss_fn(w, _):
        return -0.5 * (w**2).sum()

    found = local_learning_coefficient(
        loss_fn, jnp.zeros(2), [None], key=jax.random.key(seed), num_data=N,
        localization=2 * DATA_WEIGHT, step_size=3e-3, num_steps=1000, num_burnin=50,
    )  # fmt: skip
    assert float(found.value) < 0
    assert float(found.r_hat) < 1.05  # the chains agree on it
    assert float(found.effective_samples) > 40
    assert not bool(found.converged)


def test_a_step_is_stable_up_to_two_over_the_curvature(seed):
    def found(factor):
        step_size = factor / (20.0 * DATA_WEIGHT + 10.0)
        options = {"step_size": step_size, "num_steps": 600, "num_burnin": 0}
        return measured("quadratic", seed, preconditioner=None, **options)

    assert abs(float(found(1.8).value) - truth("quadratic")) < 1
    diverged = found(2.2)
    assert not np.isfinite(float(diverged.value))
    assert not bool(diverged.converged)


def test_bad_arguments():
    def call(**changes):
        options = {"key": jax.random.key(0), "num_data": N, "localization": 1.0, "step_size": 1e-3}
        batches = changes.pop("batches", [None])
        return local_learning_coefficient(
            quadratic, CASES["quadratic"][1], batches, **(options | changes)
        )

    for changes, error, message in [
        ({"num_data": 1}, ValueError, "num_data must be above 1"),
        ({"localization": -1.0}, ValueError, "localization must be at least 0"),
        ({"step_size": 0.0}, ValueError, "step_size must be above 0"),
        ({"inverse_temperature": 0.0}, ValueError, "inverse_temperature must be above 0"),
        ({"num_chains": 0}, ValueError, "num_chains must be at least 1"),
        ({"num_steps": 3}, ValueError, "num_steps must be at least 4"),
        ({"num_burnin": -1}, ValueError, "num_burnin must be at least 0"),
        ({"preconditioner": "adam"}, ValueError, "preconditioner must be one of"),
        ({"mask": "c"}, ValueError, "chooses nothing"),
        ({"key": None}, ValueError, "key is missing"),
        ({"batches": iter([None])}, TypeError, "one-shot iterator"),
        ({"batches": []}, ValueError, "batches gave nothing"),
    ]:
        with pytest.raises(error, match=message):
            call(**changes)
    with pytest.raises(ValueError, match="Mean"):  # a sum over the examples
        local_learning_coefficient(
            lambda w, x: (x @ w**2).sum(), jnp.ones(2), [np.ones((4, 2), np.float32)] * 2,
            key=jax.random.key(0), num_data=N, localization=1.0, step_size=1e-3,
        )  # fmt: skip
    with pytest.raises(TypeError, match="goes over batches from the host"):
        jax.jit(lambda s: local_learning_coefficient(
            lambda w, _: (s * w**2).sum(), jnp.ones(2), [None],
            key=jax.random.key(0), num_data=N, localization=1.0, step_size=1e-3,
        ))(1.0)  # fmt: skip
