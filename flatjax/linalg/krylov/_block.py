r"""Block Lanczos with thick restarts: several products at once, several copies at once.

The basis holds, from row 0 on, the rows that have been multiplied, and after them the block to be
multiplied next. Every product is orthogonalised against the whole basis, and its coefficients are
kept: column j of H has $A q_j = \sum_i H_{ij} q_i$ over all rows, so that the projected
matrix, the residuals of its Ritz pairs and their couplings after a restart are all read from H.
A product that is a combination of the rows before leaves a zero row, which is left out.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax._watching import SILENT, Watch
from flatjax.linalg.krylov import _certificates as certificates
from flatjax.linalg.krylov import _ritz as ritz
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _orthonormal as orthonormal
from flatjax.linalg.vectors import _probes as probes
from flatjax.linalg.vectors import _rotations as rotations
from flatjax.operators._base import Operator


@functools.partial(jax.jit, static_argnums=2)
def _rows(basis: Tree, start: jax.Array, count: int) -> Tree:
    return jax.tree.map(lambda b: jax.lax.dynamic_slice_in_dim(b, start, count, 0), basis)


@functools.partial(jax.jit, donate_argnums=0, static_argnums=2)
def _rotate(basis: Tree, coefficients: jax.Array, whole: bool) -> Tree:
    return rotations.rotated(basis, coefficients, jnp.int32(0), whole=whole)


def _products(op: Operator, basis: Tree, start: Any, count: int) -> list[Tree]:
    """The products with ``count`` rows, in one program unless the operator drives itself."""
    if op.host_driven:
        return [op.mv(ritz.row(basis, jnp.int32(start + i))) for i in range(count)]
    images = arguments.block_product(op, _rows(basis, jnp.int32(start), count))
    return [ritz.row(images, jnp.int32(i)) for i in range(count)]


def _start(op: Operator, v0: Tree, key: jax.Array, block_size: int, capacity: int):
    """The basis with the first block: ``v0`` and random vectors."""
    basis = trees.zeros(op.structure, (capacity,))
    for i in range(block_size):
        v = v0 if i == 0 else probes.probe(key, op.structure, "normal", number=i)
        basis, _ = orthonormal.append(basis, jnp.int32(i), v)
    return basis


class _Run:
    """The host's view of a run."""

    def __init__(self, op: Operator, v0: Tree, key: jax.Array, block_size: int, capacity: int):
        self.op, self.key, self.block, self.capacity = op, key, block_size, capacity
        self.basis = _start(op, v0, key, block_size, capacity)
        self.h = np.zeros((capacity, capacity))
        self.valid = np.zeros(capacity, bool)
        self.valid[: min(block_size, op.size)] = True
        self.done = self.products = self.injected = 0

    @property
    def tail(self) -> slice:
        return slice(self.done, self.done + self.block)

    def advance(self) -> None:
        """Multiply the last block; its images, made orthonormal, are the next one."""
        first, after = self.done, self.done + self.block
        columns = []
        for i, w in enumerate(_products(self.op, self.basis, first, self.block)):
            self.basis, column = orthonormal.append(self.basis, jnp.int32(after + i), w)
            columns.append(column)
        found = ritz.host_columns(columns)
        self.h[:, first:after] = found
        self.valid[after : after + self.block] = [
            found[after + i, i] > 0 for i in range(self.block)
        ]
        self.done = after
        self.products += self.block

    def inject(self) -> None:
        """A block of random vectors in the place of an empty one."""
        for i in range(self.block):
            self.injected += 1
            key = jax.random.fold_in(self.key, self.block + self.injected)
            z = probes.probe(key, self.op.structure, "normal")
            row = self.done + i
            self.basis, column = orthonormal.append(self.basis, jnp.int32(row), z)
            self.valid[row] = bool(column[row] > 0)

    def solve(self) -> None:
        """Ritz values, ascending, coefficients over all rows, and residual estimates."""
        rows = np.flatnonzero(self.valid[: self.done])
        projected = self.h[np.ix_(rows, rows)]
        self.values, inner = ritz.eigh((projected + projected.T) / 2)
        self.coefficients = np.zeros((self.capacity, len(rows)))
        self.coefficients[rows] = inner
        self.residuals = np.linalg.norm(self.h[self.tail] @ self.coefficients, axis=0)

    def departure(self, index: np.ndarray) -> float:
        """What a product makes of these pairs, less what H says of it."""
        combination = self.coefficients[:, index] @ certificates.mixture(len(index))
        scale = float(np.abs(self.values).max()) or 1.0
        self.products += 1
        found = certificates.departure(
            self.op,
            self.basis,
            combination,
            self.h @ combination / scale,
            0.0,
            trees.zeros(self.op.structure),
            scale,
        )
        return float(found)

    def restart(self, keep: np.ndarray) -> None:
        """Keep these Ritz pairs and the block to be multiplied next."""
        kept = len(keep)
        chosen = self.coefficients[:, keep]
        columns = np.zeros((self.capacity, kept + self.block))
        columns[:, :kept] = chosen
        columns[self.tail, kept:] = np.eye(self.block)
        columns = jnp.asarray(columns, trees.dtype(self.op.structure))
        self.basis = _rotate(self.basis, columns, rotations.is_shared(self.basis))
        coupling, valid = self.h[self.tail] @ chosen, self.valid[self.tail].copy()
        self.h[:] = 0
        self.h[np.arange(kept), np.arange(kept)] = self.values[keep]
        self.h[kept : kept + self.block, :kept] = coupling
        self.valid[:] = False
        self.valid[:kept] = True
        self.valid[kept : kept + self.block] = valid
        self.done = kept


