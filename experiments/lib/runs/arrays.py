"""What a tree of arrays is made of: its bits, its shapes, and keys as the numbers they are.

As checkpoints need it, see `experiments.lib.runs.checkpoint`.
"""

from __future__ import annotations

import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def own(tree: Any) -> Any:
    """The copy of a replicated tree that this process has on its first device.

    Raises:
      ValueError: an array is spread over several processes.
    """
    if jax.process_count() == 1:
        return tree

    def copy(path, x):
        if not x.is_fully_replicated:
            raise ValueError(
                f"{jax.tree_util.keystr(path)} is spread over the processes: replicate it, or save "
                "it with orbax directly"
            )
        return x.addressable_data(0)

    return jax.tree_util.tree_map_with_path(copy, tree)


def structure(tree: Any) -> str:
    """A text that two trees share if one can be restored into the other."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    parts = (f"{jax.tree_util.keystr(path)}:{x.dtype}{list(x.shape)}" for path, x in leaves)
    return re.sub(r"\s", "", "; ".join(parts))


@jax.jit
def checksum(tree: Any) -> jax.Array:
    """A 32-bit sum over the bits of all leaves: exact, whatever the sharding or the order.

    Each word is multiplied by an odd number that depends on its leaf's name and its place, a
    bijection modulo 2^32: one changed word always changes the sum. Names, not positions, so that
    the same arrays restored as plain dicts have the same sum.
    """
    total = jnp.zeros((), jnp.uint32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        words = _words(leaf)
        place = jax.lax.iota(jnp.uint32, words.size) + jnp.uint32(zlib.crc32(name.encode()))
        odd = place * jnp.uint32(0x9E3779B1) * jnp.uint32(2) + jnp.uint32(1)
        total = total + jnp.sum(words * odd, dtype=jnp.uint32)
    return total


def _words(leaf: jax.Array) -> jax.Array:
    """The bits of an array as a flat array of uint32."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32).reshape(-1)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32).reshape(-1)


def copied(leaf: jax.Array) -> np.ndarray:
    """The numbers on the host, in memory of their own: the next update frees the array."""
    return np.array(_plain(leaf))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    """Keys as they are stored, the other arrays as they are."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def plain_abstract(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    stored = jax.eval_shape(_plain, leaf)
    return jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=leaf.sharding)


def typed(leaf: jax.Array, abstract: jax.ShapeDtypeStruct) -> jax.Array:
    if not _is_key(abstract):
        return leaf
    found = []  # `key_impl` takes arrays and tracers only
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), abstract)
    return jax.random.wrap_key_data(leaf, impl=found[0])


def like_checksum(tree: Any) -> jax.ShapeDtypeStruct:
    sharding = next((x.sharding for x in jax.tree.leaves(tree)), None)
    if isinstance(sharding, jax.sharding.NamedSharding):
        sharding = jax.sharding.NamedSharding(sharding.mesh, jax.P())
    return jax.ShapeDtypeStruct((), jnp.uint32, sharding=sharding)
