"""Average-case sharpness: unbiased, with an honest standard error, and its invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.measures import average_sharpness
from tests.measures import networks

pytestmark = pytest.mark.usefixtures("x64")

DIM, SIGMA = 6, 0.3
H = networks.spd(DIM)
G = np.random.default_rng(5).normal(size=DIM)


@pytest.mark.parametrize("adaptive", [False, True])
def test_standard_error_is_honest_on_a_quadratic(adaptive):
    w = np.linspace(-1.0, 2.0, DIM)
    t = np.abs(w) + 0.1 if adaptive else np.ones(DIM)
    exact = 0.5 * SIGMA**2 * np.trace(t[:, None] * H * t)
    batch = {"H": jnp.asarray(H), "g": jnp.asarray(G)}

    def measured(key):
        result = average_sharpness(
            networks.quadratic, jnp.asarray(w), batch, sigma=SIGMA, key=key, num_samples=32,
            adaptive=adaptive, offset=0.1,
        )  # fmt: skip
        return result.value, result.standard_error

    values, errors = jax.jit(jax.vmap(measured))(jax.random.split(jax.random.key(0), 300))
    z = (np.asarray(values) - exact) / np.asarray(errors)
    # 300 seeds: the mean of z within 4 of its standard errors (a t statistic of 31 degrees is a
    # little skewed), and about 5 % beyond 2 (binomial s.e. 1.3 %, skewness of chi-squared samples).
    assert abs(values.mean() - exact) < 4 * values.std() / 300**0.5
    assert 0.02 < (np.abs(z) > 2).mean() < 0.13


def test_antithetic_pairs_cancel_the_gradient():
    batch = {"H": jnp.asarray(H), "g": jnp.asarray(100 * G)}
    options = {"sigma": 0.1, "key": jax.random.key(0), "num_samples": 16}
    paired, single = (
        average_sharpness(networks.quadratic, jnp.zeros(DIM), batch, antithetic=a, **options)
        for a in (True, False)
    )
    assert float(paired.standard_error) < 1e-2 * float(single.standard_error)
    assert (paired.num_evaluations, single.num_evaluations) == (33, 17)
    assert paired.samples.shape == (16,)
    for result in (paired, single):
        samples = np.asarray(result.samples)
        np.testing.assert_allclose(result.value, samples.mean(), rtol=1e-13)
        error = np.sqrt(((samples - samples.mean()) ** 2).sum() / 15 / 16)
        np.testing.assert_allclose(result.standard_error, error, rtol=1e-12)


def test_adaptive_form_ignores_the_rescaling_of_nodes():
    params, batch = networks.relu_params(), networks.data()
    values = [
        [
            float(
                average_sharpness(
                    networks.relu_loss, w, batch, sigma=0.1, key=jax.random.key(0), num_samples=4,
                    adaptive=adaptive,
                ).value
            )
            for w in (params, networks.rescaled(params))
        ]
        for adaptive in (True, False)
    ]  # fmt: skip
    # The same noise in units of the weights, so equal sample by sample; a difference of losses
    # loses about two digits.
    np.testing.assert_allclose(*values[0], rtol=1e-11)
    assert abs(values[1][1] / values[1][0] - 1) > 0.5


def test_one_sample_has_no_standard_error():
    result = average_sharpness(
        networks.relu_loss, networks.relu_params(), networks.data(), sigma=0.1,
        key=jax.random.key(0), num_samples=1,
    )  # fmt: skip
    assert np.isnan(result.standard_error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma must be above 0"),
        ({"sigma": 0.1, "offset": -1.0}, "offset must be at least 0"),
        ({"sigma": 0.1, "num_samples": 0}, "num_samples must be at least 1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        average_sharpness(lambda w, _: w.sum(), jnp.ones(2), None, key=jax.random.key(0), **options)
