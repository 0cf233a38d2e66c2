"""A leaf with one axis for every group: flattened axes are unfolded, then units are taken.

A flattened axis is the product of its factors, the slow one first. An inner group ``"g/u"`` has a
permutation for every block of ``g``, the axis of which stands in the same leaf: its parent.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from flatjax._trees import Tree


class Factors(NamedTuple):
    """How one leaf is unfolded.

    Attributes:
      shape: the sizes of the unfolded axes.
      names: for every unfolded axis its group, or ``None``.
      parents: for every axis of an inner group, which axis is that of its blocks; else ``None``.
      axes: for every unfolded axis, which of the leaf's own it comes from.
    """

    shape: tuple[int, ...]
    names: tuple[str | None, ...]
    parents: tuple[int | None, ...]
    axes: tuple[int, ...]


def parent_of(group: str) -> str | None:
    """The group of blocks of an inner group; ``None`` for any other."""
    return group.rpartition("/")[0] or None


def as_factors(entry: Any) -> tuple[str | None, ...]:
    """The factors of an axis, one where it is not flattened."""
    return entry if isinstance(entry, tuple) else (entry,)


def named_leaves(tree: Tree) -> dict[str, Any]:
    """The leaves by their paths: keys, attributes and indices, joined by slashes.

    Raises:
      TypeError: for a leaf that is no array.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(
                f"leaf {name!r} is of type {type(leaf).__name__}: pass the arrays of the model "
                "alone (eqx.filter, nnx.state)."
            )
        found[name] = leaf
    return found


def factors_of(
    path: str, shape: tuple[int, ...], axes: tuple[Any, ...], sizes: Mapping[str, int]
) -> Factors:
    """The factors of a leaf.

    Raises:
      ValueError: if it has other axes than the spec says, or no axis of an inner group's blocks.
    """
    if len(axes) != len(shape):
        raise ValueError(
            f"leaf {path!r} has shape {tuple(shape)}, and its rule {axes!r} has {len(axes)} "
            f"{'entry' if len(axes) == 1 else 'entries'}: give one entry for each axis."
        )
    lengths, names, origins = [], [], []
    for k, (size, entry) in enumerate(zip(shape, axes, strict=True)):
        given = as_factors(entry)
        known = [sizes[name] for name in given if name is not None]
        rest, remainder = divmod(size, int(np.prod(known, dtype=int)))
        if remainder or (rest != 1 and None not in given):
            words = ", ".join(f"{n!r} has {sizes[n]}" for n in given if n is not None)
            raise ValueError(
                f"axis {k} of leaf {path!r} has size {size}, which does not fit its rule "
                f"{entry!r}: {words} units. Groups that differ in size need names of their own."
            )
        lengths += [rest if name is None else sizes[name] for name in given]
        names += given
        origins += [k] * len(given)
    parents = tuple(_parent(path, i, names, origins) for i in range(len(names)))
    return Factors(tuple(lengths), tuple(names), parents, tuple(origins))


def _parent(path, i, names, origins):
    wanted = None if names[i] is None else parent_of(names[i])
    if wanted is None:
        return None
    blocks = [j for j, name in enumerate(names) if name == wanted]
    near = [j for j in blocks if origins[j] == origins[i]] or blocks
    if len(near) != 1:
        raise ValueError(
            f"leaf {path!r} has the inner group {names[i]!r}, and {len(near)} axes of the blocks "
            f"{wanted!r}: name one, in the same flattened axis if there are several."
        )
    return near[0]


def permuted(
    a: Any,
    factors: Factors,
    permutations: Mapping[str, Any],
    xp: Any = np,
    skip: Collection[int] = (),
) -> Any:
    """An unfolded leaf with its units taken in another order: ``new[i] = old[p[i]]``.

    Args:
      a: the leaf, of the shape of its factors.
      factors: its groups.
      permutations: those of the groups that move; blocks are moved before the units in them.
      xp: ``numpy`` or ``jax.numpy``.
      skip: unfolded axes that do not move.

    Returns:
      An array like ``a``.
    """
    moves = [
        (axis, parent, permutations[name])
        for axis, (name, parent) in enumerate(zip(factors.names, factors.parents, strict=True))
        if name in permutations and axis not in skip
    ]
    for axis, parent, p in moves:
        if parent is None:
            a = xp.take(a, p, axis=axis)
    for axis, parent, p in moves:
        if parent is not None:
            shape = [1] * a.ndim
            shape[parent], shape[axis] = p.shape
            rows = p if parent < axis else p.T
            a = xp.take_along_axis(a, rows.reshape(shape), axis=axis)
    return a
