"""How the numbers of a basis are held, and passes over its vectors in blocks of their entries.

Rows of bfloat16 or float16 are computed with in float32, and what rotates a basis in place needs
the old rows beside the new ones: both of one block at a time, and not of whole vectors.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Entries of vectors that are rotated at once: so many of 64 rows are 4 MB. Of long vectors a
# GPU would wait for the host between so small ones.
BLOCK, MOST_BLOCKS = 1 << 14, 256


def is_low(b: jax.Array) -> bool:
    """Whether rows are held in 16 bits: computed with in blocks, or all would be in float32."""
    return b.dtype in (jnp.uint16, jnp.float16)


def stored_in(name: Any) -> Any:
    """The dtype of the arrays of a basis of ``"bfloat16"`` or ``"float16"``."""
    # XLA's CPU backend slices and updates no bfloat16: it makes a float32 copy of the whole array.
    return jnp.uint16 if jnp.dtype(name) == jnp.bfloat16 else jnp.dtype(name)


def held(x: jax.Array, dtype: Any) -> jax.Array:
    """Numbers as a basis of this dtype holds them; uint16 for the bits of bfloat16."""
    if dtype == jnp.uint16:
        return lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
    return x.astype(dtype)


def read_as(b: jax.Array, dtype: Any) -> jax.Array:
    """What a basis holds, as numbers of this dtype."""
    if b.dtype == jnp.uint16:
        b = lax.bitcast_convert_type(b.astype(jnp.uint32) << 16, jnp.float32)
    return b.astype(dtype)


_bits = jax.jit(lambda b: lax.bitcast_convert_type(b, jnp.bfloat16), donate_argnums=0)


def in_own_dtype(b: jax.Array) -> jax.Array:
    """The rows of a finished run in the same memory: as bfloat16 where its bits are held."""
    if b.dtype != jnp.uint16:
        return b
    if jax.default_backend() != "cpu":
        return _bits(b)
    # XLA's CPU backend would hold all of it a second time, as long as a float32 basis.
    bits = np.asarray(b).view(jnp.bfloat16)
    return jax.device_put(bits, b.sharding if b.committed else None)


def read(flat: jax.Array, start: Any, n: int) -> jax.Array:
    """The block of n entries of all rows."""
    return lax.dynamic_slice_in_dim(flat, start, n, 1)


def write(flat: jax.Array, block: jax.Array, start: Any) -> jax.Array:
    """The rows with this block of entries."""
    return lax.dynamic_update_slice_in_dim(flat, block, start, 1)


def by_blocks(body: Any, carry: Any, flat: jax.Array) -> Any:
    """``carry = body(start, n, carry)`` over blocks of n entries, the last of what is left."""
    size = flat.shape[1]
    n = max(BLOCK, -(-size // MOST_BLOCKS))
    count, rest = divmod(size, n)
    if count:
        carry = lax.fori_loop(0, count, lambda i, c: body(i * n, n, c), carry)
    return body(jnp.int32(count * n), rest, carry) if rest else carry
