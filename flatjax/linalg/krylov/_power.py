"""Power iteration with a Rayleigh-Ritz step in the plane of the last two iterates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.vectors import _basis as bases
from flatjax.operators._base import Operator


class Pair(NamedTuple):
    """The iterate and the best pair so far.

    Attributes:
      previous: the unit iterate before, x.
      current: the unit iterate A x / |A x|, to be multiplied next.
      length: |A x|.
      vector: the unit Ritz vector largest in magnitude.
      value: its Ritz value.
      residual: its residual norm.
    """

    previous: Tree
    current: Tree
    length: jax.Array
    vector: Tree
    value: jax.Array
    residual: jax.Array


def _unit(w: Tree, fallback: Tree) -> tuple[Tree, jax.Array]:
    length = trees.norm(w)
    some = length > 0
    safe = jnp.where(some, length, 1)
    return jax.tree.map(
        lambda a, b: jnp.where(some, a / safe.astype(a.dtype), b), w, fallback
    ), length


@jax.jit
def _first(v0: Tree, w: Tree) -> Pair:
    x, _ = _unit(v0, v0)
    w = trees.scale(1 / trees.norm(v0), trees.cast(w, x))
    current, length = _unit(w, x)
    value = trees.vdot(x, w)
    return Pair(x, current, length, x, value, trees.norm(trees.axpy(-value, x, w)))


@jax.jit
def _step(pair: Pair, w: Tree) -> Pair:
    x, y = pair.previous, pair.current
    w = trees.cast(w, y)
    # An orthonormal basis (y, z) of the plane; A y = w and A x = length * y give A z.
    overlap = trees.vdot(y, x)
    z, size = _unit(trees.axpy(-overlap, y, x), trees.scale(0, x))
    inverse = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)
    image = trees.axpy(-overlap * inverse, w, trees.scale(pair.length * inverse, y))
    a, b, c = trees.vdot(y, w), trees.vdot(z, w), trees.vdot(z, image)
    # Parallel iterates (to the square root of rounding) leave nothing of a plane but noise.
    plane = size > jnp.sqrt(jnp.finfo(size.dtype).eps)
    b, c = jnp.where(plane, b, 0), jnp.where(plane, c, 0)
    plane_matrix = jnp.array([[a, b], [b, c]])
    unit = krylov.power_of_two(jnp.abs(plane_matrix).max())  # its squares stay in range
    values, vectors = jnp.linalg.eigh(plane_matrix / unit, symmetrize_input=False)
    best = jnp.where(plane, jnp.argmax(jnp.abs(values)), jnp.argmax(jnp.abs(vectors[0])))
    value = unit * values[best]
    s, t = vectors[0, best], jnp.where(plane, vectors[1, best], 0)
    vector = trees.axpy(s, y, trees.scale(t, z))
    residual = trees.axpy(-value, vector, trees.axpy(s, w, trees.scale(t, image)))
    following, length = _unit(w, y)
    return Pair(y, following, length, vector, value, trees.norm(residual))


def iterate(op: Operator, v0: Tree, w: Tree, tol: float, budget: int) -> tuple[Pair, int]:
    """Iterate until the residual is small or the budget is spent.

    Args:
      op: the operator.
      v0: the start vector.
      w: its product.
      tol: the tolerance on the residual relative to the value; traced, all steps are taken.
      budget: the most products, this first one included.

    Returns:
      The pair and the products spent.
    """
    product = loops.product(op)
    pair = _first(v0, w)
    traced = loops.is_traced(w)
    if traced or (loops.on_device() and not op.host_driven):
        pair = bases.vary_like(pair, pair)
        body = lambda _, p: _step(p, product(p.current))  # noqa: E731
        return loops.fori(budget - 1, body, pair, like=w), budget
    spent = 1
    interval = 1 if op.host_driven else krylov.CHECK_EVERY
    while spent < budget:
        for _ in range(min(interval, budget - spent)):
            pair = _step(pair, product(pair.current))
            spent += 1
        value, residual = float(pair.value), float(pair.residual)
        if residual <= tol * abs(value):
            break
    return pair, spent
