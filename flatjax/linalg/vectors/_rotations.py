"""Combinations of the rows of a basis, in its own place or in blocks of their entries."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _blocks as blocks


def rotated(basis: Tree, c: jax.Array, first: jax.Array, *, whole: bool = False) -> Tree:
    """The rows before ``first``, then combinations of all rows, then zeros; in place if donated.

    Args:
      basis: a basis of m rows; the rows of all parts are put together, of a block at a time.
      c: coefficients ``(m, l)``; ``first + l`` is at most m.
      first: the row of the first combination.
      whole: not in blocks of entries, which would be moved about between devices that share the
        vectors; ``l`` vectors are then held beside the basis.
    """
    m = bases.size(basis)
    before = jnp.arange(m, dtype=first.dtype) < first

    def rows(bs):
        b = jnp.concatenate(bs)
        new = blocks.held(bases.combine(b, c), b.dtype)
        kept = jnp.where(before.reshape(-1, *(1,) * (b.ndim - 1)), b, jnp.zeros_like(b))
        found = lax.dynamic_update_slice_in_dim(kept, new, first, 0)
        return jnp.split(found, np.cumsum([len(b) for b in bs])[:-1])

    def leaf(*bs):
        flats = [b.reshape(len(b), math.prod(b.shape[1:])) for b in bs]
        if whole or flats[0].shape[1] <= blocks.BLOCK:
            return rows(bs)

        def block(start, n, flats):
            found = rows([blocks.read(b, start, n) for b in flats])
            return [blocks.write(b, new, start) for b, new in zip(flats, found, strict=True)]

        found = blocks.by_blocks(block, flats, flats[0])
        return [a.reshape(b.shape) for a, b in zip(found, bs, strict=True)]

    parts = bases.parts_of(basis)
    found = [leaf(*bs) for bs in zip(*map(jax.tree.leaves, parts), strict=True)]
    treedef = jax.tree.structure(parts[0])
    turned = [jax.tree.unflatten(treedef, own) for own in zip(*found, strict=True)]
    return bases.like(basis, turned)


def combine_in_parts(
    basis: Tree, c: jax.Array, sizes: tuple[int, ...], *, whole: bool = False
) -> tuple[Tree, ...]:
    """`bases.combine` of ``(m, l)`` coefficients, the combinations cut into several trees.

    Args:
      basis: a basis.
      c: the coefficients.
      sizes: how many combinations each tree has, of sum ``l``.
      whole: as of `rotated`; twice as many vectors are held for a time.
    """
    columns = np.cumsum(sizes)[:-1]

    def leaf(*bs):
        shape = bs[0].shape[1:]
        flats = [b.reshape(b.shape[0], math.prod(shape)) for b in bs]
        if whole or flats[0].shape[1] <= blocks.BLOCK:
            return jnp.split(bases.combine(bases.Basis(tuple(bs)), c), columns)

        def block(start, n, found):
            each = jnp.split(
                bases.combine(bases.Basis(tuple(blocks.read(b, start, n) for b in flats)), c),
                columns,
            )
            return [blocks.write(a, new, start) for a, new in zip(found, each, strict=True)]

        dtype = trees.compute_dtype(bs[0].dtype)
        empty = [jnp.zeros((n, flats[0].shape[1]), dtype) for n in sizes]
        found = blocks.by_blocks(block, empty, flats[0])
        return [a.reshape(-1, *shape) for a in found]

    treedef = jax.tree.structure(bases.parts_of(basis)[0])
    parts = [leaf(*bs) for bs in zip(*map(jax.tree.leaves, bases.parts_of(basis)), strict=True)]
    return tuple(jax.tree.unflatten(treedef, list(found)) for found in zip(*parts, strict=True))


compiled_combine_in_parts = jax.jit(combine_in_parts, static_argnums=2, static_argnames="whole")


def is_shared(basis: Tree) -> bool:
    """Whether several devices share the vectors: what `rotated` takes as ``whole``."""
    return any(trees.sharding_of(a) is not None for a in jax.tree.leaves(basis))
