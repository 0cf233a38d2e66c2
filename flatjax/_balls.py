r"""The point of a ball where a linear function is largest: duality of p-norms.

For a gradient $g$ and $1/p + 1/q = 1$ the maximiser of $\langle g, \epsilon \rangle$ over
$\lVert \epsilon \rVert_p \le \rho$ is

$$\epsilon = \rho\,\mathrm{sign}(g)\,|g|^{q-1} / (\lVert g \rVert_q^q)^{1/p}$$

(Foret et al. 2021, equation 2), with $\langle g, \epsilon \rangle = \rho \lVert g \rVert_q$. All
norms are global, in at least float32, of the gradient divided by its largest entry first: for p
near 1 the powers $|g|^q$ of a small gradient underflow otherwise.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _trees as trees
from flatjax._trees import Tree


def dual_direction(g: Tree, p: Any = 2.0, *, normalize: bool = True) -> Tree:
    r"""The unit p-ball's point of steepest ascent along ``g``; zero where ``g`` is zero.

    Args:
      g: a pytree of arrays in at least float32.
      p: the norm of the ball in [1, inf]; may be traced.
      normalize: ``False`` multiplies by the dual norm $\lVert g \rVert_q$.

    Returns:
      A tree like ``g``. For p = 1 the mass is shared by the entries tied for the largest.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import _balls as balls
      >>> balls.dual_direction(jnp.array([3.0, -4.0])).tolist()
      [0.6, -0.8]
      >>> balls.dual_direction(jnp.array([3.0, -4.0]), 1.0).tolist()
      [0.0, -1.0]
    """
    scalar = trees.dtype(g)
    largest = jnp.zeros((), scalar)
    for leaf in jax.tree.leaves(g):
        if leaf.size:
            largest = jnp.maximum(largest, jnp.max(jnp.abs(leaf)).astype(scalar))
    # The direction does not depend on this scale, so neither does its derivative.
    largest = jax.lax.stop_gradient(largest)
    safe = jnp.where(largest == 0, jnp.ones((), scalar), largest)
    y = jax.tree.map(lambda a: a / safe.astype(a.dtype), g)

    static = not isinstance(p, jax.core.Tracer)
    if static and float(p) == 2.0:
        squares = trees.vdot(y, y)
        norm = jnp.sqrt(jnp.where(squares == 0, jnp.ones((), scalar), squares))
        direction = jax.tree.map(lambda a: a / norm.astype(a.dtype), y)
    elif static and math.isinf(float(p)):
        direction = jax.tree.map(jnp.sign, y)
        norm = _total(jax.tree.map(jnp.abs, y), scalar)
    elif static and float(p) == 1.0:
        # Of g, not of y: XLA may divide by multiplying with a reciprocal, and then y is not 1.
        ties = jax.tree.map(
            lambda a: (jnp.abs(a) == largest.astype(a.dtype)).astype(a.dtype) * jnp.sign(a), g
        )
        count = _total(jax.tree.map(jnp.abs, ties), scalar)
        count = jnp.maximum(count, jnp.ones((), scalar))
        direction = jax.tree.map(lambda a: a / count.astype(a.dtype), ties)
        norm = jnp.ones((), scalar)
    else:
        # q - 1 = 1/(p - 1) runs from inf at p = 1 to 0 at p = inf; the limits of the powers below
        # are the two special cases above, so that a traced p needs no branch.
        power = 1 / (jnp.asarray(p).astype(scalar) - 1)
        q = power + 1
        powers = jax.tree.map(lambda a: _power(jnp.abs(a), power.astype(a.dtype)), y)
        mass = _total(jax.tree.map(lambda a, b: jnp.abs(a) * b, y, powers), scalar)
        mass = jnp.where(mass == 0, jnp.ones((), scalar), mass)
        root = jnp.power(mass, 1 / jnp.asarray(p).astype(scalar))
        norm = jnp.power(mass, 1 / q)
        direction = jax.tree.map(lambda a, b: jnp.sign(a) * b / root.astype(a.dtype), y, powers)
    if normalize:
        return direction
    # largest > 0 here or the direction is zero; a NaN passes through for the caller to see.
    return jax.tree.map(lambda a: a * (largest * norm).astype(a.dtype), direction)


def _power(x, exponent):
    # The derivative of x**e at 0 is infinite for e < 1; no gradient flows through a zero entry.
    positive = jnp.where(x == 0, jnp.ones_like(x), x)
    return jnp.where(x == 0, jnp.zeros_like(x), jnp.power(positive, exponent))


def _total(tree, scalar):
    return sum((jnp.sum(a).astype(scalar) for a in jax.tree.leaves(tree)), jnp.zeros((), scalar))


def moved(params: Tree, perturbation: Tree) -> Tree:
    """``params + perturbation``, added in at least float32, in the dtypes of the params."""

    def leaf(w, e):
        dtype = trees.compute_dtype(w.dtype)
        return (w.astype(dtype) + e.astype(dtype)).astype(w.dtype)

    return jax.tree.map(leaf, params, perturbation)
