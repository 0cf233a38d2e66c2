"""The small projected problem: which Ritz pairs are wanted, and how far they are from exact.

Every function takes NumPy arrays (the projected matrix in float64 on the host) or JAX arrays (the
working dtype, while tracing) and answers in kind.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax._trees import Tree
from flatjax.linalg.vectors import _basis as bases

WHICH = ("LA", "SA", "LM", "BE")

combine = jax.jit(bases.combine)
row = jax.jit(bases.row)


class RitzPairs(NamedTuple):
    """The wanted Ritz pairs of a Krylov space, and their certificate.

    Attributes:
      values: ``(k,)``, descending, float64 on the host.
      vectors: the Ritz vectors, a tree with leading axis k.
      residual_norms: ``(k,)``.
      norm: the largest Ritz value in magnitude, of all computed.
      noise: the noise of a product.
      num_products: the products spent.
      complete: whether a search has shown that no wanted pair is missing; ``None`` without one.
      state: the run to go on from, if it was to be kept.
    """

    values: np.ndarray
    vectors: Tree
    residual_norms: np.ndarray
    norm: float
    noise: float
    num_products: int
    complete: bool | None = None
    state: Any = None


def tridiagonal(alphas: Any, betas: Any) -> Any:
    """The dense symmetric tridiagonal matrix; the last of ``betas`` is not used."""
    if isinstance(alphas, np.ndarray):
        return np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
    return jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)


def eigh(matrix: Any) -> tuple[Any, Any]:
    """Ascending eigenvalues and eigenvectors in columns, float64 on the host where it can be.

    NaN throughout for a matrix that is not finite, on the host as on the device.
    """
    if isinstance(matrix, np.ndarray):
        if not np.isfinite(matrix).all():
            return np.full(matrix.shape[:-1], np.nan), np.full(matrix.shape, np.nan)
        values, vectors = np.linalg.eigh(matrix)
        return values, vectors
    # The matrix is symmetric by construction; symmetrising it once more costs a transpose.
    values, vectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
    return values, vectors


def wanted(values: Any, k: int, which: str) -> Any:
    """The indices of the ``k`` wanted among ascending values, best first at each end.

    For ``BE`` the first ceil(k/2) come from the top.
    """
    n = values.shape[0]
    xp = np if isinstance(values, np.ndarray) else jnp
    k = min(k, n)
    top, bottom = np.arange(n - 1, -1, -1), np.arange(n)
    if which == "LA":
        return xp.asarray(top[:k])
    if which == "SA":
        return xp.asarray(bottom[:k])
    if which == "BE":
        high = (k + 1) // 2
        return xp.asarray(np.concatenate([top[:high], bottom[: k - high]]))
    return xp.argsort(-xp.abs(values), stable=True)[:k]


def descending(values: Any, index: Any) -> Any:
    """``index`` reordered so that ``values[index]`` descend."""
    xp = np if isinstance(values, np.ndarray) else jnp
    return index[xp.argsort(-values[index], stable=True)]


def best(values: np.ndarray, k: int, which: str) -> np.ndarray:
    """The indices of the ``k`` wanted among values in any order, best first at each end."""
    order = np.argsort(values, stable=True)
    return order[wanted(values[order], k, which)]


def rounding(norm: Any, dtype: Any) -> Any:
    """What rounding alone leaves of a residual: 16 eps times the operator's norm."""
    return 16 * float(jnp.finfo(dtype).eps) * norm


def to_host(tree: Any) -> Any:
    """NumPy arrays, floating ones in float64."""
    host = jax.device_get(tree)
    return jax.tree.map(
        lambda a: a.astype(np.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, host
    )


def host_columns(columns: list) -> np.ndarray:
    """Vectors on the device as the columns of a float64 matrix on the host."""
    return np.stack([np.asarray(c, np.float64) for c in jax.device_get(columns)], axis=1)


def masses(vectors: Any, dtype: Any) -> Any:
    """The weights of Gauss nodes: the squared first components of the eigenvectors in columns.

    Those below rounding are zero. They belong to directions that the start vector does not have,
    and their nodes may lie far from the spectrum: near zero, where vectors have been projected out
    of a positive definite operator.
    """
    xp = jnp if isinstance(vectors, jax.Array) else np
    weights = xp.square(vectors[..., 0, :])
    # Seen in float32: up to (170 eps)^2.
    least = (256 * float(jnp.finfo(dtype).eps)) ** 2
    return xp.where(weights < least, xp.zeros((), weights.dtype), weights)
