"""What a weight of zero means, and how weights enter a mean: in one place for all operators."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import collectives, loops, trees

# Set while a batch is only a part of the data, so that its own total may be zero.
_PART = contextvars.ContextVar("flatjax_part_of_the_data", default=False)


def at_least_float32(a: jax.Array) -> jax.Array:
    """``a`` in at least float32, for sums that bfloat16 cannot hold."""
    return a.astype(trees.compute_dtype(a.dtype))


def replaced(tree: Any, counted: jax.Array) -> Any:
    """The rows that do not count replaced by a copy of the first one that does.

    Multiplying by zero is not enough: a row of padding may have a derivative that is NaN.

    Args:
      tree: a pytree whose leaves share the leading axis of ``counted``.
      counted: one flag a row. Without any the rows stay as they are: see [`where_any`][].

    Returns:
      The tree.
    """
    first = jnp.argmax(counted)

    def leaf(a):
        copy = jax.lax.dynamic_index_in_dim(a, first, 0, keepdims=True)
        return jnp.where(counted.reshape(-1, *(1,) * (a.ndim - 1)), a, copy)

    return jax.tree.map(leaf, tree)


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


def shares(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights as factors of a backward pass that no sum over the batch can overflow.

    Args:
      weights: the weights of this part's examples.

    Returns:
      ``weights / scale`` in at least float32, and the scale: their sum (of the absolute values),
      by which the answer is multiplied outside of the model.
    """
    weights = at_least_float32(weights)
    scale = jnp.abs(weights).sum()
    return weights / jnp.where(scale == 0, jnp.ones_like(scale), scale), scale


def over_devices(tree: Any, weights: Any, axis_name: collectives.AxisName) -> Any:
    """The mean over all devices' examples, of every device's sum with its [`shares`][].

    Args:
      tree: the local sums, in at least float32.
      weights: the weights of this device's examples; none that counts adds exactly zero.
      axis_name: the mesh axes over which the batch is split, or ``None``.

    Returns:
      The mean, the same on every device; NaN where the total weight is zero.
    """
    scale, total = shares(weights)[1], at_least_float32(weights).sum()
    if axis_name is not None:
        # The vector and the weight in one message.
        local = jax.tree.map(lambda a: a * scale.astype(a.dtype), tree)
        return collectives.weighted_mean(where_any(weights, local), total, axis_name)
    factor = scale / total  # exactly one, but for negative weights and a total of zero: NaN
    return jax.tree.map(lambda a: a * factor.astype(a.dtype), tree)


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
    if float(weights.sum()) == 0:
        raise ValueError(
            f"the total weight is zero ({why}): a mean needs at least one example that counts."
        )
