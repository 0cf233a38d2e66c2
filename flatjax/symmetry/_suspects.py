"""Which entries of a spec, put in or taken out, mend a group that changes the outputs.

Of every leaf only the group in question is looked at: all others stay, so whatever else an axis is
named does not matter.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from flatjax.symmetry._factors import Factors, parent_of
from flatjax.symmetry._spec import Spec

ByLeaf = dict[str, Factors]
Change = Callable[[ByLeaf], float]
MOST_EDITS = 4


class Edit(NamedTuple):
    """One entry of a leaf put in or taken out.

    Attributes:
      path: of the leaf.
      factors: of the leaf, after it.
      axis: of the leaf.
      words: what it is.
    """

    path: str
    factors: Factors
    axis: int
    words: str


def alone(factors: Mapping[str, Factors], group: str) -> ByLeaf:
    """The factors with this group as the only one that moves."""
    return {
        path: _only(f, [i for i, n in enumerate(f.names) if n == group])
        for path, f in factors.items()
    }


def permutes_nothing(reduced: ByLeaf, group: str, change: Change, tolerance: float) -> bool:
    """Whether the outputs stay when any one leaf of the group moves without the others."""
    for chosen, f in reduced.items():
        if group in f.names:
            part = {path: g if path == chosen else _only(g, []) for path, g in reduced.items()}
            if change(part) > tolerance:
                return False
    return True


def search(
    factors: Mapping[str, Factors],
    reduced: ByLeaf,
    group: str,
    spec: Spec,
    change: Change,
    tolerance: float,
) -> list[Edit]:
    """The edits after which the outputs stay; none where up to four of them do not do.

    One after the other, each the one that leaves least change: what is forgotten on several
    leaves, such as both batch statistics, adds up. An edit without which the outputs stay, too, is
    dropped in the end. That they stay once the group permutes nothing is no answer, unless it has a
    single leaf.

    Args:
      factors: of every leaf, with all groups.
      reduced: the same with this group alone.
      group: which one.
      spec: the sizes.
      change: how much the outputs change.
      tolerance: the change that rounding explains.

    Returns:
      The edits.
    """
    single = sum(group in f.names for f in reduced.values()) == 1
    current, edits, error = reduced, [], change(reduced)
    while error > tolerance and len(edits) < MOST_EDITS:
        done = {(e.path, e.axis) for e in edits}
        trials = []
        for edit in _candidates(factors, current, group, spec):
            if (edit.path, edit.axis) in done:
                continue
            after = {**current, edit.path: edit.factors}
            left = change(after)
            mended = left <= tolerance
            empty = mended and permutes_nothing(after, group, change, tolerance)
            if single or not empty:
                trials.append((left, edit))
        left, edit = min(trials, key=lambda trial: trial[0], default=(error, None))
        if edit is None:
            return []
        current, error = {**current, edit.path: edit.factors}, left
        edits.append(edit)
    if error > tolerance:
        return []
    for edit in edits[:-1]:
        others = [e for e in edits if e is not edit]
        if change({**reduced, **{e.path: e.factors for e in others}}) <= tolerance:
            edits = others
    return edits


def _candidates(
    factors: Mapping[str, Factors], current: ByLeaf, group: str, spec: Spec
) -> Iterator[Edit]:
    for path, now in current.items():
        for axis in range(1 + max(now.axes, default=-1)):
            own = [i for i, a in enumerate(now.axes) if a == axis]
            moves = f"axis {axis} of {path!r} moves with it"
            if any(now.names[i] == group for i in own):
                kept = [i for i, name in enumerate(now.names) if name and i not in own]
                yield Edit(path, _only(now, kept), axis, f"axis {axis} of {path!r} stays")
                moves = f"axis {axis} of {path!r} moves in another way"
            for sizes, place, above in _ways(factors[path], now, axis, own, group, spec):
                found = _refolded(now, own, sizes, place, group, above)
                if found is not None and found != now:
                    yield Edit(path, found, axis, moves)
        # The wrong one of two axes: neither half of this need lower the change.
        for i, name in enumerate(now.names):
            for j, size in enumerate(now.shape):
                if name == group and now.names[j] is None and size == now.shape[i]:
                    names, parents = list(now.names), list(now.parents)
                    names[i], names[j] = names[j], names[i]
                    parents[i], parents[j] = parents[j], parents[i]
                    moved = now._replace(names=tuple(names), parents=tuple(parents))
                    words = f"axis {now.axes[j]} of {path!r} moves with it, not axis {now.axes[i]}"
                    yield Edit(path, moved, now.axes[i], words)


def _ways(whole, now, axis, own, group, spec):
    """Ways for an axis to have the group.

    The sizes of its factors, which of them is the group, and where the blocks of an inner group
    are: ``"here"``, the factor before, or the place of another axis.
    """
    n, parent = spec.sizes[group], parent_of(group)
    total = math.prod(now.shape[i] for i in own)
    given = [whole.shape[i] for i, a in enumerate(whole.axes) if a == axis]
    if parent is None:
        ways = [(given, k) for k, size in enumerate(given) if size == n]
        if total % n == 0 and total > n:
            # Flattened: units last, as channels are, or first, as heads are.
            ways += [([total // n, n], 1), ([n, total // n], 0)]
        for sizes, place in ways:
            yield sizes, place, None
        return
    blocks = spec.sizes[parent]
    if total == blocks * n:
        yield [blocks, n], 1, "here"
    elif total == n:
        for j, name in enumerate(whole.names):
            if name == parent:
                same = [i for i, a in enumerate(now.axes) if a == whole.axes[j]]
                yield from (([n], 0, i) for i in same if now.shape[i] == blocks)


def _refolded(now, own, sizes, place, group, above):
    """The factors with one axis unfolded to other sizes; ``None`` where another axis needs the old.

    ``above`` is as in `_ways`, counted before.
    """
    first, extra = own[0], len(sizes) - len(own)
    later = lambda i: i if i is None or i < first else i + extra  # noqa: E731
    needed = any(parent in own for i, parent in enumerate(now.parents) if i not in own)
    if needed and [now.shape[i] for i in own] != sizes:
        return None
    parents = [None] * len(sizes)
    parents[place] = first + place - 1 if above == "here" else later(above)
    names = [None] * len(sizes)
    names[place] = group
    before, after = slice(0, first), slice(own[-1] + 1, None)
    return Factors(
        (*now.shape[before], *sizes, *now.shape[after]),
        (*now.names[before], *names, *now.names[after]),
        (*map(later, now.parents[before]), *parents, *map(later, now.parents[after])),
        (*now.axes[before], *[now.axes[first]] * len(sizes), *now.axes[after]),
    )


def _only(factors: Factors, kept: Sequence[int]) -> Factors:
    keep = lambda values: tuple(v if i in kept else None for i, v in enumerate(values))  # noqa: E731
    return factors._replace(names=keep(factors.names), parents=keep(factors.parents))
