"""How many vectors of a Krylov basis a number of bytes holds."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _trees as trees
from flatjax._trees import Tree

# The vector to be multiplied next, its product and two temporary ones.
BESIDE = 4


def vector_bytes(structure: Tree, dtype: Any = None) -> int:
    """The bytes of a vector on one device, its numbers in their own dtype or another one."""
    total = 0
    for a in jax.tree.leaves(structure):
        sharding = trees.sharding_of(a)
        shape = a.shape if sharding is None else sharding.shard_shape(a.shape)
        total += math.prod(shape) * jnp.dtype(dtype or a.dtype).itemsize
    return total


def rows_within(budget: float, structure: Tree, beside: int = BESIDE, dtype: Any = None) -> int:
    """The rows of a basis that fit into so many bytes together with other vectors.

    Args:
      budget: the bytes, of one device.
      structure: that of a vector.
      beside: the other vectors.
      dtype: that of the basis; default: that of the vectors.

    Returns:
      A number of rows, 0 or more.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax.linalg.vectors import _budget as budget
      >>> budget.rows_within(4000, jnp.zeros(100))
      6
      >>> budget.rows_within(4000, jnp.zeros(100), dtype="bfloat16")
      12
    """
    left = budget - beside * vector_bytes(structure)
    return max(0, int(left // vector_bytes(structure, dtype)))
