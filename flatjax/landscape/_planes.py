"""Planes of parameter space, and what lies off them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.landscape._principal import Principal
from flatjax.landscape._stacks import coarsest, stacked
from flatjax.linalg.vectors import _basis as bases
from flatjax.measures import _objective as objective


@reading.readable
class Plane(NamedTuple):
    """A plane with orthonormal directions.

    Attributes:
      origin: the point at (0, 0), a pytree like the params.
      first: the direction of the first coordinate.
      second: that of the second one.
      coordinates: of the points that the plane was laid through, shape ``(3, 2)``.
    """

    origin: Tree
    first: Tree
    second: Tree
    coordinates: jax.Array

    @property
    def directions(self) -> Tree:
        """Both directions, a pytree whose leaves have a leading axis of 2."""
        return bases.stack([self.first, self.second])


@reading.readable
class Projection(NamedTuple):
    """Where points lie beside a plane.

    Attributes:
      coordinates: of the nearest points of the plane, in units of its directions, shape
        ``(m, num)``.
      distance: how far off the plane the points are, shape ``(m,)``: what a picture hides.
    """

    coordinates: jax.Array
    distance: jax.Array


def plane_through(a: Tree, b: Tree, c: Tree) -> Plane:
    r"""The plane through three points, by Gram-Schmidt in at least float32.

    The origin is $a$, the first direction leads to $b$, and the second from the line through both
    towards $c$: the coordinates are $(0, 0)$, $(\lVert b - a \rVert, 0)$ and $(x, y)$ with $y > 0$.
    With two minima and the middle of a [`bezier`][] between them it is the plane of the curve
    (Garipov et al. 2018).

    Cost: some passes over the params; no gradient.

    Args:
      a: a pytree of floating arrays, the origin.
      b: another point, a pytree like ``a``.
      c: a third one.

    Returns:
      A [`Plane`][].

    Raises:
      TypeError: if the points have different tree structures, or are no floating arrays.
      ValueError: for other shapes, or points on one line, up to their rounding (NaN when traced).

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> plane = flatjax.plane_through(
      ...     jnp.zeros(3), jnp.array([2.0, 0.0, 0.0]), jnp.array([1.0, 0.0, -3.0])
      ... )
      >>> plane.coordinates.tolist()
      [[0.0, 0.0], [2.0, 0.0], [1.0, 3.0]]
      >>> plane.second.tolist()
      [0.0, 0.0, -1.0]

    References:
      Garipov, Izmailov, Podoprikhin, Vetrov and Wilson, "Loss surfaces, mode connectivity, and fast
      ensembling of DNNs", NeurIPS 2018, arXiv:1802.10026.
    """
    eps = coarsest((a, b, c))
    a = objective.widened(a)
    trees.check(b, a, "b")
    trees.check(c, a, "c")
    plane, sizes = _through(a, trees.cast(b, a), trees.cast(c, a))
    if not loops.is_traced(plane):
        width, height = np.asarray(plane.coordinates, np.float64)[[1, 2], [0, 1]]
        if not min(width, height) > eps * float(sizes):
            raise ValueError(
                "the three points lie on one line: the plane needs a third point beside it, such "
                "as another minimum or the middle of a curve."
            )
    return plane


@jax.jit
def _through(a, b, c):
    """The plane, and the sum of the norms of the points."""
    first, width = trees.normalized(bases.subtract(b, a))
    left = bases.subtract(c, a)
    along = jnp.zeros_like(width)
    for _ in range(2):  # Gram-Schmidt twice
        more = trees.vdot(first, left)
        along, left = along + more, trees.axpy(-more, first, left)
    second, height = trees.normalized(left)
    zero = jnp.zeros_like(width)
    coordinates = jnp.stack([zero, zero, width, zero, along, height]).reshape(3, 2)
    return Plane(a, first, second, coordinates), trees.norm(a) + trees.norm(b) + trees.norm(c)


def project(points: Any, plane: Plane | Principal) -> Projection:
    r"""Points projected onto a plane, and their distance off it.

    The nearest point of the plane has the coordinates $c$ that minimise
    $\lVert \theta - o - \sum_k c_k d_k \rVert$, and that minimum is the distance. A picture of a
    trajectory in a plane shows the losses of these nearest points, not those of the trajectory:
    where the distance is not small against the coordinates, the two differ.

    Cost: some passes over the points; no gradient.

    Args:
      points: m points: a pytree like the params whose leaves have a leading axis, or a list of such
        params.
      plane: a [`Plane`][] or [`Principal`][]. Directions that are not orthonormal will do.

    Returns:
      A [`Projection`][].

    Raises:
      TypeError: if the points have another tree structure than the plane's origin.
      ValueError: for other shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> plane = flatjax.plane_through(jnp.zeros(3), *jnp.eye(3)[:2])
      >>> found = flatjax.project([jnp.array([2.0, 3.0, 4.0])], plane)
      >>> found.coordinates.tolist(), found.distance.tolist()
      ([[2.0, 3.0]], [4.0])
    """
    if not hasattr(plane, "origin") or not hasattr(plane, "directions"):
        raise TypeError(f"plane must be a Plane or a Principal, got {type(plane).__name__}.")
    _, points = stacked("points", points, plane.origin)
    return Projection(*_projected(points, plane.origin, plane.directions))


@jax.jit
def _projected(points, origin, directions):
    products = bases.gram(directions, directions)

    def one(point):
        left = bases.subtract(point, origin)
        c = jnp.zeros(len(products), products.dtype)
        for _ in range(2):
            more = jnp.linalg.solve(products, bases.coefficients(directions, left)[0])
            c, left = c + more, bases.subtract(left, bases.combine(directions, more))
        return c, trees.norm(left)

    return jax.lax.map(one, points)
