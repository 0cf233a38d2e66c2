"""The gradient noise scale: exact against stacked gradients, unbiased over draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax.measures import gradient_noise_scale, gradient_noise_scale_from_norms
from tests.measures import networks

pytestmark = pytest.mark.usefixtures("x64")

MEAN, VARIANCES = np.array([1.0, -0.5, 0.0]), np.array([1.0, 4.0, 2.0])
TRACE, SQUARED = VARIANCES.sum(), (MEAN**2).sum()


def linear_loss(w, x):
    """The gradient of example i is x_i."""
    return x @ w


def draws(key, n):
    mean, deviation = (jnp.broadcast_to(a, (n, 3)) for a in (MEAN, VARIANCES**0.5))
    return mean + jax.random.normal(key, (n, 3)) * deviation


def stacked(params, batch):
    g = flatjax.per_example_gradients(networks.relu_loss, params, batch)
    return np.concatenate([np.asarray(a).reshape(a.shape[0], -1) for a in g], axis=1)


@pytest.mark.parametrize("options", [{}, {"chunk_size": 5}])
def test_exact_form(options):
    params, batch = networks.relu_params(), networks.data()
    g = stacked(params, batch)
    trace, squared = g.var(axis=0).sum(), (g.mean(axis=0) ** 2).sum()
    result = gradient_noise_scale(networks.relu_loss, params, batch, **options)
    np.testing.assert_allclose(result.trace, trace, rtol=1e-12)
    np.testing.assert_allclose(result.squared_norm, squared, rtol=1e-12)
    np.testing.assert_allclose(result.value, trace / squared, rtol=1e-12)


@pytest.mark.parametrize("unbiased", [False, True])
def test_parts_with_weights_and_their_jackknife(unbiased):
    """Weights 1, 2, 3: n is the number of equal examples that they are worth, W^2 / sum w^2."""
    params, batch = networks.relu_params(), networks.data()
    w = np.array([0.0, 1.0, 2.0, 3.0] * 3)
    result = gradient_noise_scale(networks.relu_loss, params, batch, unbiased=unbiased, weights=w)
    g = stacked(params, batch)

    def parts(g, w):
        mean, n = w @ g / w.sum(), w.sum() ** 2 / (w**2).sum()
        biased = w @ (g**2).sum(1) / w.sum() - mean @ mean
        if not unbiased:
            return biased, mean @ mean
        return biased * n / (n - 1), mean @ mean - biased / (n - 1)

    trace, squared = parts(g, w)
    np.testing.assert_allclose(result.trace, trace, rtol=1e-12)
    np.testing.assert_allclose(result.squared_norm, squared, rtol=1e-11)
    counted = np.flatnonzero(w)
    left_out = [parts(np.delete(g, i, axis=0), np.delete(w, i)) for i in counted]
    values = np.array([a / b for a, b in left_out])
    error = np.sqrt(8 / 9 * ((values - values.mean()) ** 2).sum())
    np.testing.assert_allclose(result.standard_error, error, rtol=1e-9)
    assert float(result.count) == 9


def test_unbiased_parts_and_honest_error_over_draws():
    def one(key):
        return gradient_noise_scale(linear_loss, jnp.zeros(3), draws(key, 100), unbiased=True)

    results = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 400))
    for values, exact in ((results.trace, TRACE), (results.squared_norm, SQUARED)):
        assert abs(values.mean() - exact) < 4 * values.std() / 400**0.5
    # The jackknife agrees with the spread over draws (s.e. of a standard deviation: 4 %, and the
    # ratio has long tails).
    ratio = np.median(results.standard_error) / results.value.std()
    assert 0.7 < ratio < 1.3


def test_two_batch_sizes_are_unbiased_over_draws():
    small_size, large_size = 4, 32

    def one(key):
        g = draws(key, large_size).reshape(8, small_size, 3).mean(axis=1)
        return (g**2).sum(axis=1).mean(), (g.mean(axis=0) ** 2).sum()

    small, large = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), 4000))
    sizes = {"small_size": small_size, "large_size": large_size}
    result = gradient_noise_scale_from_norms(small, large, **sizes)
    single = jax.jit(jax.vmap(lambda a, b: gradient_noise_scale_from_norms(a, b, **sizes)))(
        small.reshape(40, 100), large.reshape(40, 100)
    )
    for name, exact in (("trace", TRACE), ("squared_norm", SQUARED)):
        parts = np.asarray(getattr(single, name))
        assert abs(parts.mean() - exact) < 4 * parts.std() / 40**0.5
        np.testing.assert_allclose(getattr(result, name), parts.mean(), rtol=1e-12)
    assert abs(float(result.value) - TRACE / SQUARED) < 4 * float(result.standard_error)
    # 40 estimates: the s.e. of their standard deviation is 11 %.
    assert 0.6 < np.median(single.standard_error) / np.std(single.value) < 1.5


def test_ignores_the_scale_of_the_loss():
    params, batch = networks.relu_params(), networks.data()
    values = [
        float(gradient_noise_scale(fn, params, batch).value)
        for fn in (networks.relu_loss, lambda p, b: 7.0 * networks.relu_loss(p, b))
    ]
    np.testing.assert_allclose(*values, rtol=1e-12)


def test_bad_arguments():
    with pytest.raises(ValueError, match="needs a batch"):
        gradient_noise_scale(lambda w, _: w.sum(), jnp.ones(2), None)
    x = jnp.ones((2, 3))
    for options in ({"batch": x[:1]}, {"batch": x, "weights": np.array([0.0, 2.0])}):
        with pytest.raises(ValueError, match="at least two examples that count, got 1"):
            gradient_noise_scale(linear_loss, jnp.ones(3), **options)
    with pytest.raises(ValueError, match="0 < small_size < large_size"):
        gradient_noise_scale_from_norms(1.0, 1.0, small_size=4, large_size=4)
    with pytest.raises(ValueError, match="of one shape"):
        gradient_noise_scale_from_norms(np.ones(2), np.ones(3), small_size=1, large_size=4)
