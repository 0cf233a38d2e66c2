"""Planes through three points, and the distance off them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.landscape import Plane, plane_through, project
from flatjax.linalg.vectors import _basis as bases


def points(rng, count, dtype=jnp.float32):
    rows = [rng.normal(size=(count, *shape)) for shape in ((4, 3), (5,))]
    stack = {"w": jnp.asarray(rows[0], dtype), "b": jnp.asarray(rows[1], dtype)}
    return bases.unstack(stack)


def flat(tree):
    return np.concatenate([np.asarray(a, np.float64).ravel() for a in jax.tree.leaves(tree)])


def test_coordinates_and_directions_are_those_of_the_points(dtype):
    a, b, c = points(np.random.default_rng(0), 3, dtype)
    plane = plane_through(a, b, c)
    eps = float(jnp.finfo(dtype).eps)
    u, v = flat(plane.first), flat(plane.second)
    # Each some roundings of sums over 17 numbers of order one.
    np.testing.assert_allclose([u @ u, v @ v, u @ v], [1, 1, 0], atol=20 * eps)
    for point, (x, y) in zip((a, b, c), np.asarray(plane.coordinates, np.float64), strict=True):
        np.testing.assert_allclose(flat(plane.origin) + x * u + y * v, flat(point), atol=50 * eps)
    wanted = [[0, 0], [np.linalg.norm(flat(b) - flat(a)), 0]]
    np.testing.assert_allclose(plane.coordinates[:2], wanted, rtol=20 * eps)
    assert plane.coordinates[2, 1] > 0


def test_nearly_collinear_points_have_orthogonal_directions():
    """Once is not enough: of a third point 1e-4 off the line one pass leaves 1e-3 of the first."""
    rng = np.random.default_rng(1)
    a, b, off = (jnp.asarray(rng.normal(size=10_000), jnp.float32) for _ in range(3))
    plane = plane_through(a, b, a + 0.5 * (b - a) + 1e-4 * off)
    assert abs(flat(plane.first) @ flat(plane.second)) < 1e-6
    np.testing.assert_allclose(flat(plane.second) @ flat(plane.second), 1, rtol=1e-5)


@pytest.mark.parametrize("low", [jnp.float32, jnp.bfloat16])
def test_points_on_one_line_are_an_error(low):
    a, b, _ = points(np.random.default_rng(2), 3, low)
    middle = jax.tree.map(lambda x, y: (x + y) / 2, a, b)  # rounded to the points' own dtype
    for third in (middle, a, b):
        with pytest.raises(ValueError, match="the three points lie on one line"):
            plane_through(a, b, third)
    with pytest.raises(ValueError, match="the three points lie on one line"):
        plane_through(a, a, b)
    with pytest.raises(TypeError, match="c must have the tree structure"):
        plane_through(a, b, flat(a))


def test_inside_jit():
    a, b, c = points(np.random.default_rng(3), 3)
    for x, y in zip(
        jax.tree.leaves(jax.jit(plane_through)(a, b, c)),
        jax.tree.leaves(plane_through(a, b, c)),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_points_of_the_plane_and_their_distance_off_it(dtype):
    rng = np.random.default_rng(4)
    plane = plane_through(*points(rng, 3, dtype))
    u, v, o = flat(plane.first), flat(plane.second), flat(plane.origin)
    off = flat(points(rng, 1, dtype)[0])
    off -= (off @ u) * u + (off @ v) * v

    def unravel(x):
        return {"b": jnp.asarray(x[:5], dtype), "w": jnp.asarray(x[5:].reshape(4, 3), dtype)}

    inside, outside = unravel(o + 2 * u - 3 * v), unravel(o + 2 * u - 3 * v + off)
    found = project([inside, outside], plane)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(found.coordinates, [[2, -3], [2, -3]], atol=100 * eps)
    np.testing.assert_allclose(found.distance, [0, np.linalg.norm(off)], atol=100 * eps)
    stacked = project(bases.stack([inside, outside]), plane)
    np.testing.assert_array_equal(stacked.distance, found.distance)


def test_directions_that_are_not_orthonormal():
    first, second = jnp.array([2.0, 0.0, 0.0]), jnp.array([1.0, 1.0, 0.0])
    plane = Plane(jnp.zeros(3), first, second, None)
    found = project([3 * first - 2 * second + jnp.array([0.0, 0.0, 7.0])], plane)
    np.testing.assert_allclose(found.coordinates, [[3, -2]], rtol=1e-6)
    np.testing.assert_allclose(found.distance, [7], rtol=1e-6)


def test_params_that_are_lists():
    a, b, c = ([p["w"], p["b"]] for p in points(np.random.default_rng(5), 3))
    plane = plane_through(a, b, c)
    one = project([a, b, c], plane)
    np.testing.assert_allclose(one.coordinates, plane.coordinates, atol=1e-5)
    np.testing.assert_array_equal(project(bases.stack([a, b, c]), plane)[0], one.coordinates)


def test_bad_points():
    a, b, c = points(np.random.default_rng(6), 3)
    plane = plane_through(a, b, c)
    with pytest.raises(ValueError, match="points is empty"):
        project([], plane)
    with pytest.raises(ValueError, match=r"each of points\['b'\] has shape"):
        project(a, plane)
    with pytest.raises(ValueError, match="the leaves of points must share their leading axis"):
        project({"w": jnp.ones((2, 4, 3)), "b": jnp.ones((3, 5))}, plane)
    with pytest.raises(TypeError, match="plane must be a Plane or a Principal, got dict"):
        project([a], a)
