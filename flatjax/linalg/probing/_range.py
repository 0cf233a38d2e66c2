"""Orthonormal bases of the range of an operator, from its products with random probes."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax._watching import SILENT, Watch
from flatjax.linalg.probing import _probe_products as probe_products
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _orthonormal as orthonormal
from flatjax.operators._base import Operator


class Range(NamedTuple):
    r"""A QR factorisation of the products $Y = A\Omega$ with random probes.

    Attributes:
      basis: Q, ``s`` orthonormal vectors, zero where a product was a combination of those before.
      triangle: R, ``(s, s)``, in float64.
      shift: the multiple of the identity that was added to A, zero unless asked for.
    """

    basis: Tree
    triangle: np.ndarray
    shift: float


@jax.jit
def _coefficients(basis, vectors):
    return bases.gram(basis, bases.stack(vectors))


@jax.jit
def _shift(y, relative):
    # Relative to the norm of a product with a probe of norm sqrt(n).
    size = trees.size(y)
    return relative * trees.norm(y) / size**0.5


_add = jax.jit(trees.axpy)
_gram = jax.jit(bases.gram)


def random_range(
    op: Operator,
    key: jax.Array,
    count: int,
    kind: str,
    shift: float = 0.0,
    watch: Watch = SILENT,
) -> Range:
    """The range of the products with ``count`` probes, probe i drawn from ``fold_in(key, i)``.

    Args:
      op: the operator.
      key: a PRNG key.
      count: the number of products s.
      kind: the kind of probes.
      shift: add this multiple of the first product's size, times the identity, to the operator.
      watch: what shows the products; nothing stops before the last of them.

    Returns:
      A `Range`.
    """
    product, size = loops.product(op), probe_products.probe_block(op.size)
    basis, nu, columns = trees.zeros(op.structure, (count,)), None, []
    for start in range(0, count, size):
        real = min(size, count - start)
        omega = probe_products.unstack(probe_products.drawn(key, op.structure, start, size, kind))
        y = []
        for begin, after in watch.chunks(real):
            y += [trees.cast(product(v), op.structure) for v in omega[begin:after]]
            if watch.wants():
                jax.block_until_ready(y)
                watch.report(start + after, left=float(2 * count - start - after), ready=False)
        if shift:
            nu = _shift(y[0], shift) if nu is None else nu
            y = [_add(nu, v, w) for v, w in zip(omega, y, strict=False)]
        y += (size - real) * y[-1:]
        basis, block = orthonormal.extend(basis, np.int32(start), y, np.int32(real))
        columns.append(block)
    return Range(basis, _on_host(columns, count), 0.0 if nu is None else float(nu))


def _on_host(blocks, count):
    """The first ``count`` columns of blocks of them, in float64."""
    return np.concatenate(jax.device_get(blocks), axis=1)[:, :count].astype(np.float64)


def rayleigh_quotient(op: Operator, basis: Tree, watch: Watch = SILENT) -> np.ndarray:
    r"""The projected operator $Q^\top A Q$, one product per row, ``(s, s)``."""
    product = loops.product(op)
    rows = (product(probe_products.row(basis, jnp.int32(i))) for i in range(bases.size(basis)))
    return _columns(rows, basis, watch)


def probe_coefficients(basis: Tree, key: jax.Array, structure: Tree, kind: str) -> np.ndarray:
    r"""The coefficients $Q^\top\Omega$ of the probes of `random_range`, drawn once more."""
    count, size = bases.size(basis), probe_products.probe_block(trees.size(structure))
    blocks = (
        probe_products.unstack(probe_products.drawn(key, structure, i, size, kind))
        for i in range(0, count, size)
    )
    return _columns(itertools.islice(itertools.chain.from_iterable(blocks), count), basis)


def _columns(vectors, basis, watch=SILENT):
    """The coefficients of vectors over a basis, as columns on the host."""
    count = bases.size(basis)
    size, blocks = probe_products.probe_block(trees.size(basis) // count), []
    while some := list(itertools.islice(vectors, size)):
        blocks.append(_coefficients(basis, some + (size - len(some)) * some[-1:]))
        if watch.wants():
            jax.block_until_ready(blocks)
            done = min(count, size * len(blocks))
            watch.report(count + done, left=float(count - done), ready=False)
    return _on_host(blocks, count)


def probe_gram(key: jax.Array, structure: Tree, count: int, kind: str) -> np.ndarray:
    r"""The inner products $\Omega^\top\Omega$ of the probes of `random_range`."""
    omega = probe_products.drawn(key, structure, 0, count, kind)
    return np.asarray(_gram(omega, omega), np.float64)
