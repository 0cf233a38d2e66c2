"""The operator protocol: symmetric matrices known by their products, acting on pytrees.

Operators are frozen dataclasses registered as pytrees. Data and params are leaves, functions are
static: an operator passes through ``jit``, and new values of the same shapes do not retrace.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from flatjax import _functions as functions
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax.operators._selection import Selection

T = TypeVar("T")
_COLUMNS = 64  # columns of to_dense evaluated at once
DENSE_LIMIT = 20_000


@dataclass_transform(frozen_default=True, eq_default=False)
def operator(cls: type[T]) -> type[T]:
    """Class decorator: a frozen dataclass registered as a pytree.

    Fields made with ``static()`` are metadata (functions, names, flags); all others are leaves.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    meta = [f.name for f in fields if f.metadata.get("static")]
    data = [f.name for f in fields if not f.metadata.get("static")]
    return jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=meta)


def static(**kwargs: Any) -> Any:
    """A dataclass field that is metadata of the pytree, not a leaf."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


class Operator:
    """A symmetric linear operator on pytrees with the structure of the params."""

    @property
    def host_driven(self) -> bool:
        """Whether ``mv`` loops on the host, so that it must not be traced over."""
        return False

    @property
    def structure(self) -> Any:
        """The vectors that the operator acts on, as a tree of ``jax.ShapeDtypeStruct``."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """The dimension, a Python integer."""
        return trees.size(self.structure)

    def mv(self, v: Any) -> Any:
        """The product with ``v``, a pytree of this operator's structure."""
        raise NotImplementedError

    def linearize(self) -> "Operator":
        """The same operator with its primal pass evaluated once and its residuals kept.

        Products get cheaper (a Hessian product 6 matrix products a layer instead of 9) for the
        memory of the residuals. Nothing to keep: the operator itself.
        """
        return self

    def restrict(self, selection: Selection) -> "Operator":
        """The diagonal block of the chosen leaves, for a product of the whole operator.

        An operator that has a cheaper block, or that must look into another one, overrides this.

        Args:
          selection: the chosen leaves, as [`flatjax.restrict`][] makes it of a path.

        Returns:
          An operator on trees like the params with ``None`` in place of the other leaves.
        """
        return Restricted(self, selection)

    def __matmul__(self, v: Any) -> Any:
        """The product by the compiled program that all products of this operator share."""
        return loops.product(self)(v)

    def __add__(self, other: Any) -> "Operator":
        if isinstance(other, int) and other == 0:  # where `sum` begins
            return self
        if not isinstance(other, Operator):
            return NotImplemented
        trees.check(other.structure, self.structure, "the other operator")
        return SumOperator((*_terms(self), *_terms(other)))

    __radd__ = __add__

    def __sub__(self, other: "Operator") -> "Operator":
        return NotImplemented if not isinstance(other, Operator) else self + (-1.0) * other

    def __mul__(self, factor: ArrayLike) -> "Operator":
        if isinstance(factor, Operator):
            raise TypeError("operators multiply vectors and scalars only: chain products by hand.")
        if jnp.ndim(factor) != 0:
            return NotImplemented
        return ScaledOperator(factor, self)

    __rmul__ = __mul__

    def __truediv__(self, divisor: ArrayLike) -> "Operator":
        if isinstance(divisor, Operator) or jnp.ndim(divisor) != 0:
            raise TypeError("operators are divided by scalars only; see flatjax.inverse.")
        return ScaledOperator(1 / divisor, self)

    def __neg__(self) -> "Operator":
        return self * -1.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size:,})"

    def to_dense(self) -> jax.Array:
        """The dense matrix in the order of ``jax.flatten_util.ravel_pytree``.

        Costs ``size`` products and ``size**2`` numbers; refused beyond 20,000.

        Returns:
          An array of shape ``(size, size)``.

        Raises:
          ValueError: beyond 20,000 dimensions.
        """
        if self.size > DENSE_LIMIT:
            raise ValueError(
                f"a dense matrix of {self.size:,} x {self.size:,} numbers is refused beyond "
                f"{DENSE_LIMIT:,}; use flatjax.eigsh, flatjax.trace or flatjax.spectral_density."
            )
        if self.host_driven:
            unravel = ravel_pytree(trees.zeros(self.structure))[1]
            n, dtype = self.size, trees.dtype(self.structure)
            units = (jax.nn.one_hot(i, n, dtype=dtype) for i in range(n))
            return jnp.stack([ravel_pytree(self.mv(unravel(e)))[0] for e in units], axis=1)
        return dense_columns(self).T

    def to_scipy(self) -> Any:
        """A ``scipy.sparse.linalg.LinearOperator`` on flat NumPy vectors.

        Every product crosses from the device to the host and back; use ``flatjax.eigsh`` unless
        SciPy is what you want.
        """
        from scipy.sparse.linalg import LinearOperator

        unravel = ravel_pytree(trees.zeros(self.structure))[1]
        apply, dtype = loops.product(self), np.dtype(trees.dtype(self.structure))

        def matvec(x):
            flat = jnp.asarray(np.asarray(x, dtype).reshape(-1))
            return np.asarray(ravel_pytree(apply(unravel(flat)))[0])

        shape = (self.size, self.size)
        # pyrefly: ignore[missing-argument, unexpected-keyword, bad-keyword-argument]
        return LinearOperator(shape, matvec=matvec, rmatvec=matvec, dtype=dtype)


