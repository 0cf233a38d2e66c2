"""Coordinate descent over permutations: one linear assignment after another, on the host.

What is maximised is the inner product of a target with the permuted leaves. With all groups fixed
but one it is linear in that one's permutation matrix, and a linear assignment problem. A group of
blocks with inner groups is one problem, too: what a pair of blocks is worth, with the best order of
the units inside, is found by the same descent over the pair alone.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flatjax.symmetry._factors import Factors, permuted

Permutations = dict[str, np.ndarray]


class Pair(NamedTuple):
    """A leaf of both networks, unfolded, in float64."""

    target: np.ndarray
    source: np.ndarray
    factors: Factors


class Descent(NamedTuple):
    """Where coordinate descent ended.

    Attributes:
      permutations: of every group.
      overlap: the inner product there.
      num_sweeps: sweeps over all groups.
      converged: whether the last sweep changed nothing.
    """

    permutations: Permutations
    overlap: float
    num_sweeps: int
    converged: bool


def overlap(pairs: Sequence[Pair], permutations: Mapping[str, np.ndarray]) -> float:
    """The inner product of the targets with the permuted sources."""
    return sum(float(np.vdot(p.target, permuted(p.source, p.factors, permutations))) for p in pairs)


def descend(
    pairs: Sequence[Pair],
    permutations: Permutations,
    rng: np.random.Generator,
    max_sweeps: int,
) -> Descent:
    """Sweep over the groups, in another random order each time, until nothing changes.

    A change is taken only if it raises the overlap by more than rounding, so that the overlap never
    falls, also where a leaf has a group twice and the assignment is that of the linear part.

    Args:
      pairs: the leaves.
      permutations: where it starts, of every group; not changed.
      rng: draws the orders.
      max_sweeps: the most sweeps.

    Returns:
      A `Descent`.
    """
    current = dict(permutations)
    # Inner groups are matched with their blocks.
    groups = sorted(
        {
            name
            for p in pairs
            for name, parent in zip(p.factors.names, p.factors.parents, strict=True)
            if name is not None and parent is None
        }
    )
    having = {g: [p for p in pairs if g in p.factors.names] for g in groups}
    sweeps, changed = 0, bool(groups)
    while changed and sweeps < max_sweeps:
        sweeps, changed = sweeps + 1, False
        for k in rng.permutation(len(groups)):
            mine = having[groups[k]]
            trial = {**current, **best_response(mine, current, groups[k], rng, max_sweeps)}
            scale = sum(np.linalg.norm(p.target) * np.linalg.norm(p.source) for p in mine)
            gain = overlap(mine, trial) - overlap(mine, current)
            # The rounding of both sums.
            if gain > 8 * np.finfo(np.float64).eps * scale:
                current, changed = trial, True
    return Descent(current, overlap(pairs, current), sweeps, not changed)


def best_response(
    pairs: Sequence[Pair],
    permutations: Mapping[str, np.ndarray],
    group: str,
    rng: np.random.Generator,
    max_sweeps: int,
) -> Permutations:
    """The best permutation of one group, and of its inner groups, with all others fixed.

    Args:
      pairs: the leaves that have the group.
      permutations: of all groups.
      group: which one.
      rng: for the descents over pairs of blocks.
      max_sweeps: the most sweeps of each.

    Returns:
      The permutations of the group and of its inner groups.
    """
    from scipy.optimize import linear_sum_assignment

    n = len(permutations[group])
    worth, blocks = np.zeros((n, n)), []
    for pair in pairs:
        for axis, name in enumerate(pair.factors.names):
            if name != group:
                continue
            inside = [i for i, parent in enumerate(pair.factors.parents) if parent == axis]
            fixed = permuted(pair.source, pair.factors, permutations, skip=(axis, *inside))
            target, source = np.moveaxis(pair.target, axis, 0), np.moveaxis(fixed, axis, 0)
            if inside:
                blocks.append((target, source, _inside(pair.factors, axis, inside)))
            else:
                worth += target.reshape(n, -1) @ source.reshape(n, -1).T
    inner = sorted({name for *_, f in blocks for name in f.names if name is not None})
    orders = {}
    for i in range(n if inner else 0):
        for j in range(n):
            # From the order now for the partner now, so that nothing is lost.
            start = {g: permutations[g][i] for g in inner}
            if j != permutations[group][i]:
                start = {g: np.arange(len(p), dtype=np.int32) for g, p in start.items()}
            parts = [Pair(target[i], source[j], f) for target, source, f in blocks]
            orders[i, j] = descend(parts, start, rng, max_sweeps)
            worth[i, j] += orders[i, j].overlap
    _, chosen = linear_sum_assignment(worth, maximize=True)
    found = {
        g: np.stack([orders[i, int(j)].permutations[g] for i, j in enumerate(chosen)])
        for g in inner
    }
    return {group: chosen.astype(np.int32), **found}


def _inside(factors: Factors, axis: int, inside: Sequence[int]) -> Factors:
    """The factors of one block: the axis of blocks is gone, and only its inner groups move."""
    kept = [i for i in range(len(factors.names)) if i != axis]
    return Factors(
        tuple(factors.shape[i] for i in kept),
        tuple(factors.names[i] if i in inside else None for i in kept),
        (None,) * len(kept),
        tuple(factors.axes[i] for i in kept),
    )
