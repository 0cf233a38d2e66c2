"""The identity and damped operators."""

from typing import Any

import jax
from jax.typing import ArrayLike

from flatjax import _trees as trees
from flatjax.operators._base import Operator, as_operator, operator, static


@operator
class Identity(Operator):
    """The identity; made by [`identity`][]."""

    shapes: Any = static()  # leaves and treedef, hashable

    @property
    def structure(self):
        leaves, treedef = self.shapes
        return jax.tree.unflatten(treedef, leaves)

    def mv(self, v):
        trees.check(v, self.structure)
        return trees.cast(v, self.structure)


def identity(structure: Any) -> Identity:
    """The identity operator on vectors of a structure.

    Args:
      structure: a tree of arrays or ``jax.ShapeDtypeStruct``, the params for instance.

    Returns:
      The operator; ``op + 0.1 * identity(params)`` is ``damped(op, 0.1)``.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> (2.0 * flatjax.operators.identity(jnp.zeros(2)) @ jnp.ones(2)).tolist()
      [2.0, 2.0]
    """
    leaves, treedef = jax.tree.flatten(trees.structure_of(structure))
    return Identity((tuple(leaves), treedef))


def damped(op: Operator, damping: ArrayLike) -> Operator:
    r"""$A + \lambda I$.

    Costs a product of ``op`` and one pass over the vector.

    Args:
      op: the operator A.
      damping: $\lambda$, in the units of an eigenvalue; negative values shift the other way.

    Returns:
      The operator.

    Raises:
      TypeError: if ``op`` is no operator.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> H = flatjax.hessian(lambda w, _: jnp.sum(w**2), jnp.zeros(2), None)
      >>> (flatjax.damped(H, 0.5) @ jnp.ones(2)).tolist()
      [2.5, 2.5]
    """
    op = as_operator(op)
    return op + damping * identity(op.structure)
