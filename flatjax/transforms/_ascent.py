r"""The worst perturbation in a ball: steepest ascent in a p-norm.

For a gradient $g$ and $1/p + 1/q = 1$ the maximiser of $\langle g, \epsilon \rangle$ over
$\lVert \epsilon \rVert_p \le \rho$ is

$$\epsilon = \rho\,\mathrm{sign}(g)\,|g|^{q-1} / (\lVert g \rVert_q^q)^{1/p}$$

(Foret et al. 2021, equation 2), with $\langle g, \epsilon \rangle = \rho \lVert g \rVert_q$. All
norms are global over the perturbed leaves, in at least float32, of the gradient divided by its
largest entry first: for p near 1 the powers $|g|^q$ of a small gradient underflow otherwise.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.transforms import _base as base

Mask = Any | Callable[[Tree], Any]


def expand_mask(mask: Mask | None, params: Tree) -> Tree:
    """The mask as a tree like ``params``: ``None`` selects all; a tree may be a prefix.

    Args:
      mask: ``None``, a pytree of booleans (a prefix of ``params``; arrays select entries), or a
        function of the params that returns one.
      params: the params.

    Returns:
      A tree like ``params`` of booleans or boolean arrays.

    Raises:
      ValueError: if the mask is no prefix of ``params``.
      TypeError: if a leaf is not boolean.
    """
    if mask is None:
        return jax.tree.map(lambda _: True, params)
    tree = mask(params) if callable(mask) else mask
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, bool) and getattr(leaf, "dtype", None) != jnp.bool_:
            raise TypeError(f"mask must hold booleans, got {leaf!r}.")
    try:
        return jax.tree.map(lambda m, sub: jax.tree.map(lambda _: m, sub), tree, params)
    except ValueError as error:
        raise ValueError(
            "mask must be a pytree prefix of the params.\n"
            f"  mask:   {jax.tree.structure(tree)}\n  params: {jax.tree.structure(params)}"
        ) from error


def select(mask: Tree, tree: Tree) -> Tree:
    """Zero outside an expanded mask."""

    def leaf(m, a):
        if isinstance(m, bool):
            return a if m else jnp.zeros_like(a)
        return jnp.where(m, a, jnp.zeros_like(a))

    return jax.tree.map(leaf, mask, tree)


@dataclasses.dataclass(frozen=True)
class Ascent:
    """How a gradient becomes a perturbation.

    Attributes:
      p: the norm of the ball, in [1, inf].
      adaptive: scale by ``T = |w| + eta`` (ASAM): ``True``, or a mask of the leaves to scale.
      eta: the offset of the scale.
      normalize: ``False`` multiplies by the dual norm of the gradient (USAM: ``rho * g``).
      mask: which leaves are perturbed.
    """

    p: Any = 2.0
    adaptive: Any = False
    eta: Any = 0.01
    normalize: bool = True
    mask: Mask | None = None

    def check(self) -> None:
        """Raise ``ValueError`` on bad input."""
        base.check_scalar("p", self.p, minimum=1.0, infinite=True)
        base.check_scalar("eta", self.eta, minimum=0.0)

    def scales(self, params: Tree) -> Tree | None:
        """``T``, or ``None`` where nothing is scaled."""
        if self.adaptive is False:
            return None
        which = expand_mask(None if self.adaptive is True else self.adaptive, params)

        def leaf(m, w):
            w = w.astype(trees.compute_dtype(w.dtype))
            scaled = jnp.abs(w) + jnp.asarray(self.eta).astype(w.dtype)
            return jnp.where(jnp.asarray(m), scaled, jnp.ones_like(w))

        return jax.tree.map(leaf, which, params)

    def __call__(self, gradient: Tree, params: Tree, rho: Any) -> Tree:
        """The perturbation, in at least float32; exactly zero for a zero gradient.

        Args:
          gradient: the gradient.
          params: the params, for ``adaptive`` and ``mask``.
          rho: the radius, a scalar.

        Returns:
          A tree like ``gradient``.
        """
        g = select(
            expand_mask(self.mask, params), trees.cast(gradient, trees.structure_of(gradient))
        )
        scales = self.scales(params)
        if scales is not None:
            g = jax.tree.map(jnp.multiply, scales, g)
        direction = dual_direction(g, self.p, normalize=self.normalize)
        if scales is not None:
            direction = jax.tree.map(jnp.multiply, scales, direction)
        return jax.tree.map(lambda d: jnp.asarray(rho).astype(d.dtype) * d, direction)


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
      >>> from flatjax.transforms import _ascent as ascent
      >>> ascent.dual_direction(jnp.array([3.0, -4.0])).tolist()
      [0.6, -0.8]
      >>> ascent.dual_direction(jnp.array([3.0, -4.0]), 1.0).tolist()
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
