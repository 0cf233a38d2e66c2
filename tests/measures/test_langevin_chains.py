"""The Langevin step against its formula, and what it samples of a quadratic at a large step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.linalg.vectors import _probes as probes
from flatjax.measures import _langevin_chains as langevin_chains
from flatjax.measures import _objective as objective

pytestmark = pytest.mark.usefixtures("x64")

CURVATURES = np.array([5.0, 0.5, 0.0])


def loss_fn(w, batch):
    return 0.5 * batch["scale"] * (jnp.asarray(CURVATURES) * w**2).sum()


def made(point, scales):
    batch = {"scale": jnp.asarray(scales)}
    return objective.mean_loss(
        loss_fn, jnp.asarray(point), batch, (), weights=None, axis_name=None, precision="highest"
    )


def setting(data_weight, mean_weight, localization, step_size, num_burnin):
    numbers = (data_weight, mean_weight, localization, step_size)
    return langevin_chains.Setting(*map(jnp.float64, numbers), jnp.int32(num_burnin))


def gain(moment):
    """The inverse of the root mean square gradients plus a tenth of a typical one."""
    root = np.sqrt(moment)
    typical = moment.sum() / root.sum()
    return 1.1 * typical / (root + 0.1 * typical)


@pytest.mark.parametrize("adapt", [True, False])
def test_the_formula(adapt, key):
    point, n, burnin = np.array([0.3, -0.2, 0.1]), 40.0, 2
    keys = jax.random.split(key, 2)
    # Batches of two and of four examples, which weigh 2/3 and 4/3 of a mean one.
    ops = [made(point, [1.0, 1.0]), made(point, [1.0, 2.0, 3.0, 4.0])] * 2
    sizes, factors = [2, 4] * 2, [1.0, 2.5] * 2
    options = setting(n, 3.0, 0.7, 0.01, burnin)
    structure = jax.ShapeDtypeStruct((3,), jnp.float64)
    draws = [
        np.stack([probes.probe(k, structure, "normal", number=t) for k in keys]) for t in range(5)
    ]
    chains = langevin_chains.started(keys, structure, adapt=adapt)
    x, moment, g = np.zeros((2, 3)), np.zeros(3), np.ones(3)
    for t, op in enumerate(ops):
        chains, excess = langevin_chains.stepped(op, chains, keys, options)
        share = sizes[t] / 3
        gradients = factors[t] * CURVATURES * (point + x)
        loss = 0.5 * factors[t] * (CURVATURES * (point + x) ** 2).sum(axis=1)
        expected = share * (loss - 0.5 * factors[t] * (CURVATURES * point**2).sum())
        np.testing.assert_allclose(excess, expected, rtol=1e-10, atol=1e-14)
        if adapt and t < burnin:
            moment = 0.99 * moment + 0.01 * (gradients**2).mean(axis=0)
            g = gain(moment)
        force = n * share * gradients + 0.7 * x
        x = x - 0.01 * g * force + np.sqrt(2 * 0.01 * g) * (draws[t] + draws[t + 1]) / 2
        np.testing.assert_allclose(chains.displacement, x, rtol=1e-10, atol=1e-14)
    assert int(chains.count) == 4


def test_gains_are_bounded_and_do_not_know_the_scale_of_the_loss():
    structure = jax.ShapeDtypeStruct((3,), jnp.float64)
    moment = jnp.array([9.0, 1.0, 0.0])
    gains = np.asarray(langevin_chains._gain(moment, structure))
    np.testing.assert_allclose(gains, gain(np.asarray(moment)), rtol=1e-12)
    assert gains[0] <= 1
    np.testing.assert_allclose(gains[2], 11, rtol=1e-12)
    np.testing.assert_allclose(langevin_chains._gain(1e-20 * moment, structure), gains, rtol=1e-12)
    np.testing.assert_array_equal(langevin_chains._gain(0 * moment, structure), 1)


def test_a_quadratic_is_sampled_exactly_at_a_large_step(key):
    # eta (n beta h + gamma) = 1.1: with fresh noise every step the variance would be 2.2 times it.
    chains_, steps = 4000, 40
    op = made(np.zeros(3), [1.0])
    options = setting(20.0, 1.0, 10.0, 0.01, 0)
    keys = jax.random.split(key, chains_)
    chains = langevin_chains.started(keys, op.structure, adapt=False)
    for _ in range(steps):
        chains, _ = langevin_chains.stepped(op, chains, keys, options)
    x = np.asarray(chains.displacement)
    precision = 20.0 * CURVATURES + 10.0
    # What is left of the start, (1 - 0.1)^(2 steps), is a part in 5,000; five standard errors.
    spread = 5 * (2 / chains_) ** 0.5
    np.testing.assert_allclose((x**2).mean(axis=0) * precision, 1, atol=spread)
