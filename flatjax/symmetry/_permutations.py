"""Permutations of a spec's groups: drawn, checked, and applied to params."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax._trees import Tree
from flatjax.symmetry._factors import Factors, parent_of, permuted
from flatjax.symmetry._spec import Spec, factors_by_leaf

Permutations = dict[str, np.ndarray]


def random_permutations(spec: Spec, *, key: jax.Array) -> Permutations:
    """A permutation of every group, uniformly at random.

    Drawn on the host, so that nothing is compiled: it cannot be traced.

    Args:
      spec: the groups, from [`spec_of`][].
      key: a PRNG key.

    Returns:
      For every group an integer array of shape ``(units,)``, for an inner one of shape ``(blocks,
      units)``; what they do is told at [`apply_permutation`][].

    Raises:
      TypeError: for a traced key.

    Example:
      >>> import jax
      >>> import flatjax
      >>> w = jax.numpy.zeros((2, 5))
      >>> spec = flatjax.spec_of(w, {"": (None, "h")})
      >>> sorted(flatjax.random_permutations(spec, key=jax.random.key(0))["h"].tolist())
      [0, 1, 2, 3, 4]
    """
    rng = host_generator(key)
    return {g: rng.permuted(a, axis=-1) for g, a in identity(spec).items()}


def apply_permutation(params: Tree, permutations: Mapping[str, Any], spec: Spec) -> Tree:
    """The network with its units in another order.

    A permutation p of a group puts old unit p[i] at place i: ``new[i] = old[p[i]]`` along every
    axis of the group. Of an inner group, p[b] orders the units of what is block b *after* the
    blocks are moved. It may be traced, for params and permutations alike; otherwise NumPy does it,
    and nothing is compiled.

    Args:
      params: a pytree like that of the spec.
      permutations: an integer array for every group that moves, as [`random_permutations`][] draws
        them; other groups stay.
      spec: which axes each group has, from [`spec_of`][].

    Returns:
      A pytree like ``params``.

    Raises:
      TypeError: for a leaf that is no array.
      ValueError: for params of another spec, an unknown group, or an array that is no permutation
        of the group's units.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> w = jnp.array([[1.0, 2.0, 3.0]])
      >>> spec = flatjax.spec_of(w, {"": (None, "h")})
      >>> flatjax.apply_permutation(w, {"h": jnp.array([2, 0, 1])}, spec).tolist()
      [[3.0, 1.0, 2.0]]
    """
    factors = factors_by_leaf(params, spec)
    permutations = checked(permutations, spec)
    leaves, structure = jax.tree.flatten(params)
    traced = loops.is_traced(permutations)
    moved = [
        _moved(leaf, f, permutations, traced or loops.is_traced(leaf))
        for leaf, f in zip(leaves, factors.values(), strict=True)
    ]
    return jax.tree.unflatten(structure, moved)


def _moved(leaf: Any, factors: Factors, permutations: Mapping[str, Any], traced: bool) -> Any:
    if not any(name in permutations for name in factors.names):
        return leaf
    if traced:
        moved = permuted(leaf.reshape(factors.shape), factors, permutations, jnp)
        return moved.reshape(leaf.shape)
    moved = permuted(np.asarray(leaf).reshape(factors.shape), factors, permutations)
    place = leaf.sharding if getattr(leaf, "committed", False) else None
    return jax.device_put(moved.reshape(leaf.shape), place)


def checked(permutations: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
    """The permutations, on the host unless they are traced; raises where one is none."""
    found = {}
    for group, p in permutations.items():
        if group not in spec.sizes:
            known = ", ".join(map(repr, spec.sizes))
            raise ValueError(f"permutations has {group!r}, which is no group; there are {known}.")
        shape = shape_of(group, spec)
        if np.shape(p) != shape:
            raise ValueError(
                f"the permutation of {group!r} must have shape {shape}, got {np.shape(p)}."
            )
        if not loops.is_traced(p):
            p = np.asarray(p)
            if (np.sort(p, axis=-1) != np.arange(shape[-1])).any():
                raise ValueError(
                    f"permutations[{group!r}] must hold every index from 0 to {shape[-1] - 1} once."
                )
        found[group] = p
    return found


def shape_of(group: str, spec: Spec) -> tuple[int, ...]:
    """The shape of a group's permutation."""
    parent = parent_of(group)
    blocks = () if parent is None else (spec.sizes[parent],)
    return (*blocks, spec.sizes[group])


def identity(spec: Spec) -> Permutations:
    """The permutation of every group that moves nothing."""
    return {
        g: np.broadcast_to(np.arange(n, dtype=np.int32), shape_of(g, spec)).copy()
        for g, n in spec.sizes.items()
    }


def host_generator(key: jax.Array) -> np.random.Generator:
    """NumPy's generator of a key, for what is drawn on the host.

    Raises:
      TypeError: for a traced key, or none.
    """
    key = checks.check_key(key)
    if loops.is_traced(key):
        raise TypeError("key is traced, and drawing is done on the host: call it outside jit.")
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
