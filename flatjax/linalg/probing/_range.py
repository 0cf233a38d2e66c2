"""Orthonormal bases of the range of an operator, from its products with random probes."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.probing import _probe_products as sampling
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _orthonormal as orthonormal
from flatjax.linalg.vectors import _probes as probes
from flatjax.operators._base import Operator


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
            basis, r = orthonormal.append_row(carry[0], i, multiply(i))
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
        basis, block = orthonormal.extend(basis, np.int32(start), images, np.int32(real))
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
