"""Krylov bases: vectors that are pytrees, stacked along a leading axis of every leaf.

A basis of ``m`` vectors is one tree whose leaves have shape ``(m, *leaf.shape)``, so that it is
sharded like the params. All leaves' coefficients are added into one vector of ``m`` numbers: one
reduction for a whole pass, whatever the number of leaves and devices.

Coefficients are contracted over the whole buffer, of which the rows not yet filled are zero. A
loop over blocks of filled rows reads less, but XLA's CPU backend copies every block it slices: on
57 leaves and 9.3M parameters it took 0.43 to 0.70 s for 40 rows in blocks of 8, and one
contraction over the whole buffer 0.10 s. A long run keeps its vectors in [`Segments`][] instead,
buffers of their own, which a conditional passes over without a copy as long as they are empty.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.vectors import _probes as probes

_HIGHEST = lax.Precision.HIGHEST


class Segments(NamedTuple):
    """A basis in several buffers, of which the empty ones are not read.

    Every function here takes one where it takes a basis.

    Attributes:
      parts: bases, one after the other.
      filled: how many rows, from the first on, may differ from zero, int32.
    """

    parts: tuple[Tree, ...]
    filled: jax.Array

    def where_filled(self, fn):
        """``fn(part)`` of every part; zeros where the part is empty."""
        found, first = [], 0
        for part in self.parts:
            zeros = functools.partial(trees.zeros, jax.eval_shape(fn, part))
            one = functools.partial(fn, part)
            found.append(lax.cond(first < self.filled, one, zeros))
            first += size(part)
        return found

    def combined(self, c):
        """`combine`, part by part into one sum."""
        # With an output of its own for every part, added up afterwards, the moments of 8 probes
        # over 88 rows of 150,000 numbers take twice as long: 44 ms against 24.
        parts, cuts = self.parts, self.split(c)
        total, first = combine(parts[0], cuts[0]), size(parts[0])
        for part, own in zip(parts[1:], cuts[1:], strict=True):
            added = functools.partial(_added, part, own)
            total = lax.cond(first < self.filled, added, lambda total: total, total)
            first += size(part)
        return total

    def split(self, c):
        """An array with a leading axis of all rows, cut like the parts."""
        ends = np.cumsum([size(part) for part in self.parts])[:-1]
        return jnp.split(c, ends)


def _added(part, c, total):
    return jax.tree.map(jnp.add, total, combine(part, c))


def size(basis: Tree) -> int:
    """The number of rows, filled or not."""
    if isinstance(basis, Segments):
        return sum(size(part) for part in basis.parts)
    return jax.tree.leaves(basis)[0].shape[0]


def whole(basis: Tree) -> Tree:
    """The basis in one buffer."""
    if not isinstance(basis, Segments):
        return basis
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *basis.parts)


def row(basis: Tree, index: chex.Numeric) -> Tree:
    """The vector at ``index``, which may be traced."""
    if isinstance(basis, Segments):
        # Adding up one row of each part: only that of the right part is not zeroed.
        found, first = None, 0
        for part in basis.parts:
            local = index - first
            inside = (local >= 0) & (local < size(part))
            one = jax.tree.map(
                lambda a, inside=inside: jnp.where(inside, a, jnp.zeros((), a.dtype)),
                row(part, jnp.clip(local, 0, size(part) - 1)),
            )
            found = one if found is None else jax.tree.map(jnp.add, found, one)
            first += size(part)
        return found
    return jax.tree.map(lambda b: lax.dynamic_index_in_dim(b, index, keepdims=False), basis)


def set_row(basis: Tree, index: chex.Numeric, v: Tree) -> Tree:
    """The basis with the vector at ``index`` replaced; beyond the last row, the basis itself."""
    if isinstance(basis, Segments):
        parts, first = [], 0
        for part in basis.parts:
            parts.append(_set_inside(part, index - first, v))
            first += size(part)
        filled = jnp.maximum(basis.filled, jnp.minimum(index + 1, first)).astype(jnp.int32)
        return Segments(tuple(parts), filled)
    return _set_inside(basis, index, v)


def _set_inside(part, index, v):
    """The part with row ``index`` replaced if it has one."""
    # An update clamps its index: one from outside would land on the first or the last row.
    at = jnp.clip(index, 0, size(part) - 1)
    inside = index == at

    def leaf(b, x):
        old = lax.dynamic_index_in_dim(b, at, keepdims=False)
        return lax.dynamic_update_index_in_dim(b, jnp.where(inside, x, old), at, 0)

    return jax.tree.map(leaf, part, v)


def stack(vectors: list[Tree]) -> Tree:
    """The basis of a list of vectors."""
    return jax.tree.map(lambda *x: jnp.stack(x), *vectors)


def unstack(basis: Tree) -> list[Tree]:
    """The vectors of a basis in one buffer."""
    return [jax.tree.map(lambda a, i=i: a[i], basis) for i in range(size(basis))]


def coefficients(basis: Tree, w: Tree) -> tuple[jax.Array, jax.Array]:
    r"""The inner products :math:`Q^\top w` and :math:`w^\top w`, in one reduction.

    Args:
      basis: a tree with leading axis ``m``.
      w: a vector.

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
    if isinstance(basis, Segments):
        parts = basis.where_filled(lambda part: coefficients(part, w)[0])
        return jnp.concatenate(parts), trees.vdot(w, w)
    m = size(basis)
    total = jnp.zeros(m + 1, scalar)
    for b, x in zip(jax.tree.leaves(basis), jax.tree.leaves(w), strict=True):
        axes = tuple(range(x.ndim))
        b, x = b.astype(scalar), x.astype(scalar)
        h = lax.dot_general(b, x, ((tuple(a + 1 for a in axes), axes), ((), ())), _HIGHEST)
        squared = lax.dot_general(x, x, ((axes, axes), ((), ())), _HIGHEST)
        total = total + jnp.concatenate([h, squared[None]])
    return total[:m], total[m]


