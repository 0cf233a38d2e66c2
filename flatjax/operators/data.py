"""What every operator over a batch of examples shares: checks at the door, weights, averaging."""

import contextlib
import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from flatjax import collectives, trees
from flatjax.operators import derivatives
from flatjax.operators.base import Operator, operator, static


class DataOperator(Operator):
    """An operator that is a weighted mean over the examples of a batch.

    Subclasses have the fields ``params``, ``axis_name`` and ``precision``, a ``weight`` and a
    ``linear`` map; the mean is taken here, in one place.
    """

    params: Any
    axis_name: collectives.AxisName
    precision: str | None
    centered = False  # True of a covariance that subtracts the mean gradient

    @property
    def structure(self):
        return trees.structure_of(self.params)

    @property
    def weight(self) -> chex.Array:
        """The total weight of this device's examples: their number, or the sum of ``weights``."""
        raise NotImplementedError

    @property
    def way(self) -> derivatives.Way:
        """How derivatives are taken, and how well."""
        raise NotImplementedError

    @property
    def method(self) -> str:
        """How derivatives are taken: a fallback where the model lacks a forward-mode rule."""
        return self.way.method

    @property
    def relative_noise(self) -> float:
        """The relative error of a product to expect: rounding, or that of finite differences."""
        return self.way.noise

    @property
    def rule(self) -> Callable[..., Any]:
        """``rule(linear, aux, v, axis_name, offset) -> local sum``; hashable, holds no data."""
        raise NotImplementedError

    @property
    def examples(self) -> int | None:
        """The number of this device's examples; ``None`` where the operator cannot be split."""
        return None

    @property
    def per_example(self) -> bool:
        """Whether every example has a term of its own, so that one can be masked."""
        return True

    def part(self, start: Any, size: int, keep: chex.Array | None) -> "DataOperator":
        """The operator over some of the examples.

        Args:
          start: the first, an integer that may be traced.
          size: how many.
          keep: a factor for the weight of each, shape ``(size,)``, or ``None`` for one.
        """
        raise NotImplementedError

    def linear(self) -> tuple[Callable[[Any], Any], Any]:
        """A linear map of the tangent and what else ``rule`` needs, at the params."""
        raise NotImplementedError

    def local_sum(self, v: Any, offset: chex.Array | None = None) -> Any:
        """The weighted *sum* over this device's examples of their products with ``v``.

        Args:
          v: the vector, in the params' dtypes.
          offset: for a centred covariance, the inner product of ``v`` with the mean gradient of
            the whole data set, where this batch is only a part of it.
        """
        linear, aux = self.linear()
        return self.rule(linear, aux, v, self.axis_name, offset)

    def prepared(self, v: Any) -> Any:
        """``v`` checked, in the params' dtypes, and varying over the named axes."""
        trees.check(v, self.structure)
        return collectives.varying(trees.cast(v, self.params), self.axis_name)

    def partial_sum(self, v: Any, offset: chex.Array | None = None) -> Any:
        """``local_sum`` of a checked ``v`` in at least float32, summed over the named axes."""
        with matmul_precision(self.precision):
            summed = self.local_sum(self.prepared(v), offset)
        return collectives.total(trees.cast(summed, self.structure), self.axis_name)

    def mv(self, v):
        weight = collectives.total(self.weight, self.axis_name)
        return jax.tree.map(lambda a: a / weight.astype(a.dtype), self.partial_sum(v))

    def linearize(self):
        linear, aux, weight = _linearized(self)
        leaves, treedef = jax.tree.flatten(self.structure)
        dtypes = tuple(a.dtype for a in jax.tree.leaves(self.params))
        return Linearized(
            linear, aux, weight, self.rule, (tuple(leaves), treedef), dtypes, self.axis_name,
            self.precision,
        )  # fmt: skip


@jax.jit
def _linearized(op):
    # Under jit with the operator as an argument, a new batch of the same shapes reuses the program
    # *and* the very function object inside the returned Partial, so products are not retraced.
    with matmul_precision(op.precision):
        return *op.linear(), op.weight


