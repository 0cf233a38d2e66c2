"""Curves and simplexes from their control points."""

from collections.abc import Sequence
from typing import Any

import jax

from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.vectors import _basis as bases
from flatjax.measures import _objective as objective
from flatjax.paths._curves import Bezier, Chain, Curve, Simplex

Controls = Sequence[Tree | None]


def bezier(controls: Controls, *, free: Sequence[int] | None = None) -> Curve:
    r"""A Bezier curve of degree k through parameter space.

    $$\phi(t) = \sum_{j=0}^{k} \binom{k}{j} t^j (1 - t)^{k-j}\, \theta_j,$$

    from $\theta_0$ to $\theta_k$; with three control points, the two ends given and the middle
    trained by [`fit_curve`][], the curve of Garipov et al. 2018. It is a pytree, and any network
    will do: ``curve(t)`` is a tree like the params.

    Args:
      controls: the control points in order, a list of pytrees like the params. ``None`` stands for
        a point on the straight line between its neighbours: ``bezier([a, None, b])`` begins as the
        chord.
      free: the indices of those that move in a fit; ``None`` for all but both ends.

    Returns:
      A [`Curve`][], in at least float32.

    Raises:
      TypeError: for control points of different tree structures, or that are no floating arrays.
      ValueError: for fewer than two, other shapes, no point at an end, or an unknown index.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> a, b = jnp.array([0.0, 0.0]), jnp.array([2.0, 0.0])
      >>> curve = flatjax.bezier([a, jnp.array([1.0, 2.0]), b])
      >>> curve(0.5).tolist(), curve.velocity(0.5).tolist()
      ([1.0, 1.0], [2.0, 0.0])
      >>> round(float(flatjax.bezier([a, None, b]).length()), 4)
      2.0

    References:
      Garipov, Izmailov, Podoprikhin, Vetrov and Wilson, "Loss surfaces, mode connectivity, and fast
      ensembling of DNNs", NeurIPS 2018, arXiv:1802.10026.
    """
    return _made(Bezier, "controls", controls, free)


def chain(controls: Controls, *, free: Sequence[int] | None = None) -> Curve:
    r"""A polygonal chain through parameter space: straight lines from one point to the next.

    Corner j of k is passed at $t = j / k$ (Garipov et al. 2018).

    Args:
      controls: the corners in order, a list of pytrees like the params; ``None`` stands for a point
        on the straight line between its neighbours.
      free: the indices of those that move in a fit; ``None`` for all but both ends.

    Returns:
      A [`Curve`][], in at least float32.

    Raises:
      TypeError: for corners of different tree structures, or that are no floating arrays.
      ValueError: for fewer than two, other shapes, no point at an end, or an unknown index.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> path = flatjax.chain([jnp.zeros(2), jnp.array([0.0, 3.0]), jnp.array([4.0, 3.0])])
      >>> path(0.75).tolist(), float(path.length())
      ([2.0, 3.0], 7.0)

    References:
      Garipov, Izmailov, Podoprikhin, Vetrov and Wilson, "Loss surfaces, mode connectivity, and fast
      ensembling of DNNs", NeurIPS 2018, arXiv:1802.10026.
    """
    return _made(Chain, "controls", controls, free)


def simplex(vertices: Controls, *, free: Sequence[int] | None = None) -> Simplex:
    r"""All convex combinations of some vertices: a simplex of networks.

    Fitted as a curve, with weights drawn uniformly from it, and grown by its ``log_volume``, it is
    that of Benton et al. 2021.

    Args:
      vertices: a list of pytrees like the params; ``None`` stands for the mean of the others.
      free: the indices of those that move in a fit; ``None`` for those that were not given.

    Returns:
      A [`Simplex`][], in at least float32.

    Raises:
      TypeError: for vertices of different tree structures, or that are no floating arrays.
      ValueError: for fewer than two, other shapes, or an unknown index.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> triangle = flatjax.simplex([jnp.zeros(2), jnp.array([3.0, 0.0]), jnp.array([0.0, 2.0])])
      >>> triangle(jnp.array([0.0, 0.5, 0.5])).tolist()
      [1.5, 1.0]
      >>> round(float(jnp.exp(triangle.log_volume())), 4)  # half of 3 * 2
      3.0

    References:
      Benton, Maddox, Lotfi and Wilson, "Loss surface simplexes for mode connecting volumes and fast
      ensembling", ICML 2021, arXiv:2102.13042.
    """
    return _made(Simplex, "vertices", vertices, free)


def _made(kind: Any, name: str, controls: Any, free: Sequence[int] | None) -> Any:
    if not isinstance(controls, list | tuple) or len(controls) < 2:
        raise ValueError(f"{name} must be a list of at least two points, got {controls!r:.80}.")
    given = [i for i, point in enumerate(controls) if point is not None]
    last = len(controls) - 1
    path = kind is not Simplex
    if not given or (path and {0, last} - set(given)):
        raise ValueError(f"{name} needs a point at both ends: None stands between others only.")
    like = objective.widened(controls[given[0]])
    for i in given:
        trees.check(controls[i], like, f"{name}[{i}]")
    if free is None:
        free = range(1, last) if path else [i for i in range(last + 1) if i not in given]
    wrong = [i for i in free if isinstance(i, bool) or i not in range(last + 1)]
    if wrong:
        raise ValueError(f"free must hold indices of the {last + 1} {name}, got {wrong}.")
    known = {i: trees.cast(controls[i], like) for i in given}
    points = [known[i] if i in known else _between(known, i, path) for i in range(last + 1)]
    moves = tuple(i in free for i in range(last + 1))
    return kind(_rows(points, moves, True), _rows(points, moves, False), moves)


def _between(known, i, path):
    """The point of a straight line between the neighbours, or the mean of all."""
    if path:
        left, right = max(j for j in known if j < i), min(j for j in known if j > i)
        near = {left: (right - i) / (right - left), right: (i - left) / (right - left)}
    else:
        near = dict.fromkeys(known, 1 / len(known))
    parts = [trees.scale(share, known[j]) for j, share in near.items()]
    return jax.tree.map(lambda *a: sum(a[1:], a[0]), *parts)


def _rows(points, moves, wanted):
    chosen = [p for p, moving in zip(points, moves, strict=True) if moving == wanted]
    return bases.stack(chosen) if chosen else None