def combine(basis: Tree, c: jax.Array) -> Tree:
    r"""Linear combinations of the rows, :math:`\sum_i c_i q_i`.

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
    if isinstance(basis, Segments):
        return basis.combined(c)

    def leaf(b):
        contract = (((0,), (0,)), ((), ()))
        return lax.dot_general(c.astype(b.dtype), b, contract, _HIGHEST)

    return jax.tree.map(leaf, basis)


def gram(a: Tree, b: Tree) -> jax.Array:
    """The inner products of all rows of ``a`` with all rows of ``b``, ``(m, l)``.

    Only ``a`` may be `Segments`.
    """
    if isinstance(a, Segments):
        return jnp.concatenate(a.where_filled(lambda part: gram(part, b)))
    scalar = trees.dtype((a, b))
    total = jnp.zeros((jax.tree.leaves(a)[0].shape[0], jax.tree.leaves(b)[0].shape[0]), scalar)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        axes = tuple(range(1, x.ndim))
        x, y = x.astype(scalar), y.astype(scalar)
        total = total + lax.dot_general(x, y, ((axes, axes), ((), ())), _HIGHEST)
    return total


def subtract(w: Tree, v: Tree) -> Tree:
    """``w - v``, leaf by leaf."""
    return jax.tree.map(jnp.subtract, w, v)


def project_out(basis: Tree, w: Tree) -> tuple[Tree, jax.Array, jax.Array, jax.Array]:
    r"""One pass of classical Gram-Schmidt, :math:`w - Q Q^\top w`.

    Args:
      basis: a tree with leading axis ``m`` and orthonormal or zero rows.
      w: a vector.

    Returns:
      The remainder, the coefficients ``(m,)``, and the squared norms before and after. The norm
      after comes from Pythagoras, without another reduction: it is accurate where it is not small
      beside the norm before, that is where no second pass is needed.
    """
    h, before = coefficients(basis, w)
    after = jnp.maximum(before - jnp.sum(h * h), 0)
    return subtract(w, combine(basis, h)), h, before, after


def random_vector(key: jax.Array, structure: Tree) -> Tree:
    """A vector of independent uniform entries in [-1, 1], drawn as one flat array.

    For restarts inside a compiled step, which it keeps small.
    """
    flat = jax.random.uniform(key, (trees.size(structure),), trees.dtype(structure), -1, 1)
    return probes.unflatten(flat, structure)


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
