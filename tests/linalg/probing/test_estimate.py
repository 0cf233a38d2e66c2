"""Standard errors and intervals from samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from flatjax.linalg.probing._estimate import from_samples, rooted, student


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 19, 40, 199])
def test_student_is_scipys(degrees):
    expected = scipy.stats.t.ppf(0.975, degrees)
    assert student(degrees) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_mean_error_and_interval(scale):
    # Symmetric samples: no skewness, so the interval is Student's.
    half = np.random.default_rng(0).standard_normal(6)
    samples = scale * np.concatenate([half, -half])
    found = from_samples(samples, 3 * scale, 0.0, 17, None, jnp.float32)
    error = scipy.stats.sem(samples / scale) * scale
    np.testing.assert_allclose(found.value, 3 * scale, rtol=1e-6)
    np.testing.assert_allclose(found.standard_error, error * np.sqrt(11 / 9), rtol=1e-6)
    low, high = scipy.stats.t.interval(0.95, 11, 3 * scale, error)
    np.testing.assert_allclose(found.interval, [low, high], rtol=1e-5)
    assert found.num_products == 17


def coverage(draw, mean, n):
    rng = np.random.default_rng(0)
    found = [from_samples(draw(rng, n), 0.0, 0.0, n, None, jnp.float32) for _ in range(600)]
    low, high = np.asarray([f.interval for f in found]).T
    return np.mean((low <= mean) & (mean <= high))


@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        # One dominant eigenvalue; two of opposite signs; none.
        (lambda rng, n: rng.standard_normal(n) ** 2, 1.0),
        (lambda rng, n: rng.standard_normal(n) ** 2 - rng.standard_normal(n) ** 2, 0.0),
        (lambda rng, n: rng.standard_normal(n), 0.0),
    ],
)
def test_intervals_of_20_samples_cover_whatever_their_law(draw, mean):
    # Of 600 intervals, 0.9 % is the standard error of their coverage. Student's t alone: 89 % for
    # the first.
    assert 0.92 <= coverage(draw, mean, 20) <= 0.99


@pytest.mark.parametrize("n", [2, 3, 4])
def test_intervals_of_few_samples_are_finite_and_contain_the_mean(n):
    found = from_samples(np.arange(float(n)) ** 3, 0.0, 0.0, n, None, jnp.float32)
    low, high = found.interval
    assert np.isfinite(np.asarray(found.interval)).all()
    assert low < found.value < high


def test_traced_is_the_same():
    samples = np.random.default_rng(0).standard_normal(9).astype(np.float32)

    @jax.jit
    def traced(x):
        return from_samples(x, jnp.float32(1), jnp.float32(0), 9, 0.5, jnp.float32)

    host = from_samples(samples.astype(np.float64), 1.0, 0.0, 9, 0.5, jnp.float32)
    for a, b in zip(*map(jax.tree.leaves, (traced(samples), host)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_rounding_is_part_of_the_error():
    # Samples that agree are not known better than their dtype.
    found = from_samples(np.ones(5), 0.0, 1.0, 5, None, jnp.float32)
    eps = float(jnp.finfo(jnp.float32).eps)
    np.testing.assert_allclose(found.standard_error, 4 * eps)
    assert float(found.interval[0]) < 1 < float(found.interval[1])


@pytest.mark.parametrize(("tol", "converged"), [(None, False), (0.2, True), (1e-3, False)])
def test_converged_is_the_relative_error(tol, converged):
    # Mean 1, standard error 0.1: neither 5 % (the default) nor 0.1 %.
    samples = 1 + 0.1 * np.sqrt(7) * np.array([1, -1] * 5)
    found = from_samples(samples, 0.0, 0.0, 10, tol, jnp.float32)
    np.testing.assert_allclose(found.standard_error, 0.1, rtol=1e-6)
    assert bool(found.converged) == converged


def test_zero_is_known_exactly():
    found = from_samples(np.zeros(4), 0.0, 0.0, 4, None, jnp.float32)
    assert float(found.value) == float(found.standard_error) == 0
    assert bool(found.converged)


@pytest.mark.parametrize("unit", [1.0, 0.25])
def test_the_root_of_a_square_by_the_delta_method(unit):
    square = from_samples(np.array([8.0, 9, 10, 9]), 0.0, 0.0, 7, None, jnp.float32)
    found = rooted(square, unit, 0.1, 100)
    assert float(found.value) == 3 * unit
    slope = unit / (2 * 3.0)
    np.testing.assert_allclose(found.standard_error, slope * square.standard_error, rtol=1e-6)
    np.testing.assert_allclose(np.square(found.interval / unit), square.interval, rtol=1e-6)
    assert found.num_products == 7
    assert bool(found.converged)
    assert not bool(rooted(square, unit, 1e-3, 100).converged)
    below = rooted(square._replace(value=jnp.float32(-1)), unit, None, 100)
    assert float(below.value) == 0
