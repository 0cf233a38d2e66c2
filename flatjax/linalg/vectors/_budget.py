"""How many vectors of a Krylov basis a number of bytes holds."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _checks as checks
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


def beside_spectrum(k: int, num_bottom: int, num_probes: int, probe_steps: int, more: bool) -> int:
    """The vectors that a lean `spectrum` holds beside the rows of its first run, at the most.

    Args:
      k: the largest pairs.
      num_bottom: the smallest.
      num_probes: the probes that start a run.
      probe_steps: the steps of each.
      more: whether there is a diagonal or there are groups.
    """
    kept = 4 if num_bottom else 2  # of each probe, to be searched for what is missing
    # The next vector of the first run; the probe and its product, given and in units of its norm.
    common = 4 + 4 * more
    # The run of the last probe, with a product and what a step needs.
    probing = common + probe_steps + 4 + kept * (num_probes - 1)
    # What is kept of it, and once and a half as much in the making; its basis, for the groups.
    keeping = common + kept * num_probes + 3 * kept // 2 + more * probe_steps
    # The pairs, those at the top once more in the leaves' shapes, and what was searched.
    ending = 2 * k + num_bottom + kept * num_probes
    return max(probing, keeping, ending)


def steps_within(basis_bytes: int, structure: Tree, wanted: int, beside: int) -> int:
    """The steps of a run that fit into so many bytes together with other vectors.

    Raises:
      TypeError: if the bytes are no number.
      ValueError: if they are not positive, or too few for as many steps as there are ``wanted``
        pairs.
    """
    checks.check_scalar("basis_bytes", basis_bytes, above=0)
    rows, least = rows_within(basis_bytes, structure, beside), min(wanted, trees.size(structure))
    if rows < least:
        need = (least + beside) * vector_bytes(structure)
        raise ValueError(
            f"basis_bytes={basis_bytes:,} is too little: {wanted} pairs need a run of at least "
            f"{least} vectors and {beside} vectors beside it, {need:,} bytes. Raise it, ask for "
            "fewer pairs, probes or probe_steps, or shard the params over more devices."
        )
    return rows


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
