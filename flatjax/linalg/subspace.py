"""Orthonormal bases of the range of an operator, from its products with random probes."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flatjax import loops, trees
from flatjax.linalg import basis as bases
from flatjax.linalg import probes, sampling
from flatjax.operators.base import Operator

Tree = Any
# A remainder this many units of rounding below the vector is noise, and its direction too.
_DROP = 16.0
_PASSES = 3


class Range(NamedTuple):
    r"""A QR factorisation of the products :math:`Y = A\Omega` with random probes.

    Attributes:
      basis: Q, ``s`` orthonormal vectors, zero where a product was a combination of those before.
      triangle: R, ``(s, s)``.
      shift: the multiple of the identity that was added to A, zero unless asked for.
    """

    basis: Tree
    triangle: Any
    shift: Any


@functools.partial(jax.jit, donate_argnums=0)
def append(basis: Tree, index: jax.Array, y: Tree) -> tuple[Tree, jax.Array]:
    """Orthonormalise ``y`` against the basis, write it to row ``index``.

    Returns:
      The basis, and the column of R: the coefficients of ``y`` over all rows.
    """
    return _append(basis, index, y)


def _append(basis, index, y):
    length = trees.norm(y)
    y = jax.tree.map(lambda x: x / jnp.where(length > 0, length, 1).astype(x.dtype), y)
    zero = jnp.zeros((), length.dtype)
    m = jax.tree.leaves(basis)[0].shape[0]
    carry = (y, jnp.zeros(m, length.dtype), zero, jnp.int32(0), jnp.zeros((), bool))
    carry = bases.vary_like(carry, y, basis)

    def one_pass(carry):
        y, r, _, count, _ = carry
        rest, h, before, after = bases.project_out(basis, y)
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
    return jax.tree.map(lambda a: a / safe.reshape(-1, *(1,) * (a.ndim - 1)).astype(a.dtype), y)


@jax.jit
def _column(basis, y):
    return bases.coefficients(basis, y)[0]


@jax.jit
def _columns_of(basis, vectors):
    return bases.gram(basis, bases.stack(vectors))


_row = jax.jit(bases.row)


@jax.jit
def _shift(y, relative):
    # Relative to the norm of a product with a probe of norm sqrt(n).
    size = trees.size(y)
    return relative * trees.norm(y) / size**0.5


_add = jax.jit(trees.axpy)


def random_range(op: Operator, key: jax.Array, count: int, kind: str, shift: float = 0.0) -> Range:
    """The range of the products with ``count`` probes, probe i drawn from ``fold_in(key, i)``.

    Args:
      op: the operator.
      key: a PRNG key.
      count: the number of products s.
      kind: the kind of probes.
      shift: add this multiple of the first product's size, times the identity, to the operator.

    Returns:
      A `Range`.
    """
    product = loops.product(op)

    def draw(i):
        return probes.probe(jax.random.fold_in(key, i), op.structure, kind)

    scalar = trees.dtype(op.structure)
    omega = draw(jnp.int32(0))
    y = product(omega)
    nu = _shift(y, jnp.asarray(shift, scalar)) if shift else jnp.zeros((), scalar)
    basis = trees.zeros(op.structure, (count,))

    def multiply(i):
        omega = draw(i)
        y = trees.cast(product(omega), op.structure)
        return _add(nu, omega, y) if shift else y

    if loops.is_traced(y):

        def body(i, carry):
            i = jnp.asarray(i, jnp.int32)
            basis, r = _append(carry[0], i, multiply(i))
            return basis, lax.dynamic_update_index_in_dim(carry[1], r, i, 0)

        carry = bases.vary_like((basis, jnp.zeros((count, count), scalar)), y)
        basis, columns = loops.fori(count, body, carry, like=y)
        return Range(basis, columns.T, nu)
    size, columns = sampling.together(op.size), []
    for start in range(0, count, size):
        real = min(size, count - start)
        omegas = _drawn(key, op.structure, kind, start, size)
        found = [] if start else [y]  # the product that asked whether we are traced
        found += [product(v) for v in omegas[len(found) : real]]
        images = [trees.cast(w, op.structure) for w in found]
        if shift:
            images = [_add(nu, v, w) for v, w in zip(omegas, images, strict=False)]
        images += (size - real) * images[-1:]
        basis, block = extend(basis, np.int32(start), images, np.int32(real))
        columns.append(block)
    return Range(basis, _on_host(columns, count), float(nu))


def _drawn(key, structure, kind, start, size):
    """The probes from ``start`` on, those of ``fold_in(key, i)``."""
    keys = sampling.keys(key, np.arange(start, start + size, dtype=np.int32))
    return sampling.unstack(probes.block(keys, structure, kind))


def _on_host(blocks, count):
    """The first ``count`` columns of blocks of them, in float64."""
    return np.concatenate(jax.device_get(blocks), axis=1)[:, :count].astype(np.float64)


def project(op: Operator, basis: Tree) -> Any:
    r"""The projected operator :math:`Q^\top A Q`, one product a row, ``(s, s)``."""
    product, count = loops.product(op), bases.size(basis)

    def image(i):
        return product(_row(basis, jnp.int32(i)))

    first = image(0)
    if loops.is_traced(first):
        return _traced_columns(lambda i: product(_row(basis, i)), basis, first)
    return _host_columns(itertools.chain([first], map(image, range(1, count))), basis)


def probe_coefficients(basis: Tree, key: jax.Array, structure: Tree, kind: str, like: Any) -> Any:
    r"""The coefficients :math:`Q^\top\Omega` of the probes of `random_range`, drawn once more."""
    if loops.is_traced(basis, key, like):

        def draw(i):
            return probes.probe(jax.random.fold_in(key, i), structure, kind)

        return _traced_columns(draw, basis, like)
    count, size = bases.size(basis), sampling.together(trees.size(structure))
    blocks = (_drawn(key, structure, kind, i, size) for i in range(0, count, size))
    return _host_columns(itertools.islice(itertools.chain.from_iterable(blocks), count), basis)


def _host_columns(vectors, basis):
    """The coefficients of vectors over a basis, as columns on the host."""
    count = bases.size(basis)
    size, blocks = sampling.together(trees.size(basis) // count), []
    while some := list(itertools.islice(vectors, size)):
        blocks.append(_columns_of(basis, some + (size - len(some)) * some[-1:]))
    return _on_host(blocks, count)


def _traced_columns(vector, basis, like):
    """Those of ``vector(i)`` for every row of the basis, by a loop."""
    first, count = _column(basis, vector(jnp.int32(0))), bases.size(basis)

    def body(i, out):
        i = jnp.asarray(i, jnp.int32)
        return lax.dynamic_update_index_in_dim(out, _column(basis, vector(i)), i, 0)

    out = jnp.zeros((count, count), first.dtype)
    return loops.fori(count, body, bases.vary_like(out, first), like=(first, like)).T


def probe_gram(key: jax.Array, structure: Tree, count: int, kind: str, like: Any) -> Any:
    r"""The inner products :math:`\Omega^\top\Omega` of the probes of `random_range`."""
    keys = sampling.keys(key, jnp.arange(count, dtype=jnp.int32))
    omega = probes.block(keys, structure, kind)
    gram = _gram(omega, omega)
    return gram if loops.is_traced(gram, like) else np.asarray(gram, np.float64)


_gram = jax.jit(bases.gram)
