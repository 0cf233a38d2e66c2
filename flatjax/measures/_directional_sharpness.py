"""The curvature along a direction, within and across blocks of params."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax.linalg.probing._layers import by_group
from flatjax.operators._base import Operator, as_operator
from flatjax.operators._selection import By, group_names


def directional_sharpness(
    op: Any, update: Any, *, by: By | None = None
) -> jax.Array | dict[tuple[str, str], jax.Array]:
    r"""The Rayleigh quotient of an update, whole or by pairs of blocks.

    $$\frac{u^\top H u}{\lVert u \rVert^2} = \sum_{a, b} \frac{u_a^\top H_{ab}\, u_b}
    {\lVert u \rVert^2}$$

    Along the update of an optimiser this is the curvature that a step meets, and its terms say how
    much of it is that of the blocks by themselves ($a = b$) and how much their interaction. With
    the gradient for ``update``, the curvature of a gradient step.

    Invariances: to the scale of the update, and to rotations of the params within blocks; scales
    with the loss.

    Cost: one product; with ``by`` one per block.

    Args:
      op: an operator, or a callable ``v -> H v`` on trees like the update.
      update: the direction u, a pytree like the params.
      by: the blocks: ``"leaf"`` (every array), ``"layer"`` (arrays with a common parent), or a
        function of the path that names the block. ``None`` for the whole.

    Returns:
      A scalar; with ``by`` a dictionary from all pairs of names to scalars whose sum it is. NaN for
      an update of zeros.

    Raises:
      TypeError: if ``op`` is neither, or ``update`` has another tree structure.
      ValueError: for an update of other shapes, or another ``by``.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> def loss_fn(p, _):
      ...     return p["a"] ** 2 + p["a"] * p["b"]  # H = [[2, 1], [1, 0]]
      >>> params = {"a": jnp.float32(0.0), "b": jnp.float32(0.0)}
      >>> H = flatjax.hessian(loss_fn, params, None)
      >>> update = {"a": jnp.float32(1.0), "b": jnp.float32(1.0)}
      >>> round(float(flatjax.directional_sharpness(H, update)), 4)
      2.0
      >>> pairs = flatjax.directional_sharpness(H, update, by="leaf")
      >>> {pair: round(float(x), 4) for pair, x in pairs.items()}
      {('a', 'a'): 1.0, ('b', 'a'): 0.5, ('a', 'b'): 0.5, ('b', 'b'): 0.0}

    References:
      Pan and Li, "Toward understanding why Adam converges faster than SGD for Transformers", 2023,
      arXiv:2306.00204 (directional sharpness).
    """
    op = as_operator(op, None if isinstance(op, Operator) else update)
    trees.check(update, op.structure, "update")
    unit = _unit(trees.cast(update, op.structure))
    product = loops.product(op)
    if by is None:
        return _forms(unit, product(unit), ("",) * len(jax.tree.leaves(unit)))[""]
    names = tuple(map(str, group_names(op.structure, by)))
    pairs = {}
    for moved in dict.fromkeys(names):
        part = _part(unit, jnp.asarray([name == moved for name in names]))
        forms = _forms(unit, product(part), names)
        pairs |= {(name, moved): form for name, form in forms.items()}
    return pairs


@jax.jit
def _unit(update):
    unit, length = trees.normalized(update)
    return jax.tree.map(lambda a: jnp.where(length > 0, a, jnp.nan), unit)


@jax.jit
def _part(unit, flags):
    """The vector with zeros outside of the leaves that are flagged."""
    leaves, treedef = jax.tree.flatten(unit)
    kept = [jnp.where(flags[i], a, jnp.zeros_like(a)) for i, a in enumerate(leaves)]
    return treedef.unflatten(kept)


@partial(jax.jit, static_argnums=2)
def _forms(unit, image, names):
    """By group of leaves, the inner product of the vector with the image."""
    pairs = zip(jax.tree.leaves(unit), jax.tree.leaves(image), strict=True)
    return by_group(names, [trees.vdot(u, w) for u, w in pairs])
