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
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from flatjax import _functions as functions
from flatjax import _loops as loops
from flatjax import _nodes as nodes
from flatjax import _texts as texts
from flatjax import _trees as trees
from flatjax.operators import _scipy
from flatjax.operators._maps import DENSE_LIMIT, LinearMap, dense_columns, described
from flatjax.operators._selection import Selection

Class = TypeVar("Class")
_TERMS = 4  # of a sum, in its text


@dataclass_transform(frozen_default=True, eq_default=False)
def operator(cls: type[Class]) -> type[Class]:
    """Class decorator: a frozen dataclass registered as a pytree.

    Fields made with ``static()`` are metadata (functions, names, flags); all others are leaves.
    """
    return nodes.register(dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls), LinearMap)


def static(**kwargs: Any) -> Any:
    """A dataclass field that is metadata of the pytree, not a leaf."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


class Operator(LinearMap):
    """A symmetric linear operator on pytrees with the structure of the params.

    ``op @ v``, or ``op(v)``, is a product. ``op.T`` is the operator itself.

    One of your own is a subclass with ``structure``, a tree of ``jax.ShapeDtypeStruct``, and
    ``mv(v)``, that is registered as a pytree: products are compiled once, with the arrays of the
    operator as arguments. Every array that ``mv`` reads must be a field: of one that it, or a
    function in a static field, reads from outside, the program keeps the value of its first call.
    Where ``mv`` works on the host it has ``host_driven = True`` instead. For a product that is a
    mere function, whose captured arrays are followed, see ``structure=`` of [`eigsh`][] and the
    other methods.

    Example:
      >>> import dataclasses
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> @jax.tree_util.register_dataclass
      ... @dataclasses.dataclass(frozen=True)
      ... class Diagonal(flatjax.Operator):
      ...     entries: jax.Array
      ...
      ...     @property
      ...     def structure(self):
      ...         return jax.ShapeDtypeStruct(self.entries.shape, self.entries.dtype)
      ...
      ...     def mv(self, v):
      ...         return self.entries * v
      >>> D = Diagonal(jnp.array([3.0, 1.0]))
      >>> (2 * D @ jnp.ones(2)).tolist()
      [6.0, 2.0]
      >>> flatjax.eigsh(D, 1, key=jax.random.key(0)).values.round(4).tolist()
      [3.0]
    """

    @property
    def host_driven(self) -> bool:
        """Whether ``mv`` loops on the host, so that it must not be traced over."""
        return False

    @property
    def size(self) -> int:
        """The dimension, a Python integer."""
        return trees.size(self.structure)

    @property
    def output_structure(self) -> Any:
        """The vectors that it gives: those that it acts on."""
        return self.structure

    @property
    def T(self) -> "Operator":
        """The operator itself: it is symmetric."""
        return self

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
        if jnp.iscomplexobj(factor):
            raise TypeError(f"operators are real, and cannot be multiplied by {factor}.")
        return ScaledOperator(factor, self)

    __rmul__ = __mul__

    def __truediv__(self, divisor: ArrayLike) -> "Operator":
        if isinstance(divisor, Operator) or jnp.ndim(divisor) != 0:
            raise TypeError("operators are divided by scalars only; see flatjax.inverse.")
        return ScaledOperator(1 / divisor, self)

    def __neg__(self) -> "Operator":
        return self * -1.0

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

    def _facts(self):
        terms = [described(op) for op in self.ops[:_TERMS]]
        more = len(self.ops) - _TERMS
        return {"of": " + ".join([*terms, *([f"{more:,} more"] if more > 0 else [])])}


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

    def _facts(self):
        return {"of": described(self.op)}


@operator
class ScaledOperator(Modified):
    """A scalar times an operator, made by ``*``."""

    factor: Any
    op: Operator

    def mv(self, v):
        return trees.scale(self.factor, self.op.mv(v))

    def restrict(self, selection):
        return ScaledOperator(self.factor, self.op.restrict(selection))

    def _facts(self):
        return {"factor": texts.text(self.factor), **super()._facts()}


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

    def _facts(self):
        return {"leaves": self.selection.counted, **super()._facts()}


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

    def _facts(self):
        return {"of": self.fn.name}


class OnHost(Operator):
    """An operator that multiplies on the host: not a pytree, and never an argument of ``jit``."""

    @property
    def host_driven(self):
        return True

    @property
    def weak_type(self) -> bool:
        """Asked for by JAX when it takes the operator for an array, for its shape and dtype."""
        raise self._traced()

    def _traced(self) -> TypeError:
        return TypeError(
            f"{type(self).__name__} is driven from the host and cannot be traced: call the "
            "estimator outside jit, vmap and grad, or use an operator whose data are on the device."
        )


class HostOperator(OnHost):
    """A matrix or linear operator of SciPy; made by [`as_operator`][].

    Not a pytree: it multiplies on the host, and tracing over a product is a TypeError.
    """

    def __init__(self, matrix: Any, structure: Any):
        self._apply, self._structure = _scipy.product(matrix, structure)
        self._kind = type(matrix).__name__

    @property
    def structure(self):
        return self._structure

    def mv(self, v):
        if loops.is_traced(v):
            raise self._traced()
        trees.check(v, self.structure)
        return self._apply(trees.cast(v, self.structure))

    def _facts(self):
        return {"of": self._kind}


def as_operator(op: Operator | Callable[[Any], Any] | Any, structure: Any = None) -> Operator:
    """An operator from an operator, a callable, or a matrix of SciPy.

    Args:
      op: an operator; a traceable callable ``v -> A v`` on pytrees; or a symmetric sparse matrix or
        ``LinearOperator`` of SciPy, which multiplies on the host. That a ``LinearOperator`` is
        symmetric is taken for granted.
      structure: of a callable, a tree of arrays or ``ShapeDtypeStruct`` it acts on; of a matrix
        likewise, with its rows in the order of ``ravel_pytree``, where vectors are not flat.

    Returns:
      The operator.

    Raises:
      TypeError: if ``op`` is none of these, has another tree structure than the one given, or is
        complex.
      ValueError: if the structure of a callable is missing, if one is given beside an operator of
        other shapes, or for a matrix that is not square or not symmetric.

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
    if _scipy.is_scipy(op):
        return HostOperator(op, structure)
    if isinstance(op, LinearMap):
        raise TypeError(
            f"operators are symmetric, got {op!r}: pass a product such as flatjax.ntk, or "
            "lambda v: J.T(J(v)) with structure=J.structure."
        )
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
