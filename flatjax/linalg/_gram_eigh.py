"""Exact eigenpairs of a gradient covariance, through the Gram matrix of the gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax.linalg.vectors import _basis as bases
from flatjax.operators import _gram as gram


@reading.readable
class GramSpectrum(NamedTuple):
    """The exact non-zero spectrum of a gradient covariance or second moment.

    Attributes:
      values: the eigenvalues, descending, ``k`` of them.
      vectors: the eigenvectors, trees like the params with a leading axis ``k``, of unit length; a
        vector of zeros for an eigenvalue below the floor.
      rank: how many of all ``n`` eigenvalues lie above the floor.
      noise_floor: what rounding alone makes of an eigenvalue that is zero: eigenvalues below are
        unresolved.
      trace: the sum of all eigenvalues.
    """

    values: jax.Array
    vectors: Any
    rank: jax.Array
    noise_floor: jax.Array
    trace: jax.Array


def gram_eigh(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batch: Any,
    *args: Any,
    k: int | None = None,
    centered: bool = True,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> GramSpectrum:
    r"""The exact eigenvalues and eigenvectors of the gradient covariance, through the Gram matrix.

    With $M = A A^\top = Q \Lambda Q^\top$ the eigenvectors of $K = A^\top A$ are
    $A^\top q_i / \sqrt{\lambda_i}$. No iteration, no random start: the answer is exact up to the
    rounding of $M$, about ``8 eps`` of the largest eigenvalue. Right for up to some thousand
    examples; for more, see [`eigsh`][] on [`gradient_covariance`][].

    Costs [`gradient_gram`][], an eigendecomposition of ``n x n`` (in float64 on the host when
    eager), one more gradient an example, and ``k * P`` numbers.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the per-example losses, shape ``(n,)``.
      params: a pytree of floating arrays.
      batch: a pytree whose leaves share a leading axis of ``n`` examples.
      *args: model state, dropout keys, anything else the loss takes.
      k: how many pairs, from the largest; ``None`` for all ``min(n, P)``.
      centered: whether the mean gradient is subtracted: the covariance or the second moment.
      weights: per-example weights or a padding mask, shape ``(n,)``.
      axis_name: the mesh axis over which the batch is split, inside ``shard_map`` or ``pmap``.
      chunk_size: gradients formed at once; ``None`` for all, and with ``axis_name``.
      precision: matmul precision of the gradients.

    Returns:
      The spectrum.

    Raises:
      TypeError: if ``params`` holds anything but real floating arrays.
      ValueError: as [`gradient_gram`][], or for a ``k`` below 1 or above ``min(n, P)``.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> x = jnp.array([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0]])
      >>> pairs = flatjax.gram_eigh(lambda w, x: x @ w, jnp.zeros(2), x)
      >>> pairs.values.round(3).tolist(), int(pairs.rank)
      ([2.0, 0.667], 2)
    """
    op, mean, size = gram.prepared(
        loss_fn, params, batch, args, centered, weights, axis_name, chunk_size, precision
    )
    most = min(op.examples * collectives.axis_size(axis_name), op.size)
    k = most if k is None else k
    checks.check_count("k", k)
    if k > most:
        raise ValueError(f"k must lie between 1 and min(n, P) = {most}, got {k}.")
    matrix = gram.matrix(op, mean, size)
    values, q = _eigh(matrix, k)
    largest = jnp.maximum(values[0], jnp.zeros_like(values[0]))
    # An entry of M is a sum with pairwise rounding of a few eps; a symmetric perturbation of that
    # size moves an eigenvalue by at most its norm.
    floor = 8 * jnp.finfo(values.dtype).eps * largest
    vectors = gram.back_projected(op, mean, q[:, :k], size)
    resolved = values[:k] > floor
    lengths = jnp.sqrt(jnp.where(resolved, values[:k], jnp.ones_like(values[:k])))
    factor = resolved.astype(values.dtype) / lengths

    return GramSpectrum(
        values[:k],
        bases.scale_rows(factor, vectors),
        (values > floor).sum(),
        floor,
        jnp.trace(matrix),
    )


def _eigh(matrix, k):
    """All eigenvalues, ``k`` eigenvectors, descending; eager, in float64 on the host."""
    if loops.is_traced(matrix):
        values, q = jnp.linalg.eigh(matrix)
        return values[::-1], q[:, ::-1][:, :k]
    host = np.asarray(matrix, np.float64)
    if np.isfinite(host).all():
        values, q = np.linalg.eigh(host)
    else:  # as on the device; NumPy's decomposition raises
        values, q = np.full(len(host), np.nan), np.full(host.shape, np.nan)
    q = np.ascontiguousarray(q[:, ::-1][:, :k])
    return jnp.asarray(values[::-1], matrix.dtype), jnp.asarray(q, matrix.dtype)
