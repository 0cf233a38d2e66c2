"""Vectors made orthonormal to a basis and to each other, alone or in shared passes."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.vectors import _basis as bases

# A remainder this many units of rounding below the vector is noise, and its direction too.
_DROP = 16.0


_PASSES = 3


@functools.partial(jax.jit, donate_argnums=0)
def append(basis: Tree, index: jax.Array, y: Tree) -> tuple[Tree, jax.Array]:
    """Orthonormalise ``y`` against the basis, write it to row ``index``.

    Returns:
      The basis, and the column of R: the coefficients of ``y`` over all rows.
    """
    return append_row(basis, index, y)


def append_row(basis, index, y):
    y, length = trees.normalized(y)
    zero = jnp.zeros((), length.dtype)
    carry = (y, jnp.zeros(bases.size(basis), length.dtype), zero, jnp.int32(0), jnp.zeros((), bool))
    carry = bases.vary_like(carry, y, basis)

    def one_pass(carry):
        y, r, _, count, _ = carry
        h, before = bases.coefficients(basis, y)
        rest = bases.subtract(y, bases.combine(basis, h))
        # By Pythagoras, without another reduction: accurate where no further pass is needed.
        after = jnp.maximum(before - jnp.sum(h * h), 0)
        return rest, r + h, after, count + 1, after >= before / 2

    y, r, after, _, _ = lax.while_loop(lambda c: ~c[4] & (c[3] < _PASSES), one_pass, carry)
    left = jnp.sqrt(after)
    good = left > _DROP * jnp.finfo(left.dtype).eps
    left = jnp.where(good, left, 0)
    q = trees.scale(jnp.where(good, 1 / jnp.where(good, left, 1), 0), y)
    return bases.set_row(basis, index, q), length * r.at[index].set(left)


@functools.partial(jax.jit, donate_argnums=0)
def extend(
    basis: Tree, index: jax.Array, vectors: list[Tree], count: jax.Array
) -> tuple[Tree, jax.Array]:
    """The first ``count`` vectors one after the other as by `append`, in shared passes.

    Returns:
      The basis, and a column of R for every vector, ``(rows of the basis, vectors)``.
    """
    size, m = len(vectors), bases.size(basis)
    lengths = jnp.stack([trees.norm(v) for v in vectors])
    lengths = jnp.where(jnp.arange(size) < count, lengths, 0)
    y = _divided(bases.stack(vectors), lengths)

    def one_pass(carry):
        y, h, before, passes, _ = carry
        along = bases.gram(basis, y)
        y = bases.subtract(y, bases.combine(basis, along))
        after = jnp.square(jax.vmap(trees.norm)(y))
        return y, h + along, after, passes + 1, jnp.all(after >= before / 2)

    h, r = jnp.zeros((m, size), lengths.dtype), jnp.zeros((size, size), lengths.dtype)
    squared = (lengths > 0).astype(lengths.dtype)
    carry = (y, h, squared, jnp.int32(0), jnp.zeros((), bool))
    y, h, _, _, _ = lax.while_loop(lambda c: ~c[4] & (c[3] < _PASSES), one_pass, carry)
    one_row = functools.partial(_orthogonal_to_those_before, basis)
    y, h, r = lax.fori_loop(0, size, one_row, (y, h, r))
    for i in range(size):
        basis = bases.set_row(basis, index + i, bases.row(y, i))
    inside = jnp.zeros((m + size, size), h.dtype)
    inside = lax.dynamic_update_slice(inside, r, (index, jnp.zeros((), index.dtype)))[:m]
    return basis, (h + inside) * lengths[None, :]


def _orthogonal_to_those_before(basis, j, carry):
    """Row j of y made orthonormal to its other rows before; they are orthogonal to the basis."""
    y, h, r = carry
    before = jnp.arange(bases.size(y)) < j

    def one_pass(carry):
        v, along, inside, squared, passes, _ = carry
        c = jnp.where(before, bases.coefficients(y, v)[0], 0)
        v = bases.subtract(v, bases.combine(y, c))

        def once_more():
            more = bases.coefficients(basis, v)[0]
            return bases.subtract(v, bases.combine(basis, more)), more

        # Where much has cancelled, rounding has left components along the basis.
        v, more = lax.cond(passes > 0, once_more, lambda: (v, jnp.zeros_like(along)))
        after = jnp.square(trees.norm(v))
        return v, along + more, inside + c, after, passes + 1, after >= squared / 2

    v = bases.row(y, j)
    start = (v, h[:, j], r[:, j], jnp.square(trees.norm(v)), jnp.int32(0), jnp.zeros((), bool))
    v, along, inside, squared, _, _ = lax.while_loop(
        lambda c: ~c[5] & (c[4] < _PASSES), one_pass, start
    )
    left = jnp.sqrt(squared)
    # What rounding has left is no direction, and none after it may be made orthogonal to it.
    left = jnp.where(left > _DROP * jnp.finfo(left.dtype).eps, left, 0)
    y = bases.set_row(y, j, trees.scale(_inverse(left), v))
    return y, h.at[:, j].set(along), r.at[:, j].set(inside.at[j].set(left))


def _inverse(x):
    return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1), 0)


def _divided(y, lengths):
    # Not multiplied by the inverse: that of 1e38 is flushed to zero.
    safe = jnp.where(lengths > 0, lengths, 1)
    return jax.tree.map(lambda a: a / trees.per_row(safe, a), y)
