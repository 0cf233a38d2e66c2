"""The principal directions of a trajectory, from the Gram matrix of its checkpoints."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.landscape._stacks import stacked
from flatjax.linalg.vectors import _basis as bases


@reading.readable
class Principal(NamedTuple):
    """The principal directions of a trajectory.

    Attributes:
      origin: the checkpoint from which the others are seen, a pytree like the params.
      directions: orthonormal, a pytree whose leaves have a leading axis ``num``; each with the sign
        that makes its largest coordinate positive.
      coordinates: of the checkpoints, shape ``(T, num)``.
      explained: of each direction its share of the summed squared distances from the origin, shape
        ``(num,)``.
    """

    origin: Tree
    directions: Tree
    coordinates: jax.Array
    explained: jax.Array


def principal_directions(checkpoints: Any, *, num: int = 2, origin: int = -1) -> Principal:
    r"""The directions in which a trajectory moves most, seen from one of its checkpoints.

    The principal components of $\theta_t - \theta_o$ (Li et al. 2018, section 7), from the Gram
    matrix of these T differences and never a decomposition of a (T, P) matrix. One direction after
    the other is taken out of the differences, so that the second one is right even if the first
    explains nearly everything. A trajectory looks smooth and curved in this plane even if it is a
    random walk (Antognini and Sohl-Dickstein 2018): look at ``explained``, and at the distance off
    the plane, see [`project`][].

    Cost: ``num`` Gram matrices, ``num * T**2 * P`` multiplications, decomposed in float64 on the
    host; no gradient. Memory of a second copy of the checkpoints.

    Args:
      checkpoints: T points: a pytree like the params whose leaves have a leading axis, or a list of
        such params. (A list is always taken for one of checkpoints.)
      num: how many directions.
      origin: the index of the checkpoint that is the origin; by default the last.

    Returns:
      A [`Principal`][].

    Raises:
      TypeError: when traced; call it outside ``jit``.
      ValueError: for checkpoints of different shapes, an origin that is none of them, checkpoints
        that span fewer directions, or numbers that are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> path = [jnp.array([4.0, 1.0, 0.0]), jnp.array([4.0, -1.0, 0.0]), jnp.zeros(3)]
      >>> found = flatjax.principal_directions(path)
      >>> found.explained.round(4).tolist()
      [0.9412, 0.0588]
      >>> jnp.abs(found.directions).tolist()
      [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]

    References:
      Li, Xu, Taylor, Studer and Goldstein, "Visualizing the loss landscape of neural nets", NeurIPS
      2018, arXiv:1712.09913; Antognini and Sohl-Dickstein, "PCA of high dimensional random walks
      with comparison to neural network training", NeurIPS 2018, arXiv:1806.08805.
    """
    checks.check_count("num", num)
    eps, points = stacked("checkpoints", checkpoints)
    if loops.is_traced(points):
        raise TypeError("principal_directions decides on the host: call it outside jit.")
    count = bases.size(points)
    if isinstance(origin, bool) or not isinstance(origin, int) or not -count <= origin < count:
        raise ValueError(f"origin must be the index of one of {count} checkpoints, got {origin!r}.")
    start, known, largest = _begun(points, origin % count, num)
    noise = count * (eps * float(largest)) ** 2
    values, total = [], 0.0
    for k in range(num):
        matrix = np.asarray(_gram(points, start, known), np.float64)
        if not np.isfinite(matrix).all():
            raise ValueError("checkpoints hold numbers that are not finite.")
        total = total or np.trace(matrix)
        eigenvalues, vectors = np.linalg.eigh(matrix)
        if eigenvalues[-1] <= noise:
            raise ValueError(
                f"{count} checkpoints span {k} directions beside the origin, fewer than num={num}."
            )
        values.append(eigenvalues[-1])
        top = jnp.asarray(vectors[:, -1], trees.dtype(points))
        known = _with_direction(points, start, known, k, top)
    coordinates, directions = _signed(points, start, known)
    explained = jnp.asarray(np.asarray(values) / total, coordinates.dtype)
    return Principal(start, directions, coordinates, explained)


@functools.partial(jax.jit, static_argnums=2)
def _begun(points, origin, num):
    """The origin, no known directions yet, and the largest norm of a point."""
    known = jax.tree.map(lambda a: jnp.zeros((num, *a.shape[1:]), a.dtype), points)
    return bases.row(points, origin), known, bases.row_norms(points).max()


def _off(points, origin, known):
    """The differences less what lies along the known directions; rows of zeros are none."""
    off = jax.tree.map(lambda p, o: p - o[None], points, origin)
    return bases.subtract(off, bases.combine(known, bases.gram(off, known).T))


@jax.jit
def _gram(points, origin, known):
    off = _off(points, origin, known)
    return bases.gram(off, off)


@jax.jit
def _with_direction(points, origin, known, k, top):
    found = bases.combine(_off(points, origin, known), top)
    found, _ = trees.normalized(bases.project_out(known, found))
    return bases.set_row(known, k, found)


@jax.jit
def _signed(points, origin, directions):
    coordinates = bases.gram(jax.tree.map(lambda p, o: p - o[None], points, origin), directions)
    largest = jnp.take_along_axis(coordinates, jnp.abs(coordinates).argmax(0)[None], 0)[0]
    sign = jnp.where(largest < 0, -jnp.ones_like(largest), jnp.ones_like(largest))
    return coordinates * sign[None], bases.scale_rows(sign, directions)
