"""Critical sharpness against the parabola that it fits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.measures import critical_sharpness
from tests.measures import networks

pytestmark = pytest.mark.usefixtures("x64")

DIM = 6
H = networks.spd(DIM)
W = np.linspace(-1.0, 2.0, DIM)
G = H @ W


def measured(update, **kwargs):
    batch = {"H": jnp.asarray(H), "g": jnp.zeros(DIM)}
    return critical_sharpness(
        networks.quadratic, jnp.asarray(W), batch, update=jnp.asarray(update), **kwargs
    )


def test_gradient_descent_gives_the_rayleigh_quotient_of_the_gradient():
    result = measured(-G)
    # Half the width of the bracket.
    np.testing.assert_allclose(result.value, G @ H @ G / (G @ G), rtol=0.5e-2)
    assert bool(result.converged)
    assert float(result.lower) < 2 / (G @ H @ G / (G @ G)) <= float(result.upper)


def test_any_update_gives_the_curvature_over_the_slope():
    u = -G + 0.3 * np.random.default_rng(0).normal(size=DIM)
    result = measured(u, tol=1e-6, max_trials=60)
    np.testing.assert_allclose(result.value, u @ H @ u / -(u @ G), rtol=1e-6)


def test_factor_moves_the_level():
    # L(w + a u) = 1.2 L(w), a quadratic equation in a.
    slope, curvature, loss = -(G @ G), G @ H @ G, 0.5 * W @ H @ W
    root = max(np.roots([0.5 * curvature, slope, -0.2 * loss]))
    result = measured(-G, factor=1.2, tol=1e-6, max_trials=60)
    np.testing.assert_allclose(result.step, root, rtol=1e-6)


def test_step_times_update_does_not_depend_on_the_scale_of_the_update():
    small, large = (measured(-c * G, initial_step=0.3 / c, tol=1e-3) for c in (1.0, 1024.0))
    np.testing.assert_allclose(1024 * large.step, small.step, rtol=1e-14)  # powers of two
    np.testing.assert_allclose(large.value, 1024 * small.value, rtol=1e-14)


def test_fewer_than_ten_forward_passes_from_a_start_within_a_factor_of_two():
    step = float(measured(-G).step)
    for ratio in (0.6, 1.0, 1.9):
        assert int(measured(-G, initial_step=ratio * step).num_evaluations) <= 10


def test_same_under_jit():
    result = jax.jit(lambda u: measured(u))(-G)
    # The loops stop where the eager search stops, at the same bracket.
    eager = measured(-G)
    np.testing.assert_allclose(result.step, eager.step, rtol=1e-14)
    assert int(result.num_evaluations) == int(eager.num_evaluations)


def test_uphill_does_not_converge():
    result = measured(G)
    assert not bool(result.converged)
    assert float(result.lower) == 0.0
    assert float(result.value) > 1e6


def test_a_loss_that_is_no_number_has_risen():
    def loss_fn(w, _):
        return jnp.where(w < 1, -w, jnp.nan).sum()

    result = critical_sharpness(loss_fn, jnp.zeros(1), None, update=jnp.ones(1), tol=1e-4)
    np.testing.assert_allclose(result.step, 1.0, rtol=1e-4)


def test_bad_arguments():
    for options, message in [
        ({"initial_step": 0.0}, "initial_step must be above 0"),
        ({"tol": 0.0}, "tol must be above 0"),
        ({"factor": -1.0}, "factor must be above 0"),
        ({"max_trials": 0}, "max_trials must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            measured(-G, **options)
    with pytest.raises(ValueError, match="update has shape"):
        measured(np.ones(3))
