"""What a weight of zero means, and how weights enter a mean: in one place for all operators."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _collectives as collectives
from flatjax import _loops as loops
from flatjax import _trees as trees

# Set while a batch is only a part of the data, so that its own total may be zero.
_PART = contextvars.ContextVar("flatjax_part_of_the_data", default=False)


def at_least_float32(a: jax.Array) -> jax.Array:
    """``a`` in at least float32, for sums that bfloat16 cannot hold."""
    return a.astype(trees.compute_dtype(a.dtype))


def replaced(tree: Any, counted: jax.Array) -> Any:
    """The rows that do not count replaced by a copy of the first one that does.

    Multiplying by zero is not enough: a row of padding may have a derivative that is NaN. The copy
    is picked by a sum: slicing an axis that is split over devices would gather all of it.

    Args:
      tree: a pytree whose leaves share the leading axis of ``counted``.
      counted: one flag a row. Without any the rows stay as they are: see [`where_any`][].
    """
    first = jnp.argmax(counted)
    pick = jnp.arange(counted.shape[0]) == first

    def leaf(a):
        over = (-1, *(1,) * (a.ndim - 1))
        if a.dtype == jnp.bool_:
            copy = (a & pick.reshape(over)).any(axis=0, keepdims=True)
        elif jnp.issubdtype(a.dtype, jnp.number):
            chosen = jnp.where(pick.reshape(over), a, jnp.zeros_like(a))
            copy = chosen.sum(axis=0, keepdims=True, dtype=a.dtype)
        else:  # keys
            copy = jax.lax.dynamic_index_in_dim(a, first, 0, keepdims=True)
        return jnp.where(counted.reshape(over), a, copy)

    return jax.tree.map(leaf, tree)


@jax.jit
def _replaced(tree, weights):
    counted = weights != 0
    return replaced(tree, counted.reshape(counted.shape[0], -1).any(axis=1))


def with_copies(tree: Any, weights: Any) -> Any:
    """Rows of weights ``(n, ...)`` as an operator holds them: [`replaced`][] where needed."""
    if weights is None:
        return tree
    # Known to count, every one: no copy of the batch. Not asked for a part of a stream, where the
    # host would wait for the device at every batch.
    asked = not (_PART.get() or loops.is_traced(weights))
    whole = asked and getattr(weights, "is_fully_addressable", True)
    if whole and bool((np.asarray(weights) != 0).all()):  # by NumPy: inside jit JAX would trace
        return tree
    return _replaced(tree, weights)


def where_rows(counted: jax.Array, rows: Any) -> Any:
    """Exactly zero in place of the rows that do not count, whatever they hold."""

    def leaf(a):
        flags = counted.reshape(*counted.shape, *(1,) * (a.ndim - counted.ndim))
        return jnp.where(flags, a, jnp.zeros_like(a))

    return jax.tree.map(leaf, rows)


def where_any(weights: jax.Array, tree: Any) -> Any:
    """The tree, or exactly zero where no weight differs from zero."""
    there = (weights != 0).any()
    return jax.tree.map(lambda a: jnp.where(there, a, jnp.zeros_like(a)), tree)


def size_of(weights: Any) -> Any:
    """The mean absolute weight, or ``None``: what keeps [`shares`][] of the order of 1 / n.

    Found once, by the factory: in a product over a sharded batch it would be one more message. Only
    the rounding depends on it.
    """
    if weights is None:
        return None
    size = jnp.abs(at_least_float32(weights)).mean()
    return jnp.where(size > 0, size, jnp.ones_like(size))


def shares(weights: jax.Array, scale: Any) -> jax.Array:
    """Weights as factors of a backward pass that no sum over the batch can overflow.

    Args:
      weights: the weights of this part's examples.
      scale: about their sum; by it the answer is multiplied outside of the model.

    Returns:
      ``weights / scale`` in at least float32.
    """
    weights = at_least_float32(weights)
    return weights / jnp.asarray(scale, weights.dtype)


def over_devices(tree: Any, weights: Any, scale: Any, axis_name: collectives.AxisName) -> Any:
    """The mean over all devices' examples, of every device's sum with its [`shares`][].

    Args:
      tree: the local sums, in at least float32.
      weights: the weights of this device's examples; none that counts adds exactly zero.
      scale: that of the shares.
      axis_name: the mesh axes over which the batch is split.

    Returns:
      The mean, the same on every device; NaN where the total weight is zero.
    """
    total = at_least_float32(weights).sum()
    scale = jnp.asarray(scale, total.dtype)
    if axis_name is None:
        factor = scale / total  # one for equal weights; infinite, times zero, for a total of zero
        return jax.tree.map(lambda a: a * factor.astype(a.dtype), tree)
    # The vector and the weight in one message.
    local = jax.tree.map(lambda a: a * scale.astype(a.dtype), tree)
    return collectives.weighted_mean(where_any(weights, local), total, axis_name)


@contextlib.contextmanager
def part_of_the_data() -> Iterator[None]:
    """Within it a batch may have a total weight of zero: others follow."""
    token = _PART.set(True)
    try:
        yield
    finally:
        _PART.reset(token)


def check_total(weights: Any, why: str = "all weights are zero") -> None:
    """Raise ``ValueError`` if concrete weights add up to zero, unless others follow."""
    if weights is None or _PART.get() or loops.is_traced(weights):
        return
    if not getattr(weights, "is_fully_addressable", True):
        return
    if float(np.asarray(weights).sum()) == 0:
        raise ValueError(
            f"the total weight is zero ({why}): a mean needs at least one example that counts."
        )
