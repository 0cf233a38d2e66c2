"""Batch sharpness of linear regression, where gradients and Hessians are products of matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.measures import batch_sharpness

pytestmark = pytest.mark.usefixtures("x64")

DIM, SIZES = 4, (5, 5, 5, 5, 5, 3)
RNG = np.random.default_rng(0)
W = RNG.normal(size=DIM)
BATCHES = [(RNG.normal(size=(n, DIM)), RNG.normal(size=n)) for n in SIZES]


def loss_fn(w, batch):
    x, y = batch
    return 0.5 * (x @ w - y) ** 2


def closed_form(x, y):
    gradient, hessian = x.T @ (x @ W - y) / len(y), x.T @ x / len(y)
    return gradient @ hessian @ gradient / (gradient @ gradient)


def test_linear_regression():
    found = batch_sharpness(loss_fn, jnp.asarray(W), BATCHES)
    expected = np.array([closed_form(*batch) for batch in BATCHES])
    count = len(SIZES)
    np.testing.assert_allclose(found.value, expected.mean(), rtol=1e-12)
    # The textbook's error, times what an Estimate adds for the spread being estimated itself.
    error = expected.std(ddof=1) / count**0.5 * ((count - 1) / (count - 3)) ** 0.5
    np.testing.assert_allclose(found.standard_error, error, rtol=1e-8)
    assert found.interval[0] < found.value < found.interval[1]
    assert found.num_products == count
    mean = batch_sharpness(lambda w, b: loss_fn(w, b).mean(), jnp.asarray(W), BATCHES)
    np.testing.assert_allclose(mean.value, found.value, rtol=1e-12)


def test_tiny_gradients():
    # Their squares are below the least float64.
    found = batch_sharpness(lambda w, b: 1e-200 * loss_fn(w, b), jnp.asarray(W), BATCHES)
    expected = np.mean([closed_form(*batch) for batch in BATCHES])
    np.testing.assert_allclose(1e200 * found.value, expected, rtol=1e-10)


def test_a_gradient_of_zero_has_no_direction():
    still = (np.zeros((2, DIM)), np.zeros(2))
    found = batch_sharpness(loss_fn, jnp.asarray(W), [*BATCHES, still])
    assert np.isnan(found.value)
    assert not found.converged


def test_bad_arguments():
    with pytest.raises(TypeError, match="one-shot iterator, but batch_sharpness needs"):
        batch_sharpness(loss_fn, jnp.asarray(W), iter(BATCHES))
    with pytest.raises(ValueError, match="directional_sharpness"):
        batch_sharpness(loss_fn, jnp.asarray(W), BATCHES[:1])
    with pytest.raises(ValueError, match="batches gave nothing"):
        batch_sharpness(loss_fn, jnp.asarray(W), [])
    with pytest.raises(TypeError, match="batch_sharpness goes over batches from the host"):
        jax.jit(lambda w: batch_sharpness(loss_fn, w, BATCHES))(W)
