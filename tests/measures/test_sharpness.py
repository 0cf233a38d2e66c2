"""Sharpness against dense eigenvalues and the threshold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax.measures import sharpness
from flatjax.optimizers._stability_threshold import stability_threshold
from tests.measures import networks

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module")
def hessian():
    with jax.enable_x64(True):
        op = flatjax.hessian(networks.relu_loss, networks.relu_params(), networks.data())
        return op, np.asarray(op.to_dense())


def test_is_the_largest_eigenvalue_within_its_residual(hessian):
    H, matrix = hessian
    result = sharpness(H, key=jax.random.key(0), tol=1e-6)
    top = np.linalg.eigvalsh(matrix)[-1]
    assert bool(result.converged)
    assert abs(float(result.value) - top) <= float(result.residual_norms)
    u = jax.flatten_util.ravel_pytree(result.vector)[0]
    np.testing.assert_allclose(matrix @ u, top * u, atol=2e-6 * top)
    assert np.isnan(result.ratio)
    warm = sharpness(H, v0=result.vector, tol=1e-6)
    np.testing.assert_allclose(warm.value, top, rtol=1e-6)


def test_a_start_that_is_blind_to_the_top_is_not_believed():
    """No product leads out of the space that a symmetry keeps from it: 4 has no residual there."""
    d = jnp.asarray(np.r_[9.0, 4.0, np.linspace(0, 1, 60)])
    op = flatjax.operators.as_operator(lambda v: d * v, d)
    blind = sharpness(op, v0=jnp.ones(62).at[0].set(0.0))
    np.testing.assert_allclose(blind.value, 9.0, rtol=1e-6)  # the square of the tolerance


def test_ratio_is_one_where_gradient_descent_turns_unstable():
    curvature = jnp.asarray([5.0, 1.0])
    loss = lambda w: 0.5 * (curvature * w**2).sum()  # noqa: E731
    op = flatjax.hessian(lambda w, _: loss(w), jnp.ones(2), None)
    for eta, stable in ((0.39, True), (0.41, False)):
        threshold = stability_threshold("gd", eta)
        ratio = float(sharpness(op, key=jax.random.key(0), threshold=threshold).ratio)
        step = jax.jit(lambda _, w, eta=eta: w - eta * jax.grad(loss)(w))
        w = jax.lax.fori_loop(0, 200, step, jnp.ones(2))
        assert (ratio < 1) == stable == bool(loss(w) < loss(jnp.ones(2)))


def test_same_under_jit(hessian):
    H, matrix = hessian
    value = jax.jit(lambda op, key: sharpness(op, key=key).value)(H, jax.random.key(0))
    # A fixed number of steps, more than the top eigenvalue needs.
    np.testing.assert_allclose(value, np.linalg.eigvalsh(matrix)[-1], rtol=1e-6)


def test_bad_arguments(hessian):
    with pytest.raises(ValueError, match="key"):
        sharpness(hessian[0])
