"""Noise of a chosen covariance, and Langevin dynamics, against their distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.flatten_util import ravel_pytree

import flatjax.transforms as ft
from flatjax import losses
from flatjax.transforms import _prng as prng
from tests.transforms.zoo import (
    CLASSES,
    LENGTHS,
    N,
    assert_close,
    flat,
    loss_fn,
    model,
    network,
    per_example,
    sequence_means,
    sequences,
    token_mean,
)

SEEDS = 4000


@pytest.fixture(scope="module")
def net():
    with jax.enable_x64(True):
        params, batch = network(jnp.float64)
        w, unravel = ravel_pytree(params)
        each = jax.jit(jax.jacrev(lambda w: per_example(unravel(w), batch)))(w)
        yield params, batch, np.asarray(each)


def draws(make, params, batch):
    """The outgoing update on a zero gradient, over seeds, raveled."""
    zero = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    @jax.vmap
    def draw(seed):
        tx = make(seed)
        return ravel_pytree(tx.update(zero, tx.init(params), params, batch=batch)[0])[0]

    return np.asarray(draw(jnp.arange(SEEDS)))


def assert_covariance(samples, covariance):
    """The variance along five directions, each within four standard errors, and a zero mean."""
    rng = np.random.default_rng(0)
    for u in rng.normal(size=(5, samples.shape[1])):
        expected, along = u @ covariance @ u, samples @ u
        # The sample variance of a Gaussian has a relative standard error of sqrt(2 / n).
        assert along.var() == pytest.approx(expected, rel=4 * np.sqrt(2 / SEEDS))
        assert abs(along.mean()) < 4 * np.sqrt(expected / SEEDS)


def centred(each):
    return (each - each.mean(axis=0)).T @ (each - each.mean(axis=0)) / len(each)


@pytest.mark.parametrize("loss", [per_example, loss_fn])
def test_true_gradient_noise(net, loss):
    params, batch, each = net
    make = lambda s: ft.gradient_noise(0.5, covariance="gradient", loss_fn=loss, seed=s)  # noqa: E731
    assert_covariance(draws(make, params, batch), 0.25 * centred(each))


def test_diagonal_of_the_true_noise(net):
    params, batch, each = net
    make = lambda s: ft.gradient_noise(  # noqa: E731
        0.5, covariance="diagonal", loss_fn=per_example, seed=s
    )
    assert_covariance(draws(make, params, batch), 0.25 * np.diag(np.diag(centred(each))))


@pytest.mark.parametrize("loss", [token_mean, sequence_means])
def test_noise_of_a_loss_with_weights(loss, x64):
    # Exact, from the draws themselves: the covariance is that of the means of the sequences.
    params, batch = sequences(jnp.float64)
    w, unravel = ravel_pytree(params)
    kept = np.flatnonzero(LENGTHS)
    p = np.asarray(LENGTHS)[kept] / sum(LENGTHS)

    def means(w):
        out = sequence_means(unravel(w), tuple(a[kept] for a in batch))
        return out.total / out.weight

    each = np.asarray(jax.jit(jax.jacrev(means))(w))
    each = each - p @ each
    key = jax.random.fold_in(jax.random.key(0), 0)
    zero = jax.tree.map(jnp.zeros_like, params)

    def drawn(covariance):
        tx = ft.gradient_noise(0.5, covariance=covariance, loss_fn=loss, seed=0)
        return jax.jit(lambda: tx.update(zero, tx.init(params), params, batch=batch)[0])()

    z = np.array([jax.random.normal(jax.random.fold_in(key, i)) for i in kept])
    assert_close(drawn("gradient"), 0.5 * (np.sqrt(p) * z) @ each)
    normal = flat(prng.normal_like(key, params))
    assert_close(drawn("diagonal"), 0.5 * np.sqrt(p @ each**2) * normal)


def test_isotropic_and_given_variances(net):
    params, batch, _ = net
    size = flat(params).size
    samples = draws(lambda s: ft.gradient_noise(0.5, seed=s), params, batch)
    assert_covariance(samples, 0.25 * np.eye(size))
    variances = {"first": 4.0, "last": {"w": jnp.ones((4, CLASSES))}}
    samples = draws(lambda s: ft.gradient_noise(0.5, covariance=variances, seed=s), params, batch)
    expected = np.concatenate([np.full(size - 12, 4.0), np.ones(12)])
    assert_covariance(samples, 0.25 * np.diag(expected))


def test_noise_is_fresh_every_step_and_reproducible(net):
    params, _, _ = net
    tx = ft.gradient_noise(1.0, seed=3)
    zero = jax.tree.map(jnp.zeros_like, params)
    state = tx.init(params)
    first, state = tx.update(zero, state, params)
    second, _ = tx.update(zero, state, params)
    again, _ = tx.update(zero, tx.init(params), params)
    assert not np.array_equal(flat(first), flat(second))
    np.testing.assert_array_equal(flat(first), flat(again))


def test_label_noise_of_a_squared_error(net):
    params, batch, _ = net
    targets = jnp.zeros((N, CLASSES))
    make = lambda s: ft.label_noise(model, losses.squared_error, scale=0.5, seed=s)  # noqa: E731
    samples = draws(make, params, (batch[0], targets))
    w, unravel = ravel_pytree(params)
    jac = np.asarray(jax.jacrev(lambda w: model(unravel(w), batch[0]))(w)).reshape(-1, len(w))
    # Noise -s/n J^T xi: proportional to the Gauss-Newton matrix.
    assert_covariance(samples, 0.25 / N**2 * jac.T @ jac)


def test_flipped_labels(net):
    params, batch, _ = net

    def make(p):
        def at(seed):
            xent = losses.softmax_cross_entropy
            return ft.label_noise(model, xent, flip_probability=p, seed=seed)

        return at

    # Nothing but the rounding of two gradients of the same labels.
    rounding = np.finfo(float).eps * np.abs(flat(jax.grad(loss_fn)(params, batch))).max()
    assert np.abs(draws(make(0.0), params, batch)).max() < rounding
    samples = draws(make(0.5), params, batch)
    uniform = (batch[0], jnp.full((N, CLASSES), 1 / CLASSES))
    noisy, clean = (flat(jax.grad(loss_fn)(params, b)) for b in (uniform, batch))
    expected = 0.5 * (noisy - clean)
    error = samples.std(axis=0) / np.sqrt(SEEDS)
    assert (np.abs(samples.mean(axis=0) - expected) < 4.5 * error).all()


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
    params, batch, _ = net
    g = jax.grad(loss_fn)(params, batch)
    tx = ft.langevin(0.1, num_data=50, temperature=0.0, prior_precision=0.3)
    out, _ = tx.update(g, tx.init(params), params)
    np.testing.assert_allclose(flat(out), -0.1 * (50 * flat(g) + 0.3 * flat(params)), rtol=1e-12)


def test_preconditioned_langevin(net):
    params, batch, _ = net
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
