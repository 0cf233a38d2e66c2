"""Langevin dynamics against their stationary distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.draws import assert_covariance, draws
from tests.transforms.zoo import flat, loss_fn

XENT = losses.softmax_cross_entropy

CURVATURES, CHAINS = np.array([0.5, 2.0, 8.0]), 4000


def stationary_variance(tx, steps):
    """Variances of many chains on U = a w^2 / 2 after ``steps``, one entry a curvature."""
    a = jnp.asarray(CURVATURES)[:, None]

    @jax.jit
    def run(w):
        def step(carry, _):
            w, state = carry
            updates, state = tx.update(a * w, state, w)
            return (w + updates, state), None

        return jax.lax.scan(step, (w, tx.init(w)), length=steps)[0][0]

    return np.asarray(run(jnp.zeros((3, CHAINS)))).var(axis=1)


def lyapunov(a, eta, temperature, friction):
    """The stationary variance of w under the discrete recursion for (v, w)."""
    keep = 1 - friction
    step = np.array([[keep, -eta * a], [keep, 1 - eta * a]])
    kick = 2 * friction * eta * temperature * np.ones((2, 2))
    return scipy.linalg.solve_discrete_lyapunov(step, kick)[1, 1]


@pytest.mark.parametrize("friction", [None, 0.3])
def test_langevin_samples_its_stationary_distribution(friction):
    tx = ft.langevin(0.05, num_data=1, temperature=0.7, friction=friction)
    variance = stationary_variance(tx, 400)
    expected = [lyapunov(a, 0.05, 0.7, friction or 1.0) for a in CURVATURES]
    # 400 steps are 10 relaxation times of the slowest mode. 4 standard errors of a variance.
    np.testing.assert_allclose(variance, expected, rtol=4 * np.sqrt(2 / CHAINS))
    # exp(-U / T) has the variance T / a; the step adds eta a / 2 of it, overdamped.
    np.testing.assert_allclose(expected, 0.7 / CURVATURES, rtol=0.3)


def test_langevin_potential_is_data_plus_prior(net):
    params, batch = net
    g = jax.grad(loss_fn)(params, batch)
    tx = ft.langevin(0.1, num_data=50, temperature=0.0, prior_precision=0.3)
    out, _ = tx.update(g, tx.init(params), params)
    np.testing.assert_allclose(flat(out), -0.1 * (50 * flat(g) + 0.3 * flat(params)), rtol=1e-12)


def test_preconditioned_langevin(net):
    params, batch = net
    g = jax.grad(loss_fn)(params, batch)
    options = {"num_data": 50, "preconditioner": "rms", "decay": 0.9, "eps": 0.01}
    cold = ft.langevin(0.1, temperature=0.0, **options)
    out, state = cold.update(g, cold.init(params), params)
    out, _ = cold.update(g, state, params)
    gain = 1 / (np.sqrt((0.1 + 0.09) * flat(g) ** 2) + 0.01)
    np.testing.assert_allclose(flat(out), -0.1 * 50 * gain * flat(g), rtol=1e-10)
    # At a zero gradient only the noise is left: 2 eta T / eps.
    samples = draws(lambda s: ft.langevin(0.1, seed=s, **options), params, batch)
    assert_covariance(samples, 2 * 0.1 / 0.01 * np.eye(samples.shape[1]))
