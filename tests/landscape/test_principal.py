"""Principal directions from the Gram matrix against a dense decomposition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.landscape import principal_directions, project
from flatjax.linalg.vectors import _basis as bases


def trajectory(dtype, scales, seed=0, count=8):
    """Checkpoints that move by these amounts in orthogonal directions, far from zero."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(30, len(scales))))[0].T
    rows = 1 + (rng.normal(size=(count, len(scales))) * scales) @ basis
    return {
        "w": jnp.asarray(rows[:, :24].reshape(-1, 4, 6), dtype),
        "b": jnp.asarray(rows[:, 24:], dtype),
    }


def dense(points, origin):
    rows = np.concatenate(
        [np.asarray(points["b"], np.float64), np.asarray(points["w"], np.float64).reshape(-1, 24)],
        1,
    )
    return rows - rows[origin]


@pytest.mark.parametrize("origin", [-1, 2])
def test_against_a_dense_decomposition(x64, origin):
    points = trajectory(jnp.float64, [3.0, 1.0, 0.3, 0.1])
    found = principal_directions(points, num=3, origin=origin)
    rows = dense(points, origin)
    _, values, directions = np.linalg.svd(rows, full_matrices=False)
    eps = float(jnp.finfo(jnp.float64).eps)
    np.testing.assert_allclose(found.explained, values[:3] ** 2 / np.sum(values**2), rtol=1e3 * eps)
    got = np.concatenate([found.directions["b"], found.directions["w"].reshape(3, -1)], 1)
    # Rounding over the gap between the squared values, 1e2 to the smallest.
    np.testing.assert_allclose(np.abs(np.sum(got * directions[:3], 1)), 1, atol=1e3 * eps)
    np.testing.assert_allclose(got @ got.T, np.eye(3), atol=20 * eps)
    np.testing.assert_allclose(found.coordinates, rows @ got.T, atol=1e2 * eps)
    coordinates = np.asarray(found.coordinates)
    largest = np.abs(coordinates).argmax(0)
    assert (coordinates[largest, range(3)] > 0).all()
    assert not coordinates[origin].any()
    np.testing.assert_array_equal(found.origin["b"], points["b"][origin])


def test_a_second_direction_that_explains_a_billionth():
    """The Gram matrix alone, of squares, has no digit of it in float32."""
    points = trajectory(jnp.float32, [1000.0, 0.03])
    found = principal_directions(points)
    rows = dense(points, -1)
    values, directions = np.linalg.svd(rows, full_matrices=False)[1:]
    assert values[1] ** 2 / values[0] ** 2 < 1e-8
    got = np.concatenate([found.directions["b"], found.directions["w"].reshape(2, -1)], 1)
    # What the points themselves are rounded to, 1e-5 at 100, over 0.03.
    assert abs(np.sum(got[1] * directions[1])) > 0.99
    assert abs(np.sum(got[0] * got[1])) < 1e-6
    np.testing.assert_allclose(
        found.explained[1] / found.explained[0], (values[1] / values[0]) ** 2, rtol=0.05
    )


def test_the_distance_off_the_plane_is_what_is_not_explained(x64):
    points = trajectory(jnp.float64, [3.0, 1.0, 0.3])
    found = principal_directions(bases.unstack(points))
    off = project(points, found)
    np.testing.assert_allclose(off.coordinates, found.coordinates, atol=1e-12)
    total = np.square(dense(points, -1)).sum()
    left = float(jnp.square(off.distance).sum())
    np.testing.assert_allclose(left / total, 1 - float(found.explained.sum()), rtol=1e-9)


def test_bad_input():
    points = trajectory(jnp.float32, [3.0, 1.0])
    with pytest.raises(ValueError, match="8 checkpoints span 2 directions beside the origin"):
        principal_directions(points, num=3)
    with pytest.raises(ValueError, match="1 checkpoints span 0 directions"):
        principal_directions([jnp.ones(3)])
    with pytest.raises(ValueError, match="origin must be the index of one of 8 checkpoints, got 8"):
        principal_directions(points, origin=8)
    with pytest.raises(ValueError, match="numbers that are not finite"):
        principal_directions([jnp.ones(3), jnp.full(3, jnp.nan), jnp.zeros(3)])
    with pytest.raises(TypeError, match=r"checkpoints\[1\] must have the tree structure"):
        principal_directions([{"w": jnp.ones(3)}, jnp.ones(3)])
    with pytest.raises(TypeError, match="call it outside jit"):
        jax.jit(principal_directions)(points)
