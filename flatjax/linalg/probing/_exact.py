"""Dimensions so small that all products cost no more than an estimate.

One rule for every estimator of traces, diagonals, norms, functions and densities: where the
dimension is at most the number of products that the call would spend, the operator is multiplied
with every unit vector, and the answer is exact: standard error 0, as many products as dimensions.

Unless the matrix is not symmetric: then a product differs from one time to the next (a loader that
draws, a low precision), or a derivative is wrong. Traces, diagonals and norms then have an error by
what the two halves differ; eigenvalues are left to the estimators, which measure their noise.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax._watching import SILENT, Watch
from flatjax.linalg.probing._estimate import DEFAULT_RTOL, Estimate, cast
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _flat as flat
from flatjax.linalg.vectors import _probes as probes
from flatjax.linalg.vectors import _span as spans
from flatjax.operators._base import Operator, operator


@jax.jit
def _unit(like: Tree, i: jax.Array) -> Tree:
    flat = jnp.zeros(trees.size(like), trees.dtype(like)).at[i].set(1)
    return probes.unflatten(flat, like)


@jax.jit
def _flat(w: Tree) -> jax.Array:
    return jnp.concatenate([a.astype(trees.dtype(w)).reshape(-1) for a in jax.tree.leaves(w)])


def matrix(op: Operator, budget: int, watch: Watch = SILENT) -> Any:
    """The dense matrix, where it costs no more than a budget of products.

    Args:
      op: the operator.
      budget: the products that an estimate would spend.
      watch: what shows the products; nothing stops before the last of them.

    Returns:
      ``(n, n)``, column by column: NumPy in float64, or traced; ``None`` where n is above the
      budget.
    """
    n = op.size
    if n > budget:
        return None
    like, product = trees.zeros(op.structure), loops.product(op)
    first = arguments.first_product(op, _unit(like, jnp.int32(0)))
    if loops.is_traced(first):

        def body(i, out):
            return out.at[i].set(_flat(product(_unit(like, jnp.asarray(i, jnp.int32)))))

        start = jnp.zeros((n, n), trees.dtype(op.structure)).at[0].set(_flat(first))
        return loops.fori(n, body, bases.vary_like(start, first), like=first).T
    columns = [first]
    for begin, after in watch.chunks(n - 1):
        columns += [product(_unit(like, jnp.int32(i + 1))) for i in range(begin, after)]
        if watch.wants():
            jax.block_until_ready(columns[-1])
            watch.report(after + 1, left=n - 1 - after, ready=False)
    flat = jax.device_get([_flat(w) for w in columns])
    return np.stack([np.asarray(a, np.float64) for a in flat], axis=1)


def noise(dense: Any, dtype: Any) -> Any:
    """The error of an entry by which the matrix is not symmetric; 0 where that is rounding.

    Args:
      dense: the matrix, of NumPy or traced.
      dtype: of the operator's vectors.
    """
    xp = jnp if loops.is_traced(dense) else np
    if xp is np and not np.isfinite(dense).all():
        return 0.0  # nothing is known, as the estimate says
    size = norm(dense, xp)
    gap = norm(dense - dense.T, xp)
    each = gap / (2**0.5 * len(dense))  # of independent errors: each difference has two
    # Of small networks (2 to 8 layers, up to 4,096 examples, float32) the gap of Hessians,
    # Gauss-Newton matrices and covariances was 0.4 to 5 units of rounding; a loader's is 1e5.
    return xp.where(gap > 1000 * jnp.finfo(dtype).eps * size, each, xp.zeros_like(each))


def residuals(dense: np.ndarray | None, op: Operator, pairs: Any) -> Any:
    """What a matrix that is not symmetric leaves of each pair; 0 without a matrix.

    No Krylov relation holds of it, and noise of one size in all directions is not what it has.

    Args:
      dense: the matrix, in the order of the leaves.
      op: the operator that the pairs are of, packed or not.
      pairs: their ``values`` and ``vectors``.
    """
    if dense is None:
        return 0.0
    leaves = jax.tree.leaves(flat.unpack(op, spans.formed(pairs.vectors)))
    vectors = np.concatenate(
        [np.asarray(a, np.float64).reshape(len(a), -1) for a in leaves], axis=1
    )
    values = np.asarray(pairs.values, np.float64)[:, None]
    return np.linalg.norm(vectors @ np.asarray(dense, np.float64).T - values * vectors, axis=1)


@operator
class Dense(Operator):
    """A dense matrix as an operator on trees: its products cost none of the operator it stands for.

    Attributes:
      entries: ``(n, n)``.
      like: a tree of zeros of the operator's structure.
    """

    entries: jax.Array
    like: Tree

    @property
    def structure(self):
        return trees.structure_of(self.like)

    def mv(self, v):
        """The product with a tree."""
        return probes.unflatten(jnp.matmul(self.entries, _flat(v), precision="highest"), self.like)


def dense_operator(op: Operator, dense: np.ndarray) -> Dense:
    """The operator of a matrix that `matrix` has found."""
    return Dense(jnp.asarray(dense, trees.dtype(op.structure)), trees.zeros(op.structure))


def eigenvalues(dense: np.ndarray) -> np.ndarray:
    """All eigenvalues of the symmetric part, ascending; NaN where it is not finite."""
    symmetric = (dense + dense.T) / 2
    finite = np.isfinite(symmetric).all()
    return np.linalg.eigvalsh(symmetric) if finite else np.full(len(dense), np.nan)


def norm(dense: Any, xp: Any = np) -> Any:
    """The Frobenius norm, of entries of any size."""
    largest = xp.abs(dense).max()
    return largest * xp.linalg.norm(dense / xp.where(largest > 0, largest, xp.ones_like(largest)))


def vector(flat: np.ndarray, structure: Tree) -> Tree:
    """A tree of this structure from its entries."""
    return probes.unflatten(cast(flat, trees.dtype(structure)), structure)


def estimate(
    value: Any, num_products: int, dtype: Any, blur: Any = 0.0, error: Any = 0.0,
    rtol: float | None = None,
) -> Estimate:  # fmt: skip
    """An `Estimate` without an error of sampling.

    Args:
      value: the value, a scalar.
      num_products: the products spent.
      dtype: that of the result.
      blur: how uncertain rounding makes the value; infinite where it says nothing.
      error: by the `noise` of the matrix.
      rtol: the relative error that counts as converged; ``None`` for that of every estimate.

    Returns:
      The estimate: not converged where the value is not finite in its dtype, or the blur is not.
    """
    value, blur, error = (cast(a, dtype) for a in (value, blur, error))
    finite = jnp.isfinite(value) & jnp.isfinite(blur)
    error = jnp.where(finite, error, jnp.inf)
    interval = jnp.stack([value - 2 * error, value + 2 * error])
    interval = jnp.where(finite, interval, jnp.asarray([-jnp.inf, jnp.inf], dtype))
    good = finite & (error <= (DEFAULT_RTOL if rtol is None else rtol) * jnp.abs(value))
    return Estimate(value, error, interval, num_products, good)
