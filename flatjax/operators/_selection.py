"""Choosing leaves of a tree by path, predicate or flags."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Where = str | Sequence[str] | Callable[[str, Any], bool] | Any
By = str | Callable[[str], Hashable]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which leaves of a tree are kept; hashable, so that it can be static.

    Attributes:
      treedef: the structure of the whole tree.
      keep: one flag a leaf.
    """

    treedef: Any
    keep: tuple[bool, ...]

    def select(self, tree: Any) -> Any:
        """The tree with ``None`` in place of the leaves that are not kept."""
        leaves = self.treedef.flatten_up_to(tree)
        kept = [leaf if k else None for leaf, k in zip(leaves, self.keep, strict=True)]
        return self.treedef.unflatten(kept)

    @property
    def counted(self) -> str:
        """How many leaves are kept, in words."""
        return f"{sum(self.keep):,} of {len(self.keep):,}"

    def rest(self, tree: Any) -> tuple:
        """The leaves that are not kept."""
        leaves = self.treedef.flatten_up_to(tree)
        return tuple(leaf for leaf, k in zip(leaves, self.keep, strict=True) if not k)

    def merge(self, selected: Any, rest: Sequence[Any]) -> Any:
        """The whole tree out of its two parts."""
        kept, others = iter(jax.tree.leaves(selected)), iter(rest)
        return self.treedef.unflatten([next(kept if k else others) for k in self.keep])


def select(tree: Any, where: Where) -> Any:
    """The part of a tree that [`restrict`][] acts on: ``None`` in place of the other leaves.

    Args:
      tree: a tree like the params.
      where: as in [`restrict`][].

    Returns:
      The tree with ``None`` for every leaf that is not chosen.

    Raises:
      TypeError: for a ``where`` of another kind.
      ValueError: if nothing is chosen.

    Example:
      >>> import flatjax
      >>> import jax.numpy as jnp
      >>> flatjax.operators.select({"a": jnp.ones(1), "b": jnp.zeros(1)}, "a")
      {'a': Array([1.], dtype=float32), 'b': None}
    """
    return selection(tree, where).select(tree)


def embed(part: Any, structure: Any) -> Any:
    """A vector of a block as one of the whole operator: zeros in place of ``None``.

    Args:
      part: a tree as [`select`][] makes it.
      structure: the whole structure, a tree of arrays or ``ShapeDtypeStruct``.

    Returns:
      A tree like ``structure``.

    Raises:
      ValueError: if the trees do not fit.

    Example:
      >>> import flatjax
      >>> import jax.numpy as jnp
      >>> flatjax.operators.embed(
      ...     {"a": jnp.ones(1), "b": None}, {"a": jnp.ones(1), "b": jnp.ones(2)}
      ... )["b"]
      Array([0., 0.], dtype=float32)
    """
    fill = lambda a, like: jnp.zeros(like.shape, like.dtype) if a is None else a  # noqa: E731
    return jax.tree.map(fill, part, structure, is_leaf=lambda a: a is None)


def selection(structure: Any, where: Where) -> Selection:
    """The leaves that ``where`` chooses of a structure; see [`restrict`][]."""
    named = jax.tree_util.tree_leaves_with_path(structure)
    paths, treedef = [_name(path) for path, _ in named], jax.tree.structure(structure)
    prefixes = _as_paths(where)
    if prefixes is not None:
        keep = [any(p == w or p.startswith(w + "/") for w in prefixes) for p in paths]
    elif callable(where):
        keep = [bool(where(p, leaf)) for p, (_, leaf) in zip(paths, named, strict=True)]
    else:
        keep = _flags(where, structure)
    if not any(keep):
        raise ValueError(f"where={where!r} chooses nothing; the paths are {', '.join(paths)}.")
    return Selection(treedef, tuple(keep))


def _as_paths(where):
    if isinstance(where, str):
        return [where.strip("/")]
    many = isinstance(where, (tuple, list, set, frozenset)) and len(where) > 0
    if many and all(isinstance(w, str) for w in where):
        return [w.strip("/") for w in where]
    return None


def _flags(where, structure):
    if not all(isinstance(flag, (bool, np.bool_)) for flag in jax.tree.leaves(where)):
        raise TypeError(
            "where must be a path, a sequence of paths, a predicate (path, leaf) -> bool, or a "
            f"tree of booleans, got {where!r}."
        )
    try:
        return [bool(flag) for flag in jax.tree.leaves(jax.tree.broadcast(where, structure))]
    except ValueError as error:
        raise ValueError(f"the tree of booleans must be a prefix of the params: {error}") from error


def group_names(structure: Any, by: By) -> list:
    """The name of the group of every leaf; see ``flatjax.blocks``."""
    paths = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(structure)]
    if by == "layer":
        return [path.rpartition("/")[0] or path for path in paths]
    if by == "leaf":
        return paths
    if callable(by):
        return [by(path) for path in paths]
    raise ValueError(f'by must be "layer", "leaf" or a function of the path, got {by!r}.')


def _name(path) -> str:
    # flax nnx wraps every array into a variable with the one attribute `value`.
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")