@operator
class Linearized(DataOperator):
    """A data operator whose primal pass has been evaluated; see ``Operator.linearize``."""

    linear_map: Any
    aux: Any
    total_weight: chex.Array
    linear_rule: Any = static()
    shapes: Any = static()
    dtypes: Any = static()
    axis_name: Any = static()  # type: ignore[assignment]
    precision: Any = static()  # type: ignore[assignment]

    @property
    def way(self):
        return self.linear_map.way

    @property
    def structure(self):
        leaves, treedef = self.shapes
        return jax.tree.unflatten(treedef, leaves)

    @property
    def weight(self):
        return self.total_weight

    @property
    def rule(self):
        return self.linear_rule

    def linear(self):
        return self.linear_map, self.aux

    def prepared(self, v):
        trees.check(v, self.structure)
        leaves, treedef = jax.tree.flatten(v)
        leaves = [a.astype(d) for a, d in zip(leaves, self.dtypes, strict=True)]
        return collectives.varying(jax.tree.unflatten(treedef, leaves), self.axis_name)

    def linearize(self):
        return self

    @property
    def centered(self):
        return getattr(self.linear_rule, "centered", False)

    def gradient_sum(self):
        """Of a covariance, the weighted sum of the per-example gradients over all devices."""
        v = self.prepared(trees.zeros(self.structure))
        with matmul_precision(self.precision):
            summed = self.linear_rule.gradient_sum(self.linear_map, self.aux, v)
        return collectives.total(trees.cast(summed, self.structure), self.axis_name)


def sliced(tree: Any, start: Any, size: int, axis: int = 0) -> Any:
    """``size`` entries from ``start`` on, along an axis of every leaf."""
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size, axis), tree)


def sliced_weights(
    weights: chex.Array | None, start: Any, size: int, keep: chex.Array | None
) -> chex.Array | None:
    """The weights of some examples, times ``keep`` where it is given."""
    if weights is None:
        return keep
    weights = sliced(weights, start, size)
    if keep is None:
        return weights
    return weights * keep.reshape(-1, *(1,) * (weights.ndim - 1)).astype(weights.dtype)


def at_least_float32(a: chex.Array) -> chex.Array:
    """``a`` in at least float32, for sums that bfloat16 cannot hold."""
    return a.astype(trees.compute_dtype(a.dtype))


def as_arrays(tree: Any) -> Any:
    """``tree`` with its NumPy leaves on the device, once and not at every product.

    A copy: the caller may reuse the buffers of a batch.
    """
    return jax.tree.map(lambda a: jnp.array(a) if isinstance(a, np.ndarray) else a, tree)


def matmul_precision(precision: str | None) -> contextlib.AbstractContextManager[Any]:
    """``jax.default_matmul_precision``, or nothing for ``None``."""
    if precision is None:
        return contextlib.nullcontext()
    return jax.default_matmul_precision(precision)


def transpose(linear: Any, v: Any, cotangent: Any) -> Any:
    """The transpose of a linear map of vectors like ``v``, applied to a cotangent."""
    return linear.transpose(v, cotangent)


@dataclasses.dataclass(frozen=True)
class Checked:
    """What a factory learns of its arguments.

    Attributes:
      n: the number of examples, or ``None`` for a batch without leaves.
      weights: the weights as an array, or ``None``.
    """

    n: int | None
    weights: chex.Array | None


