"""Curves and simplexes: points, velocities, lengths and volumes in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import flatjax
from flatjax.linalg.vectors import _basis as bases


def controls(count, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"w": jnp.asarray(rng.normal(size=(2, 3)), dtype), "b": jnp.asarray(rng.normal(), dtype)}
        for _ in range(count)
    ]


def flat(tree):
    return np.concatenate([np.asarray(a, np.float64).ravel() for a in jax.tree.leaves(tree)])


def bernstein(n, t):
    return np.array([math.comb(n, j) * t**j * (1 - t) ** (n - j) for j in range(n + 1)])


def test_a_bezier_curve(x64):
    points = controls(4, jnp.float64)
    curve = flatjax.bezier(points)
    rows = np.stack([flat(p) for p in points])
    eps = float(jnp.finfo(jnp.float64).eps)
    for t in (0.0, 0.3, 1.0):
        # A few roundings of numbers of order one.
        np.testing.assert_allclose(flat(curve(t)), bernstein(3, t) @ rows, atol=10 * eps)
        velocity = 3 * bernstein(2, t) @ np.diff(rows, axis=0)
        np.testing.assert_allclose(flat(curve.velocity(t)), velocity, atol=50 * eps)
    # The ends are the networks given, bit by bit.
    np.testing.assert_array_equal(flat(curve(0)), rows[0])
    np.testing.assert_array_equal(flat(curve(1)), rows[3])
    speed = lambda t: np.linalg.norm(3 * bernstein(2, t) @ np.diff(rows, axis=0))  # noqa: E731
    np.testing.assert_allclose(curve.length(), quad(speed, 0, 1)[0], rtol=1e-12)
    np.testing.assert_allclose(curve.length(0.4), quad(speed, 0, 0.4)[0], rtol=1e-12)


def test_the_velocity_is_the_derivative_of_the_point(x64):
    for curve in (
        flatjax.bezier(controls(4, jnp.float64)),
        flatjax.chain(controls(4, jnp.float64)),
    ):
        exact = jax.jacfwd(curve)(0.6)
        np.testing.assert_allclose(flat(curve.velocity(0.6)), flat(exact), atol=1e-13)


def test_a_chain():
    points = controls(4)
    path = flatjax.chain(points)
    rows = np.stack([flat(p) for p in points])
    eps = float(jnp.finfo(jnp.float32).eps)
    for t in (0, 1 / 3, 2 / 3, 1):
        np.testing.assert_allclose(flat(path(t)), rows[round(3 * t)], atol=20 * eps)
    np.testing.assert_allclose(flat(path(0.5)), (rows[1] + rows[2]) / 2, atol=20 * eps)
    np.testing.assert_allclose(flat(path.velocity(1.0)), 3 * (rows[3] - rows[2]), atol=50 * eps)
    sides = np.linalg.norm(np.diff(rows, axis=0), axis=1)
    np.testing.assert_allclose(path.length(), sides.sum(), rtol=20 * eps)
    np.testing.assert_allclose(path.length(0.5), sides[0] + sides[1] / 2, rtol=20 * eps)


def test_what_is_not_given_lies_between():
    a, b = controls(2)
    chord = flatjax.bezier([a, None, b])
    for t in (0.25, 0.5):
        np.testing.assert_allclose(flat(chord(t)), (1 - t) * flat(a) + t * flat(b), atol=1e-6)
    corners = flatjax.chain([a, None, None, b]).controls
    rows = np.stack([flat(p) for p in bases.unstack(corners)])
    np.testing.assert_allclose(rows[1], (2 * flat(a) + flat(b)) / 3, atol=1e-6)
    np.testing.assert_allclose(rows[2], (flat(a) + 2 * flat(b)) / 3, atol=1e-6)
    triangle = flatjax.simplex([a, b, None])
    assert triangle.moves == (False, False, True)
    np.testing.assert_allclose(
        flat(triangle(jnp.array([0.0, 0.0, 1.0]))), (flat(a) + flat(b)) / 2, atol=1e-6
    )


def test_which_control_points_move():
    points = controls(4)
    curve = flatjax.bezier(points)
    assert curve.moves == (False, True, True, False)
    other = flatjax.chain(points, free=[3, 0])
    assert other.moves == (True, False, False, True)
    for made in (curve, other):  # in their order, however they are held
        rows = np.stack([flat(p) for p in bases.unstack(made.controls)])
        np.testing.assert_array_equal(rows, np.stack([flat(p) for p in points]))
    doubled = other.with_free(jax.tree.map(lambda a: 2 * a, other.free))
    np.testing.assert_array_equal(flat(doubled(1.0)), 2 * flat(points[3]))
    straight = flatjax.bezier(points[:2])
    assert straight.free is None
    np.testing.assert_array_equal(flat(straight(1.0)), flat(points[1]))


def test_a_curve_is_a_pytree_that_passes_through_jit():
    curve = flatjax.bezier(controls(3))
    np.testing.assert_allclose(
        flat(jax.jit(lambda c, t: c(t))(curve, 0.2)), flat(curve(0.2)), atol=1e-6
    )
    np.testing.assert_allclose(jax.jit(lambda c: c.length())(curve), curve.length(), rtol=1e-6)


def test_points_of_low_precision_are_held_in_float32():
    curve = flatjax.bezier(controls(3, jnp.bfloat16))
    assert {a.dtype for a in jax.tree.leaves(curve(0.3))} == {jnp.dtype("float32")}


def test_a_simplex():
    points = controls(4)
    body = flatjax.simplex(points, free=[1])
    rows = np.stack([flat(p) for p in points])
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(flat(body(weights)), weights @ rows, atol=1e-6)
    edges = rows[1:] - rows[0]
    wanted = 0.5 * np.linalg.slogdet(edges @ edges.T)[1] - math.log(6)
    np.testing.assert_allclose(body.log_volume(), wanted, rtol=1e-5)
    drawn = np.asarray(body.sample(jax.random.key(0), 2000, True))
    np.testing.assert_allclose(drawn.sum(axis=1), 1, rtol=1e-6)
    # Uniform: means 1/4 and variances 3/80, each within five standard errors of 2,000 draws.
    np.testing.assert_allclose(drawn.mean(axis=0), 0.25, atol=5 * (3 / 80 / 2000) ** 0.5)
    np.testing.assert_allclose(drawn.var(axis=0), 3 / 80, rtol=0.15)
    for call in (lambda: body.velocity(0.5), body.length):
        with pytest.raises(TypeError, match="a simplex is no path"):
            call()
    with pytest.raises(ValueError, match="a point of a simplex has 4 weights"):
        body(0.5)


def test_bad_input():
    a, b, c = controls(3)
    with pytest.raises(ValueError, match="controls must be a list of at least two points"):
        flatjax.bezier([a])
    with pytest.raises(ValueError, match="needs a point at both ends"):
        flatjax.bezier([a, b, None])
    with pytest.raises(ValueError, match="vertices needs a point"):
        flatjax.simplex([None, None])
    with pytest.raises(TypeError, match=r"controls\[1\] must have the tree structure"):
        flatjax.chain([a, b["w"], c])
    with pytest.raises(ValueError, match=r"free must hold indices of the 3 controls, got \[3\]"):
        flatjax.chain([a, b, c], free=[3])
