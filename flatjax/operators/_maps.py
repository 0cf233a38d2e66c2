"""What every linear map of trees has: a shape, a dtype, a transpose, and other forms."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from flatjax import _texts as texts
from flatjax import _trees as trees
from flatjax.operators import _scipy

_COLUMNS = 64  # columns of to_dense evaluated at once
DENSE_LIMIT = 20_000


class LinearMap:
    """A linear map from trees of one structure to trees of another."""

    @property
    def structure(self) -> Any:
        """The vectors that the map acts on, as a tree of ``jax.ShapeDtypeStruct``."""
        raise NotImplementedError

    @property
    def output_structure(self) -> Any:
        """The vectors that it gives."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, int]:
        """The dimensions of the vectors that it gives and of those that it acts on."""
        return trees.size(self.output_structure), trees.size(self.structure)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of inner products and eigenvalues: at least float32."""
        return trees.dtype((self.structure, self.output_structure))

    @property
    def T(self) -> Any:
        """The transpose; of a symmetric operator itself."""
        raise NotImplementedError

    def mv(self, v: Any) -> Any:
        """The product with ``v``, a pytree of this map's structure."""
        raise NotImplementedError

    def __matmul__(self, v: Any) -> Any:
        """The product, compiled."""
        raise NotImplementedError

    def __call__(self, v: Any) -> Any:
        """The same product."""
        return self @ v

    def to_scipy(self) -> Any:
        """A ``scipy.sparse.linalg.LinearOperator`` on flat NumPy vectors.

        In the order of ``jax.flatten_util.ravel_pytree``; [`as_operator`][] goes the other way.
        Every product crosses from the device to the host and back; use ``flatjax.eigsh`` unless
        SciPy is what you want.
        """
        return _scipy.linear_operator(self)

    def _facts(self) -> dict[str, str]:
        """What the text says beside the size: names and numbers that cost nothing to know."""
        return {}

    def __repr__(self) -> str:
        try:
            rows, columns = self.shape
            size = f"size={rows:,}" if self.T is self else f"shape=({rows:,}, {columns:,})"
        except (AttributeError, TypeError):  # a tree of other things, made by `jax.tree.map`
            size = "size=?"
        return described(self, size)


def described(op: Any, *first: str) -> str:
    """``Name(key=fact, ...)``; inside of another text without the size, which is that of both."""
    facts = op._facts() if isinstance(op, LinearMap) else {}
    inside = ", ".join([*first, *(f"{key}={fact}" for key, fact in facts.items())])
    name = type(op).__name__
    return texts.shortened(f"{name}({inside})" if inside else name)


def dense_columns(op: Any) -> jax.Array:
    """The products of a linear map with all unit vectors, raveled, one a row."""
    n, dtype = trees.size(op.structure), trees.dtype(op.structure)
    eyes = (np.eye(min(_COLUMNS, n - i), n, i) for i in range(0, n, _COLUMNS))
    return jnp.concatenate([_products(op, jnp.asarray(eye, dtype), type(op)) for eye in eyes])


@functools.partial(jax.jit, static_argnames="kind")
def _products(op, rows, kind):
    del kind  # told apart from operators of other classes, see flatjax._nodes
    unravel = ravel_pytree(trees.zeros(op.structure))[1]
    return jax.vmap(lambda row: ravel_pytree(op.mv(unravel(row)))[0])(rows)
