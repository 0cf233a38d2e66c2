"""Orthonormal bases of the range of an operator, from its products with random probes."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.probing import _probe_products as probe_products
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _orthonormal as orthonormal
from flatjax.linalg.vectors import _probes as probes
from flatjax.operators._base import Operator


class Range(NamedTuple):
    r"""A QR factorisation of the products $Y = A\Omega$ with random probes.

    Attributes:
      basis: Q, ``s`` orthonormal vectors, zero where a product was a combination of those before.
      triangle: R, ``(s, s)``.
      shift: the multiple of the identity that was added to A, zero unless asked for.
    """

    basis: Tree
    triangle: Any
    shift: Any


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
    product, size = loops.product(op), probe_products.together(op.size)
    basis, nu, columns = trees.zeros(op.structure, (count,)), None, []
    for start in range(0, count, size):
        real = min(size, count - start)
        omegas = _drawn(key, op.structure, kind, start, size)
        found = [trees.cast(product(v), op.structure) for v in omegas[:real]]
        if shift:
            nu = _shift(found[0], shift) if nu is None else nu
            found = [_add(nu, v, w) for v, w in zip(omegas, found, strict=False)]
        found += (size - real) * found[-1:]
        basis, block = orthonormal.extend(basis, np.int32(start), found, np.int32(real))
        columns.append(block)
    return Range(basis, _on_host(columns, count), 0.0 if nu is None else float(nu))


def _drawn(key, structure, kind, start, size):
    """The probes from ``start`` on, those of ``fold_in(key, i)``."""
    keys = probe_products.keys(key, np.arange(start, start + size, dtype=np.int32))
    return probe_products.unstack(probes.block(keys, structure, kind))


def _on_host(blocks, count):
    """The first ``count`` columns of blocks of them, in float64."""
    return np.concatenate(jax.device_get(blocks), axis=1)[:, :count].astype(np.float64)


def rayleigh_quotient(op: Operator, basis: Tree) -> np.ndarray:
    r"""The projected operator $Q^\top A Q$, one product per row, ``(s, s)``."""
    product = loops.product(op)
    rows = (product(_row(basis, jnp.int32(i))) for i in range(bases.size(basis)))
    return _host_columns(rows, basis)


def probe_coefficients(basis: Tree, key: jax.Array, structure: Tree, kind: str) -> np.ndarray:
    r"""The coefficients $Q^\top\Omega$ of the probes of `random_range`, drawn once more."""
    count, size = bases.size(basis), probe_products.together(trees.size(structure))
    blocks = (_drawn(key, structure, kind, i, size) for i in range(0, count, size))
    return _host_columns(itertools.islice(itertools.chain.from_iterable(blocks), count), basis)


def _host_columns(vectors, basis):
    """The coefficients of vectors over a basis, as columns on the host."""
    count = bases.size(basis)
    size, blocks = probe_products.together(trees.size(basis) // count), []
    while some := list(itertools.islice(vectors, size)):
        blocks.append(_columns_of(basis, some + (size - len(some)) * some[-1:]))
    return _on_host(blocks, count)


def probe_gram(key: jax.Array, structure: Tree, count: int, kind: str) -> np.ndarray:
    r"""The inner products $\Omega^\top\Omega$ of the probes of `random_range`."""
    keys = probe_products.keys(key, np.arange(count, dtype=np.int32))
    omega = probes.block(keys, structure, kind)
    return np.asarray(_gram(omega, omega), np.float64)


_gram = jax.jit(bases.gram)
