"""The curvature that an adaptive optimiser sees: ``D^-1/2 A D^-1/2``."""

from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax.operators._base import Modified, Operator, as_operator, operator


@operator
class Preconditioned(Modified):
    """``D^-1/2 A D^-1/2``; made by [`preconditioned`][].

    Attributes:
      op: the operator A.
      inverse_root: ``D^-1/2``, a tree like the vectors.
    """

    op: Operator
    inverse_root: Any

    def mv(self, v):
        trees.check(v, self.structure)
        return self._scaled(self.op.mv(self._scaled(v)))

    def restrict(self, selection):
        return Preconditioned(self.op.restrict(selection), selection.select(self.inverse_root))

    def _scaled(self, v):
        return jax.tree.map(lambda d, a: d * a.astype(d.dtype), self.inverse_root, v)


def preconditioned(op: Operator, diagonal: Any) -> Preconditioned:
    r"""The operator in the geometry of a diagonal preconditioner.

    $$P = D^{-1/2} A D^{-1/2}$$

    with $D$ the preconditioner itself, as in the update
    $\theta \leftarrow \theta - \eta D^{-1} g$. $P$ is symmetric and has the eigenvalues of
    $D^{-1} A$, whose largest decides the stability of the preconditioned optimiser (Cohen et al.
    2022, arXiv:2207.14484); compare it with [`stability_threshold`][]. An eigenvector $u$ of $P$
    moves the params along $D^{-1/2} u$.

    A product costs one product of ``op``.

    Args:
      op: the operator A.
      diagonal: D, a tree like the vectors with positive entries; from [`preconditioner`][] for an
        optax state. ``inf`` freezes an entry.

    Returns:
      An operator on the same vectors.

    Raises:
      TypeError: if ``op`` is no operator, or ``diagonal`` has another tree structure.
      ValueError: for another shape, or entries that are zero, negative or NaN (under tracing their
        sign is not looked at).

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> H = flatjax.hessian(
      ...     lambda w, _: 0.5 * jnp.sum(jnp.array([4.0, 9.0]) * w**2), jnp.zeros(2), None
      ... )
      >>> P = flatjax.preconditioned(H, jnp.array([2.0, 3.0]))
      >>> (P @ jnp.ones(2)).round(4).tolist()
      [2.0, 3.0]
    """
    op = as_operator(op)
    trees.check(diagonal, op.structure, "diagonal")
    diagonal = trees.cast(diagonal, op.structure)
    if not loops.is_traced(diagonal):
        for path, leaf in jax.tree_util.tree_leaves_with_path(diagonal):
            if not bool(jnp.all(leaf > 0)):
                raise ValueError(
                    f"diagonal{jax.tree_util.keystr(path)} must be positive everywhere: it is the "
                    "preconditioner D itself, not its inverse or its logarithm. Before the first "
                    "step an optimiser has none."
                )
    return Preconditioned(op, jax.tree.map(jax.lax.rsqrt, diagonal))