def check_arguments(
    params: Any,
    batch: Any,
    weights: Any,
    axis_name: Any,
    precision: Any,
    *,
    token_weights: bool = False,
) -> Checked:
    """Check what every factory takes, with the fix in the message.

    Args:
      params: the trainable params.
      batch: a pytree whose leaves share a leading axis.
      weights: per-example weights or a padding mask, or ``None``.
      axis_name: a mesh axis name, a tuple of them, or ``None``.
      precision: a matmul precision, or ``None``.
      token_weights: whether weights may have more axes than the first.

    Returns:
      The number of examples, and the weights as an array.

    Raises:
      TypeError: for params that are not floating, or an ``axis_name`` that is no name.
      ValueError: for empty params, an empty batch, unequal leading axes, arrays split over Explicit
        mesh axes, weights of another shape or an unknown precision.
    """
    check_params(params)
    n = num_examples(batch)
    check_mesh((params, batch, weights))
    if weights is not None:
        weights = jnp.asarray(as_arrays(weights))
        shape = weights.shape[:1] if token_weights else weights.shape
        if n is None or shape != (n,):
            raise ValueError(
                f"weights must have one entry an example, shape ({n},), got {weights.shape}."
            )
        if not (
            jnp.issubdtype(weights.dtype, jnp.floating)
            or jnp.issubdtype(weights.dtype, jnp.integer)
            or weights.dtype == jnp.bool_
        ):
            raise TypeError(f"weights must be real numbers or a mask, got dtype {weights.dtype}.")
        weights = weights.astype(trees.dtype(params))
    for name in collectives.names(axis_name):
        if not isinstance(name, Hashable):
            raise TypeError(f"axis_name must be a name or a tuple of names, got {axis_name!r}.")
    allowed = (None, "default", "high", "highest", "bfloat16", "tensorfloat32", "float32")
    if precision not in allowed:
        raise ValueError(f"precision must be one of {allowed}, got {precision!r}.")
    return Checked(n, weights)


def check_function(fn: Any, name: str) -> None:
    """Raise unless ``fn`` can be the static part of an operator: callable and hashable."""
    if not callable(fn):
        raise TypeError(f"{name} must be a function, got {type(fn).__name__}.")
    try:
        hash(fn)
    except TypeError:
        raise TypeError(
            f"{name} must be hashable, got an unhashable {type(fn).__name__}: pass a function, and "
            "its arrays through params or *args."
        ) from None


def check_mesh(tree: Any) -> None:
    """Raise if an array is split over an Explicit mesh axis, the default of ``jax.make_mesh``.

    Derivatives of most models do not trace there: JAX asks for the ``out_sharding`` of a
    contraction or a reshape somewhere inside.
    """
    axes = collectives.explicit_axes(tree)
    if axes:
        raise ValueError(
            f"an array is split over the Explicit mesh axes {axes}, under which derivatives of a "
            "model do not trace: build the mesh with "
            "jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto,) * number_of_axes), or "
            "work inside jax.shard_map with axis_name=."
        )


def check_params(params: Any) -> None:
    """Raise unless ``params`` is a non-empty tree of real floating arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves or trees.size([leaf for _, leaf in leaves if hasattr(leaf, "shape")]) == 0:
        raise ValueError("params has no entries: pass a pytree of floating arrays.")
    for path, leaf in leaves:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            kind = type(leaf).__name__ if dtype is None else f"dtype {dtype}"
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} must be a real floating array, got {kind}: "
                "pass counters, keys and model state through *args."
            )


def num_examples(batch: Any) -> int | None:
    """The shared leading axis of a batch; ``None`` for a batch without leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if not leaves:
        return None
    sizes = {}
    for path, leaf in leaves:
        if not getattr(leaf, "shape", ()):
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} has no leading example axis: pass values that "
                "are not per example through *args."
            )
        sizes[jax.tree_util.keystr(path)] = leaf.shape[0]
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the leaves of batch must share a leading axis, got {sizes}.")
    n = next(iter(sizes.values()))
    if n == 0:
        raise ValueError("batch is empty: it needs at least one example.")
    return n


def split_batch(batch: Any) -> tuple[Any, Any]:
    """``(inputs, targets)`` of a batch, or a clear error."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(
            "batch must be a pair (inputs, targets) where a model_fn and an output loss are used, "
            f"got {type(batch).__name__}."
        )
    return batch[0], batch[1]