def solve(
    op: Operator,
    k: int,
    which: str,
    v0: Tree,
    key: jax.Array,
    block_size: int,
    capacity: int,
    tol: float,
    budget: int,
    watch: Watch = SILENT,
) -> ritz.RitzPairs:
    """The ``k`` wanted Ritz pairs and their certificate, driven from the host.

    All start vectors but ``v0`` are drawn; at least ``k + 2 block_size`` vectors are held. The
    ``budget`` of products, one of them for the certificate, is exceeded only while there are fewer
    than k vectors.
    """
    run = _Run(op, v0, key, block_size, capacity)
    scalar = trees.dtype(op.structure)
    keep = min(k + max(2, int(0.15 * capacity)), capacity - 2 * block_size)
    sweeps, norm = 0, 0.0
    while True:
        run.advance()
        run.solve()
        norm = np.maximum(norm, np.abs(run.values).max(initial=0))  # NaN stays
        index = ritz.wanted(run.values, k, which)
        small = ritz.rounding(norm, scalar)
        good = run.residuals[index] <= np.maximum(tol * np.abs(run.values[index]), small)
        enough = len(index) == k
        if watch.wants() and np.isfinite(norm):
            best = ritz.descending(run.values, index)
            watch.report(run.products, run.values[best], run.residuals[best], ready=enough)
        spent = (enough and run.products + block_size >= budget) or watch.stopped is not None
        if len(run.values) >= op.size or spent or not np.isfinite(norm):
            break
        exhausted = not run.valid[run.tail].any()
        if enough and good.all() and (not exhausted or sweeps > k):
            break
        if exhausted:
            sweeps += 1
            run.inject()
        if run.done + 2 * block_size > capacity:
            run.restart(np.sort(ritz.wanted(run.values, keep, which)))
    index = ritz.descending(run.values, index)
    vectors = ritz.combine(run.basis, jnp.asarray(run.coefficients[:, index], scalar))
    noise = run.departure(index) if np.isfinite(norm) else np.nan
    residuals = np.hypot(run.residuals[index], noise)
    return ritz.RitzPairs(run.values[index], vectors, residuals, norm, noise, run.products)
