"""Vectors of many leaves as one flat array, for what is driven from the host.

The programs of a Krylov method (draws, steps, rotations, residuals) hold one contraction a leaf,
and take a time to compile in proportion: 60 leaves 1.7 s for a step, one leaf 0.35 s. So the host
runs them on packed vectors, one flat array a dtype, and the product's own program unpacks and
packs: two copies of a vector, nothing beside the two reads of a basis. Vectors that are sharded
over devices stay as they are, because a flat array of sharded leaves would have to be gathered; so
do those of traced programs, where one knows nothing of shardings.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.operators._base import Operator, operator


@operator
class Packed(Operator):
    """An operator on packed vectors.

    Attributes:
      op: the operator that it stands for.
    """

    op: Operator

    @property
    def structure(self):
        sizes: dict = {}
        for leaf in jax.tree.leaves(self.op.structure):
            sizes[leaf.dtype] = sizes.get(leaf.dtype, 0) + math.prod(leaf.shape)
        return tuple(jax.ShapeDtypeStruct((n,), dtype) for dtype, n in sizes.items())

    def mv(self, v):
        """The product with a packed vector."""
        return _pack(self.op.mv(_unpack(v, self.op.structure)), self.op.structure)


def packed(op: Operator) -> Operator:
    """The operator on packed vectors where that is possible and of use; else the operator itself.

    Args:
      op: an operator.

    Returns:
      A `Packed` or ``op``.
    """
    leaves = jax.tree.leaves(op.structure)
    if op.host_driven or len(leaves) < 2 or any(trees.sharding_of(a) is not None for a in leaves):
        return op
    if op.size > np.iinfo(np.int32).max:  # places in one array are int32
        return op
    # Inside jit even a constant is traced.
    return op if loops.is_traced(op, jnp.zeros(())) else Packed(op)


def _pack(v: Tree, structure: Tree) -> tuple:
    parts: dict = {}
    for x, like in zip(jax.tree.leaves(v), jax.tree.leaves(structure), strict=True):
        rest = x.shape[: x.ndim - len(like.shape)]
        flat = x.astype(like.dtype).reshape(*rest, math.prod(like.shape))
        parts.setdefault(like.dtype, []).append(flat)
    return tuple(jnp.concatenate(part, axis=-1) for part in parts.values())


def _cut_at(flat: jax.Array, start: int, shape: tuple[int, ...]) -> jax.Array:
    part = jax.lax.slice_in_dim(flat, start, start + math.prod(shape), axis=flat.ndim - 1)
    return part.reshape(*flat.shape[:-1], *shape)


@functools.partial(jax.jit, static_argnums=2)
def _cut(flat: jax.Array, start: int, shape: tuple[int, ...]) -> jax.Array:
    part = jax.lax.dynamic_slice_in_dim(flat, start, math.prod(shape), axis=flat.ndim - 1)
    return part.reshape(*flat.shape[:-1], *shape)


def _unpack(flats: tuple, structure: Tree, cut=_cut_at) -> Tree:
    leaves, treedef = jax.tree.flatten(structure)
    order = {dtype: i for i, dtype in enumerate(dict.fromkeys(leaf.dtype for leaf in leaves))}
    starts, out = [0] * len(order), []
    for leaf in leaves:
        i, n = order[leaf.dtype], math.prod(leaf.shape)
        out.append(cut(flats[i], starts[i], leaf.shape))
        starts[i] += n
    return jax.tree.unflatten(treedef, out)


@jax.jit
def _pack_for(op: Packed, v: Tree) -> tuple:
    return _pack(v, op.op.structure)


def layout(op: Operator) -> Packed | None:
    """What `unpack` needs of an operator, for a program that is passed no operator."""
    return op if isinstance(op, Packed) else None


def pack(op: Operator, v: Tree) -> Tree:
    """A vector, or vectors stacked along leading axes, as the operator of `packed` takes them."""
    return _pack_for(op, v) if isinstance(op, Packed) else v


def unpack(op: Operator | None, v: Tree) -> Tree:
    """A vector of the operator of `packed`, or stacked ones, as the caller knows them."""
    if not isinstance(op, Packed):
        return v
    # By a program for each shape: one for all of 57 leaves takes 1.2 s to compile.
    return _unpack(v, op.op.structure, _cut_at if loops.is_traced(v) else _cut)
