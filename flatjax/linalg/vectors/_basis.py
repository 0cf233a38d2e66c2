"""Krylov bases: vectors that are pytrees, stacked along a leading axis of every leaf.

A basis of ``m`` vectors is one tree whose leaves have shape ``(m, *leaf.shape)``, so that it is
sharded like the params. All leaves' coefficients are added into one vector of ``m`` numbers: one
reduction for a whole pass, whatever the number of leaves and devices.

A basis that never grows (Ritz vectors, probes, a run of known length) is such a tree. One that
grows is a [`Basis`][] of several, its parts, each allocated once: growing holds no second copy.
Every function here takes either. Growing is the host's, which adds a part when all rows are full:
so there are no empty parts to be passed over, and no collective inside a conditional. On one device
a [`LocalBasis`][] may have its parts before they are filled.

Coefficients are contracted over whole parts, of which the rows not yet filled are zero. A loop over
blocks of filled rows reads less, but XLA's CPU backend copies every block it slices: on 57 leaves
and 9.3M parameters it took 0.43 to 0.70 s for 40 rows in blocks of 8, and one contraction over the
whole 0.10 s.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.vectors import _blocks as blocks

_HIGHEST = lax.Precision.HIGHEST
NEXT_SEED = np.uint32(0x9E3779B9)  # 2^32 over the golden ratio: a sequence of period 2^32


class Basis(NamedTuple):
    """A basis that grows.

    Attributes:
      parts: trees of stacked vectors, one after the other.
    """

    parts: tuple[Tree, ...]


class LocalBasis(Basis):
    """A basis on one device, in parts that are passed over while all of their rows are empty."""


def parts_of(basis: Tree) -> tuple[Tree, ...]:
    """The trees of stacked vectors that a basis consists of."""
    return basis.parts if isinstance(basis, Basis) else (basis,)


def like(basis: Tree, parts: Sequence[Tree]) -> Tree:
    """A basis of the kind of another one, with other parts."""
    return type(basis)(tuple(parts)) if isinstance(basis, Basis) else parts[0]


def empty(vector: Tree, rows: int, dtype: Any = None, each: int | None = None) -> Tree:
    """A basis of rows of zeros, in a dtype other than the vector's; in parts of ``each`` rows."""

    def part(some):
        return jax.tree.map(lambda x: jnp.zeros((some, *x.shape), dtype or x.dtype), vector)

    if each is None:
        return part(rows)
    return LocalBasis(tuple(part(min(each, rows - i)) for i in range(0, rows, each)))


def _sizes(basis: Tree) -> list[int]:
    return [jax.tree.leaves(part)[0].shape[0] for part in parts_of(basis)]


def size(basis: Tree) -> int:
    """The number of rows, filled or not."""
    return sum(_sizes(basis))


def cut(basis: Tree, c: jax.Array) -> list[jax.Array]:
    """An array with a leading axis of all rows, cut like the parts."""
    return jnp.split(c, np.cumsum(_sizes(basis))[:-1])


def grown(basis: Tree, rows: int, vector: Tree) -> Basis:
    """The basis with ``rows`` more, the first of which is ``vector`` and the others zero."""
    kind = type(basis) if isinstance(basis, Basis) else Basis
    return kind((*parts_of(basis), _opened(vector, rows)))


@functools.partial(jax.jit, static_argnums=1)
def _opened(vector: Tree, rows: int) -> Tree:
    return set_row(trees.zeros(vector, (rows,)), 0, vector)


def row(basis: Tree, index: ArrayLike) -> Tree:
    """The vector at ``index``, which may be traced."""
    parts = parts_of(basis)

    def leaf(b):
        held = lax.dynamic_index_in_dim(b, index, keepdims=False)
        return blocks.read_as(held, trees.compute_dtype(b.dtype))

    if len(parts) == 1:
        return jax.tree.map(leaf, parts[0])
    # Adding up one row of each part: only that of the right part is not zeroed.
    like = jax.tree.map(lambda b: jax.ShapeDtypeStruct(b.shape[1:], b.dtype), parts[0])
    found, first = trees.zeros(trees.structure_of(like)), 0
    for part, rows in zip(parts, _sizes(basis), strict=True):
        at = jnp.clip(index - first, 0, rows - 1)
        inside = at == index - first
        found = jax.tree.map(
            lambda total, x, inside=inside: total + jnp.where(inside, x, jnp.zeros_like(x)),
            found,
            row(part, at),
        )
        first += rows
    return found


def set_row(basis: Tree, index: ArrayLike, v: Tree) -> Tree:
    """The basis with the vector at ``index`` replaced; beyond the last row, the basis itself."""
    parts, first = [], 0
    for part, rows in zip(parts_of(basis), _sizes(basis), strict=True):
        # An update clamps its index: one from outside would land on the first or the last row.
        at = jnp.clip(index - first, 0, rows - 1)
        inside = at == index - first

        def leaf(b, x, at=at):
            return lax.dynamic_update_index_in_dim(b, blocks.held(x, b.dtype), at, 0)

        if isinstance(basis, Basis):  # the old rows of all parts would be held at once
            put = functools.partial(jax.tree.map, leaf)
            parts.append(lax.cond(inside, put, lambda part, _: part, part, v))
        else:
            old = row(part, at)
            kept = jax.tree.map(lambda x, y, inside=inside: jnp.where(inside, x, y), v, old)
            parts.append(jax.tree.map(leaf, part, kept))
        first += rows
    return like(basis, parts)


