"""SciPy's linear operators, which multiply flat NumPy vectors, there and back."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from flatjax import _trees as trees

_ROUNDING = 1e-5  # asymmetry beside the largest entry that a matrix assembled in float32 may have


def linear_operator(op: Any) -> Any:
    """A linear map of trees as a ``scipy.sparse.linalg.LinearOperator``."""
    from scipy.sparse.linalg import LinearOperator

    dtype = np.dtype(op.dtype)
    forward = _on_numpy(op, dtype)
    backward = forward if op.T is op else _on_numpy(op.T, dtype)
    # pyrefly: ignore[missing-argument, unexpected-keyword, bad-keyword-argument]
    return LinearOperator(op.shape, matvec=forward, rmatvec=backward, dtype=dtype)


def _on_numpy(op: Any, dtype: np.dtype) -> Callable[[Any], np.ndarray]:
    unravel = ravel_pytree(trees.zeros(op.structure))[1]

    def matvec(x):
        v = trees.cast(unravel(jnp.asarray(np.asarray(x, dtype).reshape(-1))), op.structure)
        return np.asarray(ravel_pytree(op @ v)[0])

    return matvec


def is_scipy(value: Any) -> bool:
    """Whether this is a matrix or a linear operator of SciPy, found without importing it."""
    return hasattr(value, "shape") and any(
        cls.__module__.partition(".")[0] == "scipy" for cls in type(value).__mro__
    )


def product(matrix: Any, structure: Any) -> tuple[Callable[[Any], Any], Any]:
    """The product of trees with a matrix of SciPy, and the structure of the trees.

    Args:
      matrix: a square linear operator or sparse matrix of real numbers.
      structure: of the vectors, of as many entries; ``None`` for a flat array.

    Raises:
      TypeError: for complex numbers.
      ValueError: for a matrix that is not square, a sparse one that is not symmetric, or a
        structure of another size.
    """
    name, shape = type(matrix).__name__, matrix.shape
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(
            f"op is a {name} of shape {shape}, and operators are symmetric: pass the product "
            "a.T @ a or a @ a.T."
        )
    if np.issubdtype(matrix.dtype, np.complexfloating):
        raise TypeError(f"op is a {name} of complex numbers: operators are real and symmetric.")
    if hasattr(matrix, "tocsr"):
        matrix = matrix.tocsr()  # not every format knows its largest entry
        if abs(matrix - matrix.T).max() > _ROUNDING * abs(matrix).max():
            raise ValueError(
                f"op is a {name} that is not symmetric, and operators are: pass (a + a.T) / 2 for "
                "its symmetric part."
            )
    wide = np.result_type(matrix.dtype, np.float32)
    if structure is None:
        structure = jax.ShapeDtypeStruct(shape[:1], jax.dtypes.canonicalize_dtype(wide))
    structure = trees.structure_of(structure)
    if trees.size(structure) != shape[0]:
        raise ValueError(
            f"structure has {trees.size(structure):,} entries, and op is a {name} of shape {shape}."
        )

    def apply(v):
        flat, unravel = ravel_pytree(v)
        return unravel(jnp.asarray(matrix @ np.asarray(flat, wide), flat.dtype))

    return apply, structure
