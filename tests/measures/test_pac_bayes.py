"""PAC-Bayes flatness: the noise level in closed form, its standard error, and the bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.measures import average_sharpness, pac_bayes_flatness
from tests.measures import networks

pytestmark = pytest.mark.usefixtures("x64")

DIM, INCREASE = 6, 0.2
H = networks.spd(DIM)


def measured(key, w=None, **kwargs):
    batch = {"H": jnp.asarray(H), "g": jnp.zeros(DIM)}
    params = jnp.zeros(DIM) if w is None else w
    return pac_bayes_flatness(
        networks.quadratic, params, batch, increase=INCREASE, key=key, **kwargs
    )


def test_sigma_on_a_quadratic_within_its_standard_error():
    exact = (2 * INCREASE / np.trace(H)) ** 0.5

    def one(key):
        result = measured(key, num_samples=32, tol=1e-3)
        return result.sigma, result.standard_error, result.converged

    sigmas, errors, converged = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 200))
    assert converged.all()
    z = (np.asarray(sigmas) - exact) / np.asarray(errors)
    # 200 seeds of 32 chi-squared samples; the binomial s.e. of 5 % is 1.5 %, and the standard error
    # is itself uncertain by a fifth.
    assert (np.abs(z) > 2).mean() < 0.14
    assert abs(sigmas.mean() / exact - 1) < 0.02  # 1 % s.e., and a bias of 1/(8m)


def test_fields_follow_their_definitions():
    w, prior = jnp.ones(DIM), 0.5 * jnp.ones(DIM)
    result = measured(jax.random.key(1), w, prior=prior, num_examples=1000, delta=0.1)
    assert bool(result.converged)
    # The rise is quadratic in sigma, which is known to half the tolerance.
    np.testing.assert_allclose(result.increase, INCREASE, rtol=1e-2)
    np.testing.assert_allclose(result.flatness, 1 / result.sigma**2)
    np.testing.assert_allclose(result.loss, 0.5 * H.sum())
    kl = DIM * 0.25 / (2 * float(result.sigma) ** 2)
    np.testing.assert_allclose(result.kl, kl)
    complexity = np.sqrt((kl + np.log(2 * np.sqrt(1000) / 0.1)) / 2000)
    np.testing.assert_allclose(result.bound, result.loss + result.increase + complexity)
    assert int(result.num_evaluations) < 2 * 16 * 14
    # The same samples at the sigma found; it is the root of the rise, so has half its error.
    batch = {"H": jnp.asarray(H), "g": jnp.zeros(DIM)}
    rise = average_sharpness(
        networks.quadratic, w, batch, sigma=result.sigma, key=jax.random.key(1), num_samples=16
    )
    np.testing.assert_allclose(result.increase, rise.value, rtol=1e-12)
    relative = rise.standard_error / rise.value
    np.testing.assert_allclose(result.standard_error, result.sigma * relative / 2, rtol=1e-12)


def test_bad_arguments():
    assert np.isnan(measured(jax.random.key(0), num_samples=1).bound)  # without num_examples
    for options, message in [
        ({"delta": 1.0}, "delta must be above 0.0 and below 1.0"),
        ({"initial_sigma": 0.0}, "initial_sigma must be above 0"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"num_examples": 0}, "num_examples must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            measured(jax.random.key(0), **options)
    with pytest.raises(ValueError, match="prior has shape"):
        measured(jax.random.key(0), prior=jnp.ones(2))
