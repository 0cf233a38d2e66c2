"""Several points of parameter space as one tree with a leading axis."""

from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _checks as checks
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.vectors import _basis as bases
from flatjax.measures import _objective as objective


def stacked(name: str, points: Any, like: Tree | None = None) -> tuple[float, Tree]:
    """Points as one tree in at least float32, and the rounding of the numbers given.

    Args:
      name: what the user calls them.
      points: a tree with a leading axis, or a list of trees.
      like: the structure of one of them where it is known.
    """
    same = like is not None and jax.tree.structure(points) == jax.tree.structure(like)
    if isinstance(points, list) and not same:
        if not points:
            raise ValueError(f"{name} is empty.")
        for i, point in enumerate(points):
            trees.check(point, points[0], f"{name}[{i}]")
        eps, points = coarsest(points), bases.stack(points)
    else:
        eps = coarsest(points)
    single = objective.row_structure(name, points)
    if like is not None:
        trees.check(single, like, f"each of {name}")
    sizes = {a.shape[0] for a in jax.tree.leaves(points)}
    if len(sizes) > 1:
        raise ValueError(f"the leaves of {name} must share their leading axis, got {sizes}.")
    return eps, objective.widened(points)


def coarsest(tree: Any) -> float:
    """The coarsest rounding of the leaves: that of points, whatever they are computed in."""
    for path, a in jax.tree_util.tree_leaves_with_path(tree):
        checks.check_array(f"params{jax.tree_util.keystr(path)}", a)
    dtypes = {a.dtype for a in jax.tree.leaves(tree) if hasattr(a, "dtype")}
    floating = [d for d in dtypes if jnp.issubdtype(d, jnp.floating)]
    return max((float(jnp.finfo(d).eps) for d in floating), default=0.0)
