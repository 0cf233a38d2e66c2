"""Products of stacked matrices as XLA's CPU backend likes them: of two matrices.

A dense layer of inputs of shape (examples, positions, width) is a product that keeps two axes, and
the gradient of its kernel one that sums over two. XLA makes matrices of them too, but only after it
has chosen layouts, and copies what a reshape would have left in its place: gradients of a GPT and a
ViT take 1.4 to 1.9 times as long (`benchmarks/user_size.py`). [`form_of`][] says where the axes
stand so that nothing has to be moved. The sums are the same but for their order.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.extend.core import primitives

# For each operand the axis of its matrix that is summed over.
Form = tuple[int, int]


def form_of(params: Any, left: Any, right: Any) -> Form | None:
    """Where the matrices are summed over; ``None`` where the product is to stay as it is.

    Args:
      params: of the operation.
      left: the abstract value of its first operand.
      right: of its second.
    """
    summed, batch = params["dimension_numbers"]
    if any(batch) or max(left.ndim, right.ndim) < 3 or params.get("out_sharding") is not None:
        return None
    if any(axis is not None for a in (left, right) for axis in a.sharding.spec):
        return None  # axes of a mesh that types name would have to be merged
    first, second = (
        _axis(a.ndim, tuple(axes)) for a, axes in zip((left, right), summed, strict=True)
    )
    return None if first is None or second is None else (first, second)


def _axis(ndim: int, summed: tuple[int, ...]) -> int | None:
    """0 or 1 where the axes that are summed over come first or last, in their order."""
    count = len(summed)
    if not 0 < count < ndim:
        return None
    for axis, first in enumerate((0, ndim - count)):
        if summed == tuple(range(first, first + count)):
            return axis
    return None


def product(params: Any, form: Form) -> Callable[..., Any]:
    """The product as one of two matrices."""

    def multiply(left, right):
        shape, matrices = [], []
        for a, axes, axis in zip((left, right), params["dimension_numbers"][0], form, strict=True):
            count = len(axes)
            cut = count if axis == 0 else a.ndim - count
            matrices.append(jnp.reshape(a, (math.prod(a.shape[:cut]), math.prod(a.shape[cut:]))))
            shape += a.shape[cut:] if axis == 0 else a.shape[:cut]
        numbers = ((form[:1], form[1:]), ((), ()))
        found = primitives.dot_general_p.bind(*matrices, **{**params, "dimension_numbers": numbers})
        return jnp.reshape(found, shape)

    return multiply
