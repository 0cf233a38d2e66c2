"""The loss along a curve: means by t and by length, barrier, metrics, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax import parallel
from flatjax.paths import loss_on_curve

# From (0, 0) by (3, 0) to (3, 1): three quarters of the length in the first half of t.
CORNER = [jnp.array([0.0, 0.0]), jnp.array([3.0, 0.0]), jnp.array([3.0, 1.0])]


def test_means_by_t_and_by_length():
    path = flatjax.chain(CORNER)
    t = np.linspace(0, 1, 5)
    found = loss_on_curve(lambda w, _: w[0] + 10 * w[1], path, None, positions=t)
    np.testing.assert_allclose(found.losses, [0, 1.5, 3, 8, 13], rtol=1e-6)
    np.testing.assert_allclose(found.lengths, [0, 1.5, 3, 3.5, 4], rtol=1e-6)
    assert float(found.maximum) == 13
    # Linear from corner to corner, so the trapezoidal rule is exact: 3/2 and 8 with the weights
    # 1/2 and 1/2 of t, 3/4 and 1/4 of the length.
    np.testing.assert_allclose(found.mean, (1.5 + 8) / 2, rtol=1e-6)
    np.testing.assert_allclose(found.mean_by_length, (3 * 1.5 + 8) / 4, rtol=1e-6)
    # The chord is 13 t, above the path.
    assert float(found.barrier) == 0
    up = loss_on_curve(lambda w, _: -w[0] - 10 * w[1], path, None, positions=t)
    np.testing.assert_allclose(up.barrier, 13 / 2 - 3, rtol=1e-6)


def test_part_of_a_curve_metrics_and_state():
    curve = flatjax.bezier([CORNER[0], None, CORNER[1]])
    loss = lambda w, _, scale: {"a": scale * w[0], "b": (w[0] > 1)}  # noqa: E731
    found = loss_on_curve(loss, curve, None, positions=[0.2, 0.4], args_fn=lambda w: (1 + w[0],))
    x = 3 * np.array([0.2, 0.4])
    np.testing.assert_allclose(found.losses["a"], x * (1 + x), rtol=1e-6)
    np.testing.assert_array_equal(found.losses["b"], [0, 1])
    np.testing.assert_allclose(found.lengths, x, rtol=1e-6)
    np.testing.assert_allclose(found.mean["a"], np.mean(x * (1 + x)), rtol=1e-6)


def test_what_is_not_finite_stays_so_and_devices_share_the_points():
    curve = flatjax.bezier([jnp.array([-1.0]), None, jnp.array([1.0])])
    loss = lambda w, _: jnp.log(w[0])  # noqa: E731
    found = loss_on_curve(loss, curve, None, positions=[0, 0.5, 1])
    np.testing.assert_array_equal(found.losses, [np.nan, -np.inf, 0])
    assert np.isnan(found.maximum)
    there = parallel.replicate(curve, parallel.make_mesh(4))
    again = loss_on_curve(loss, there, None, positions=[0, 0.5, 1])
    np.testing.assert_array_equal(again.losses, found.losses)


def test_inside_jit():
    run = lambda t: loss_on_curve(  # noqa: E731
        lambda w, _: jnp.square(w).sum(), flatjax.bezier(CORNER), None, positions=t
    )
    t = jnp.array([0.0, 0.5, 1.0])
    for a, b in zip(jax.tree.leaves(jax.jit(run)(t)), jax.tree.leaves(run(t)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_bad_input():
    loss, curve = lambda w, _: w.sum(), flatjax.bezier(CORNER)
    with pytest.raises(ValueError, match="positions must be ascending"):
        loss_on_curve(loss, curve, None, positions=[0.5, 0.2])
    with pytest.raises(ValueError, match="positions must be ascending, at least two"):
        loss_on_curve(loss, curve, None, positions=[0.5])
    with pytest.raises(ValueError, match=r"positions must lie in \[0, 1\]"):
        loss_on_curve(loss, curve, None, positions=[0.5, 1.5])
    with pytest.raises(TypeError, match="a simplex is no path"):
        loss_on_curve(loss, flatjax.simplex(CORNER), None, positions=[0, 1])
    with pytest.raises(TypeError, match="curve must be one of"):
        loss_on_curve(loss, CORNER[0], None, positions=[0, 1])
