"""Which axes of which leaves are permuted together."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from flatjax import _checks as checks
from flatjax import _reading as reading
from flatjax._trees import Tree
from flatjax.symmetry._factors import Factors, as_factors, factors_of, named_leaves, parent_of

# A group's name, None, or the factors of a flattened axis.
Entry = str | None | tuple[str | None, ...]


@reading.readable
class Spec(NamedTuple):
    """The permutation symmetries of a network; made by [`spec_of`][].

    Attributes:
      axes: for every leaf, by its path, one entry for each axis: a group's name, ``None``, or the
        factors of a flattened axis.
      sizes: how many units every group has; of an inner group, how many in one block.
    """

    axes: dict[str, tuple[Entry, ...]]
    sizes: dict[str, int]


def spec_of(
    params: Tree,
    axes: Mapping[str, tuple[Entry, ...] | None],
    *,
    sizes: Mapping[str, int] | None = None,
) -> Spec:
    r"""The permutation symmetries of a network, stated leaf by leaf.

    Hidden units can be put in another order if every leaf that knows them follows: the columns of
    the kernel that makes them, their biases and norms, the running statistics, the rows of the next
    kernel. The axes that follow one another are a *group*. A rule has one entry for each axis:

    - ``"h"``: the axis is permuted by group ``h``. A residual stream, or a tied embedding, is one
      group in all leaves.
    - ``None``: it stays, as those of inputs and outputs do.
    - ``"heads/qk"``: an *inner* group, with a permutation of its own for every block of ``heads``,
      an axis of which the leaf must have, too. A kernel of attention of shape (d, heads, units) is
      ``("d", "heads", "heads/qk")``; one of a grouped convolution (h, w, inputs of one group, all
      outputs) is ``(None, None, "g/in", ("g", "g/out"))``.
    - ``("heads", "heads/qk")``: a flattened axis, the product of its factors, the slow one first;
      ``(None, "c")`` is a flattened image with channels ``c`` last.

    Axes that several groups share one after another, as after a concatenation, have no notation.

    Args:
      params: a pytree of arrays, or of ``jax.ShapeDtypeStruct``: the params of any library, with
        the batch statistics (``{"params": ..., "batch_stats": ...}``) where there are any.
      axes: the rules. A key is a leaf's path (its dictionary keys, attributes and indices joined by
        ``/``), or a regular expression that matches the whole of it; ``\1`` in a group's name then
        stands for what its first parenthesis matched. Every leaf needs a rule; ``None`` in place of
        the tuple says that no axis of it moves.
      sizes: the number of units of groups that occur in flattened axes only.

    Returns:
      A [`Spec`][]. Whether it is right, [`check_symmetry`][] says.

    Raises:
      TypeError: for a leaf that is no array.
      ValueError: for a leaf without a rule or with two, a rule that matches no leaf, another number
        of axes than the leaf has, sizes of a group that differ or cannot be known.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> params = {
      ...     "Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)},
      ...     "Dense_1": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)},
      ... }
      >>> spec = flatjax.spec_of(
      ...     params,
      ...     {
      ...         "Dense_0/kernel": (None, "h"),
      ...         "Dense_0/bias": ("h",),
      ...         "Dense_1/kernel": ("h", None),
      ...         "Dense_1/bias": None,
      ...     },
      ... )
      >>> spec.sizes
      {'h': 4}

    References:
      Ainsworth, Hayase and Srinivasa, "Git Re-Basin: merging models modulo permutation symmetries",
      ICLR 2023, arXiv:2209.04836.
    """
    leaves = named_leaves(params)
    found = _rules(leaves, axes)
    for path, rule in found.items():
        if len(rule) != len(leaves[path].shape):
            factors_of(path, leaves[path].shape, rule, {})  # raises
    known = _sizes(leaves, found, dict(sizes or {}))
    spec = Spec(found, known)
    factors_by_leaf(params, spec)  # raises where sizes differ
    return spec


def factors_by_leaf(params: Tree, spec: Spec) -> dict[str, Factors]:
    """How every leaf is unfolded, by its path.

    Raises:
      ValueError: if the params are not those of the spec.
    """
    leaves = named_leaves(params)
    other = sorted(leaves.keys() ^ spec.axes.keys())
    if other:
        raise ValueError(
            f"params and spec differ in the leaves {', '.join(map(repr, other))}: make the spec "
            "with flatjax.spec_of of a tree like this one."
        )
    return {
        path: factors_of(path, leaf.shape, spec.axes[path], spec.sizes)
        for path, leaf in leaves.items()
    }


def _rules(leaves, axes):
    """The rule of every leaf."""
    rules: dict[str, list[tuple[str, tuple[Entry, ...]]]] = {path: [] for path in leaves}
    for pattern, rule in axes.items():
        if rule is not None and not isinstance(rule, tuple):
            raise ValueError(f"the rule of {pattern!r} must be a tuple or None, got {rule!r}.")
        matches = {path: _match(pattern, path) for path in leaves}
        if not any(matches.values()):
            some = ", ".join(map(repr, list(leaves)[:8]))
            raise ValueError(f"the rule {pattern!r} matches no leaf; there are {some} ...")
        for path, match in matches.items():
            if match:
                whole = (None,) * len(leaves[path].shape) if rule is None else rule
                rules[path].append((pattern, tuple(_entry(pattern, e, match) for e in whole)))
    for path, given in rules.items():
        if not given:
            raise ValueError(
                f"leaf {path!r} of shape {tuple(leaves[path].shape)} has no rule: add one, "
                f"{{{path!r}: None}} if none of its axes is permuted."
            )
        if len(given) > 1:
            both = " and ".join(repr(pattern) for pattern, _ in given)
            raise ValueError(f"leaf {path!r} has two rules, {both}: leave one out.")
    return {path: given[0][1] for path, given in rules.items()}


def _match(pattern, path):
    try:
        match = re.fullmatch(pattern, path)
    except re.error:  # a path with brackets, say
        match = None
    return match or (re.fullmatch(re.escape(pattern), path))


def _entry(pattern, entry, match):
    """An entry with what the parentheses of its pattern matched; raises for one of another kind."""
    names = []
    for name in as_factors(entry):
        if name is not None and not (isinstance(name, str) and name):
            raise ValueError(
                f"the rule of {pattern!r} has the entry {entry!r}: an axis is a group's name, "
                "None, or a tuple of these."
            )
        name = match.expand(name) if name and "\\" in name else name
        if name and name.count("/") > 1:
            raise ValueError(f"group {name!r}: an inner group is named 'blocks/units', one slash.")
        names.append(name)
    if not names or names.count(None) > 1:
        raise ValueError(
            f"the rule of {pattern!r} has the flattened axis {entry!r}: it needs factors, of "
            "which None is one at most."
        )
    return tuple(names) if isinstance(entry, tuple) else names[0]


def _sizes(leaves, rules, sizes):
    """The size of every group: of axes of its own, then by division of flattened ones."""
    for name, size in sizes.items():
        checks.check_count(f"sizes[{name!r}]", size)
    every = [
        (leaves[path].shape[k], as_factors(entry))
        for path, rule in rules.items()
        for k, entry in enumerate(rule)
    ]
    used = {name for _, given in every for name in given if name is not None}
    if set(sizes) - used:
        raise ValueError(f"sizes has {sorted(set(sizes) - used)}, which no rule names.")
    progress = True
    while progress:
        progress = False
        for size, given in every:
            missing = [name for name in given if name is not None and name not in sizes]
            if len(missing) == 1 and None not in given:
                known = int(np.prod([sizes[n] for n in given if n in sizes], dtype=int))
                sizes[missing[0]] = max(size // known, 1)
                progress = True
    unknown = sorted(used - sizes.keys())
    if unknown:
        raise ValueError(
            f"the sizes of {', '.join(map(repr, unknown))} cannot be known from flattened axes: "
            f"pass sizes={{{unknown[0]!r}: ...}}."
        )
    orphans = sorted(n for n in used if parent_of(n) is not None and parent_of(n) not in used)
    if orphans:
        raise ValueError(
            f"the inner group {orphans[0]!r} needs a group {parent_of(orphans[0])!r} of blocks."
        )
    return {name: sizes[name] for name in sorted(used)}