def rounded(basis: Tree, v: Tree) -> Tree:
    """A vector as a row of the basis has it, in its own dtypes."""
    return jax.tree.map(
        lambda b, x: blocks.read_as(blocks.held(x, b.dtype), x.dtype), parts_of(basis)[0], v
    )


@functools.partial(jax.jit, static_argnums=1)
def _rounded_to(v: Tree, dtype: Any) -> Tree:
    return jax.tree.map(
        lambda x: blocks.read_as(blocks.held(x, blocks.stored_in(dtype)), x.dtype), v
    )


def rounded_to(v: Tree, dtype: Any) -> Tree:
    """A vector as a basis of this dtype has it; of ``None``, the vector itself."""
    return v if dtype is None else _rounded_to(v, dtype)


def stack(vectors: list[Tree]) -> Tree:
    """The basis of a list of vectors."""
    return jax.tree.map(lambda *x: jnp.stack(x), *vectors)


def unstack(basis: Tree) -> list[Tree]:
    """The vectors of a basis that does not grow."""
    return [jax.tree.map(lambda a, i=i: a[i], basis) for i in range(size(basis))]


def coefficients(
    basis: Tree, w: Tree, filled: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    r"""The inner products $Q^\top w$ and $w^\top w$, in one reduction.

    Args:
      basis: a tree with leading axis ``m``.
      w: a vector.
      filled: how many rows are not zero; of a `LocalBasis` the parts behind them are not read.

    Returns:
      The ``m`` inner products and the squared norm, in at least float32. The norm is accurate to a
      few units of rounding at any size. An inner product is accurate to that much of
      ``|q| |w|`` unless its terms share a sign: the CPU's matrix-vector product then loses
      2e-5 of it over 1e6 numbers, 7e-4 over 1e7, which a second pass mends.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax.linalg.vectors import _basis as basis
      >>> q = {"w": jnp.eye(2), "b": jnp.zeros((2, 1))}
      >>> h, squared = basis.coefficients(q, {"w": jnp.array([3.0, 4.0]), "b": jnp.ones(1)})
      >>> h.tolist(), float(squared)
      ([3.0, 4.0], 26.0)
    """
    scalar = trees.dtype(w)
    m = size(basis)
    total = jnp.zeros(m + 1, scalar)
    sizes = _sizes(basis)
    firsts = [sum(sizes[:i]) for i in range(len(sizes))]
    skips = isinstance(basis, LocalBasis) and filled is not None

    def inner(b, x, first):
        if not skips or first == 0:
            return _inner(b, x)
        return lax.cond(first < filled, _inner, lambda b, x: jnp.zeros(len(b), x.dtype), b, x)

    for *bs, x in _leaves(*parts_of(basis), w):
        axes, x = tuple(range(x.ndim)), x.astype(scalar)
        h = [inner(b, x, first) for b, first in zip(bs, firsts, strict=True)]
        squared = lax.dot_general(x, x, ((axes, axes), ((), ())), _HIGHEST)
        total = total + jnp.concatenate([*h, squared[None]])
    return total[:m], total[m]


def _inner(b, x):
    """The inner products of stacked vectors (of one leaf) with one or with stacked ones."""
    axes, stacked = tuple(range(1, b.ndim)), x.ndim == b.ndim
    if not blocks.is_low(b):
        contract = ((axes, tuple(a - 1 + stacked for a in axes)), ((), ()))
        return lax.dot_general(b.astype(x.dtype), x, contract, _HIGHEST)
    b, x = b.reshape(b.shape[0], -1), x.reshape(*x.shape[: int(stacked)], -1)

    def block(start, n, total):
        rows, part = (lax.dynamic_slice_in_dim(a, start, n, -1) for a in (b, x))
        contract = (((1,), (int(stacked),)), ((), ()))
        return total + lax.dot_general(blocks.read_as(rows, x.dtype), part, contract, _HIGHEST)

    return blocks.by_blocks(block, jnp.zeros((b.shape[0], *x.shape[:-1]), x.dtype), b)


def _leaves(*trees_):
    return zip(*map(jax.tree.leaves, trees_), strict=True)


def combine(basis: Tree, c: jax.Array) -> Tree:
    r"""Linear combinations of the rows, $\sum_i c_i q_i$.

    Args:
      basis: a tree with leading axis ``m``.
      c: coefficients ``(m,)``, or ``(m, l)`` for ``l`` combinations.

    Returns:
      One vector, or a tree with leading axis ``l``.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax.linalg.vectors import _basis as basis
      >>> basis.combine(jnp.eye(2), jnp.array([3.0, 4.0])).tolist()
      [3.0, 4.0]
    """
    first, *others = zip(parts_of(basis), cut(basis, c), strict=True)
    total = _combination(*first)
    for part, own in others:

        def more(total, part=part, own=own):
            return jax.tree.map(jnp.add, total, _combination(part, own))

        # A conditional, from which the compiler takes nothing out: otherwise the combinations of
        # all parts are there at once.
        total = lax.cond(jnp.any(own != 0), more, lambda total: total, total)
    return total


def _combination(part: Tree, c: jax.Array) -> Tree:
    contract = (((0,), (0,)), ((), ()))

    def leaf(b):
        dtype = trees.compute_dtype(b.dtype)
        if not blocks.is_low(b):
            return lax.dot_general(c.astype(dtype), b, contract, _HIGHEST)
        flat = b.reshape(b.shape[0], -1)

        def block(start, n, found):
            rows = blocks.read_as(blocks.read(flat, start, n), dtype)
            new = lax.dot_general(c.astype(dtype), rows, contract, _HIGHEST)
            return lax.dynamic_update_slice_in_dim(found, new, start, -1)

        empty = jnp.zeros((*c.shape[1:], flat.shape[1]), dtype)
        return blocks.by_blocks(block, empty, flat).reshape(*c.shape[1:], *b.shape[1:])

    return jax.tree.map(leaf, part)


def gram(a: Tree, b: Tree) -> jax.Array:
    """The inner products of all rows of ``a`` with all rows of ``b``, ``(m, l)``.

    ``b`` does not grow: it is one tree.
    """
    scalar = trees.dtype((a, b))
    total = jnp.zeros((size(a), size(b)), scalar)
    for *xs, y in _leaves(*parts_of(a), b):
        total = total + jnp.concatenate([_inner(x, y.astype(scalar)) for x in xs])
    return total


def subtract(w: Tree, v: Tree) -> Tree:
    """``w - v``, leaf by leaf."""
    return jax.tree.map(jnp.subtract, w, v)


def less(basis: Tree, w: Tree, c: jax.Array) -> Tree:
    r"""A vector less a combination of the rows, $w - \sum_i c_i q_i$, in place where it can be."""
    first, *others = zip(parts_of(basis), cut(basis, c), strict=True)
    w = subtract(w, _combination(*first))
    for part, own in others:

        def without(w, part=part, own=own):
            return subtract(w, _combination(part, own))

        w = lax.cond(jnp.any(own != 0), without, lambda w: w, w)  # see `combine`
    return w


def project_out(basis: Tree, w: Tree) -> Tree:
    r"""A vector less its part along orthonormal or zero rows, $w - Q Q^\top w$.

    One pass of classical Gram-Schmidt: where little is left, rounding along Q is left as well.
    """
    return less(basis, w, coefficients(basis, w)[0])


def seed_of(key: jax.Array) -> jax.Array:
    """A seed for `random_vector` from a PRNG key, uint32. Adding `NEXT_SEED` gives another one."""
    return _mixed(jnp.bitwise_xor.reduce(jax.random.key_data(key)))


def random_vector(seed: jax.Array, structure: Tree) -> Tree:
    """A vector of numbers in [-1, 1) that are random enough to start another Krylov space from.

    For what is drawn inside a compiled step. Every number is the hash of its place and of the seed:
    on leaves of any sharding it needs no communication, and it compiles within the step in 0.05 s,
    where JAX's generator takes 0.15.
    """
    leaves, treedef = jax.tree.flatten(structure)
    seed = _mixed(seed)

    def drawn(i, x):
        place = lax.iota(jnp.uint32, math.prod(x.shape)).reshape(x.shape)
        bits = _mixed(_mixed(place + jnp.uint32(i) * NEXT_SEED) + seed)
        return bits.astype(x.dtype) * jnp.asarray(2.0**-31, x.dtype) - 1

    return jax.tree.unflatten(treedef, [drawn(i, x) for i, x in enumerate(leaves)])


def _mixed(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words that spreads every bit: the end of MurmurHash3 (Appleby)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def vary_like(tree: Tree, *references: Tree) -> Tree:
    """Cast to varying over every mesh axis that a reference varies over.

    Inside ``shard_map`` the carry of a loop must keep one type. Elsewhere the tree itself.
    """
    axes = {a for leaf in jax.tree.leaves(references) for a in collectives.varying_axes(leaf)}
    return collectives.varying(tree, tuple(sorted(axes, key=str))) if axes else tree


def scale_rows(factors: jax.Array, basis: Tree) -> Tree:
    """Every row times its factor, the leaves keeping their dtypes."""
    return jax.tree.map(lambda a: a * trees.per_row(factors, a), basis)


def row_norms(basis: Tree) -> jax.Array:
    """The norms of the rows, ``(m,)``."""
    return jax.vmap(trees.norm)(basis)


def join(a: Tree, b: Tree) -> Tree:
    """The rows of ``a`` and after them those of ``b``."""
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), a, b)
