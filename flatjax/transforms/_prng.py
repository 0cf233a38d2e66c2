"""PRNG keys, in states and among the arguments of the caller's functions, and normal draws."""

from collections.abc import Callable
from typing import Any

import jax

from flatjax import _trees as trees
from flatjax._trees import Tree


def initial(seed: Any) -> jax.Array:
    """The key of a seed as the integers behind it, which every kind of checkpoint can hold."""
    return jax.random.key_data(jax.random.key(seed))


def of_step(data: jax.Array, count: jax.Array) -> jax.Array:
    """The key of step ``count``, from the integers in the state."""
    return jax.random.fold_in(jax.random.wrap_key_data(data), count)


def normal_like(key: jax.Array, tree: Tree) -> Tree:
    """Standard normal entries of the shapes of ``tree``, in at least float32."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    draws = [
        jax.random.normal(k, a.shape, trees.compute_dtype(a.dtype))
        for k, a in zip(keys[: len(leaves)], leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, draws)


def fold(tree: Tree, data: Any) -> Tree:
    """Every typed key folded with ``data``; legacy uint32 keys cannot be told from data."""
    return _map(lambda key: jax.random.fold_in(key, data), tree)


def cloning(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn``, to be called several times with the same keys on purpose.

    Two passes see the same dropout; the clones say so to JAX's key-reuse checker.
    """

    def call(*args, **kwargs):
        args, kwargs = _map(jax.random.clone, (args, kwargs))
        return fn(*args, **kwargs)

    return call


def _map(fn, tree):
    def leaf(a):
        if hasattr(a, "dtype") and jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key):
            return fn(a) if a.ndim == 0 else a
        return a

    return jax.tree.map(leaf, tree)