def dense_columns(op: Any) -> jax.Array:
    """The products of a linear map with all unit vectors, raveled, one a row."""
    n, dtype = trees.size(op.structure), trees.dtype(op.structure)
    eyes = (np.eye(min(_COLUMNS, n - i), n, i) for i in range(0, n, _COLUMNS))
    return jnp.concatenate([_products(op, jnp.asarray(eye, dtype)) for eye in eyes])


@jax.jit
def _products(op, rows):
    unravel = ravel_pytree(trees.zeros(op.structure))[1]
    return jax.vmap(lambda row: ravel_pytree(op.mv(unravel(row)))[0])(rows)


def _terms(op: Operator) -> tuple[Operator, ...]:
    return op.ops if isinstance(op, SumOperator) else (op,)


@operator
class SumOperator(Operator):
    """The sum of operators of one structure, made by ``+``."""

    ops: tuple[Operator, ...]

    @property
    def host_driven(self):
        return any(op.host_driven for op in self.ops)

    @property
    def structure(self):
        return self.ops[0].structure

    def mv(self, v):
        # Beside a stream, which is driven from the host, the other terms still run compiled.
        products = [loops.product(op)(v) if self.host_driven else op.mv(v) for op in self.ops]
        return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), products)

    def linearize(self):
        return SumOperator(tuple(op.linearize() for op in self.ops))

    def restrict(self, selection):
        return SumOperator(tuple(op.restrict(selection) for op in self.ops))


class Modified(Operator):
    """An operator made of another one, ``op``, on the same vectors."""

    op: Operator

    @property
    def host_driven(self):
        return self.op.host_driven

    @property
    def structure(self):
        return self.op.structure

    def linearize(self):
        this: Any = self  # a dataclass, as every subclass is
        return dataclasses.replace(this, op=self.op.linearize())


@operator
class ScaledOperator(Modified):
    """A scalar times an operator, made by ``*``."""

    factor: Any
    op: Operator

    def mv(self, v):
        return trees.scale(self.factor, self.op.mv(v))

    def restrict(self, selection):
        return ScaledOperator(self.factor, self.op.restrict(selection))


@operator
class Restricted(Modified):
    """``R A R^T`` with ``R`` the choice of some leaves, for any operator A.

    Attributes:
      op: the operator A.
      selection: the choice.
    """

    op: Operator
    selection: Selection = static()

    @property
    def structure(self):
        return self.selection.select(self.op.structure)

    def mv(self, v):
        trees.check(v, self.structure)
        zeros = trees.zeros(self.selection.rest(self.op.structure))
        return self.selection.select(self.op.mv(self.selection.merge(v, zeros)))


@operator
class CallableOperator(Operator):
    """A plain callable ``v -> A v`` with the structure it acts on; what it captures are leaves."""

    fn: functions.Followed
    shapes: Any = static()

    @property
    def structure(self):
        leaves, treedef = self.shapes
        return jax.tree.unflatten(treedef, leaves)

    def mv(self, v):
        trees.check(v, self.structure)
        return self.fn(trees.cast(v, self.structure))


def as_operator(op: Operator | Callable[[Any], Any], structure: Any = None) -> Operator:
    """An operator from an operator or a callable.

    Args:
      op: an operator, or a traceable callable ``v -> A v`` on pytrees.
      structure: for a callable, a tree of arrays or ``ShapeDtypeStruct`` it acts on.

    Returns:
      The operator.

    Raises:
      TypeError: if ``op`` is not callable, or has another tree structure than the one given.
      ValueError: if the structure is missing, or given beside an operator of other shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax.operators import as_operator
      >>> twice = as_operator(lambda v: 2 * v, structure=jnp.ones(3))
      >>> (twice @ jnp.ones(3)).tolist()
      [2.0, 2.0, 2.0]
    """
    if isinstance(op, Operator):
        if structure is not None:
            trees.check(trees.structure_of(structure), op.structure, "structure")
        return op
    if not callable(op):
        got = f"op must be an operator or a callable v -> A v, got {type(op).__name__}"
        if hasattr(op, "shape") and hasattr(op, "dtype"):
            got += "; of a matrix a pass lambda v: a @ v and structure=a[0]"
        raise TypeError(f"{got}.")
    if structure is None:
        raise ValueError(
            "a callable needs structure=: a tree of arrays or jax.ShapeDtypeStruct like the "
            "vectors it acts on."
        )
    structure = trees.structure_of(structure)
    leaves, treedef = jax.tree.flatten(structure)
    return CallableOperator(functions.follow(op, (structure,)), (tuple(leaves), treedef))
