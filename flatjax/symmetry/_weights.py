"""The permutation that brings the weights of one network nearest to those of another."""

from typing import Any, NamedTuple

import jax
import numpy as np

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax._trees import Tree
from flatjax.symmetry import _assignments as assignments
from flatjax.symmetry._factors import Factors
from flatjax.symmetry._permutations import (
    Permutations,
    apply_permutation,
    host_generator,
    identity,
)
from flatjax.symmetry._spec import Spec, factors_by_leaf
from flatjax.transforms._ascent import Mask, expand_mask


@reading.readable
class Matching(NamedTuple):
    r"""One network permuted to be near another.

    Attributes:
      params: the permuted params.
      permutations: that of every group, as [`apply_permutation`][] takes them.
      overlap: what was maximised: $\langle \theta^*, \pi(\theta) \rangle$ in float64 for weights,
        the sum of the correlations of matched units for activations.
      num_sweeps: sweeps over all groups.
      converged: whether the last sweep changed nothing: no group alone can do better.
    """

    params: Tree
    permutations: Permutations
    overlap: float
    num_sweeps: int
    converged: bool


def match_weights(
    target: Tree,
    params: Tree,
    spec: Spec,
    *,
    key: jax.Array,
    mask: Mask | None = None,
    max_sweeps: int = 50,
    restarts: int = 1,
) -> Matching:
    r"""Permute a network so that its weights come near those of a target.

    $$\max_\pi \; \langle \theta^*, \pi(\theta) \rangle, \qquad \text{that is} \qquad
      \min_\pi \; \|\theta^* - \pi(\theta)\|,$$

    by coordinate descent: with all groups but one fixed it is a linear assignment problem, solved
    exactly; sweeps over the groups in random order go on until nothing changes (algorithm 1 of
    Ainsworth et al. 2023). The overlap never falls. Where it ends, no group alone can do better; a
    better optimum may exist, so several restarts are worth their cost on deep networks. Heads of
    attention and other blocks are matched together with the units inside them.

    Cost: everything is done on the host in float64, nothing is compiled. A group of n units takes
    $n^2$ times the number of other entries of its leaves, and $O(n^3)$ for the assignment; one of
    n blocks $n^2$ such problems of the size of a block. Memory: both networks in float64.

    Args:
      target: a pytree like that of the spec, the network that stays.
      params: a pytree like ``target``, the network that is permuted.
      spec: the groups, from [`spec_of`][].
      key: a PRNG key, for the order of the groups and the starts.
      mask: the leaves that count, as for [`random_directions`][]: a pytree prefix of booleans, or a
        function of the params that returns one; the others move along. Batch statistics in the tree
        are worth leaving out: their scale is that of the data.
      max_sweeps: the most sweeps of one start.
      restarts: how many starts: the first from the order given, further ones from random orders.
        The best is returned.

    Returns:
      A [`Matching`][].

    Raises:
      TypeError: where anything is traced, or for a leaf that is no array.
      ValueError: for trees of another spec, leaves that are not finite, or counts below one.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> import flatjax
      >>> draw = np.random.default_rng(0).normal
      >>> a = {"in": draw(size=(3, 4)), "out": draw(size=(4, 2))}
      >>> spec = flatjax.spec_of(a, {"in": (None, "h"), "out": ("h", None)})
      >>> b = flatjax.apply_permutation(a, {"h": [2, 0, 3, 1]}, spec)
      >>> found = flatjax.match_weights(b, a, spec, key=jax.random.key(0))
      >>> found.permutations["h"].tolist(), found.converged
      ([2, 0, 3, 1], True)

    References:
      Ainsworth, Hayase and Srinivasa, "Git Re-Basin: merging models modulo permutation symmetries",
      ICLR 2023, arXiv:2209.04836.
    """
    checks.check_count("max_sweeps", max_sweeps)
    checks.check_count("restarts", restarts)
    if loops.is_traced(target, params):
        raise TypeError("params are traced, and matching is done on the host: call it outside jit.")
    factors, other = factors_by_leaf(target, spec), factors_by_leaf(params, spec)
    counts = jax.tree.leaves(expand_mask(mask, params))
    if not all(isinstance(counted, bool) for counted in counts):
        raise TypeError("mask must hold one boolean for a leaf: permutations move whole leaves.")
    pairs = []
    for a, b, counted, (path, f) in zip(
        jax.tree.leaves(target), jax.tree.leaves(params), counts, factors.items(), strict=True
    ):
        if other[path] != f:
            raise ValueError(f"leaf {path!r} has shape {a.shape} in target, {b.shape} in params.")
        if counted:
            pairs.append(
                assignments.Pair(_host("target", path, a, f), _host("params", path, b, f), f)
            )
    rng = host_generator(key)
    starts = [identity(spec)]
    starts += [
        {g: rng.permuted(p, axis=-1) for g, p in starts[0].items()} for _ in range(restarts - 1)
    ]
    ends = [assignments.descend(pairs, start, rng, max_sweeps) for start in starts]
    best = max(ends, key=lambda end: end.overlap)
    return Matching(apply_permutation(params, best.permutations, spec), *best)


def _host(name: str, path: str, leaf: Any, factors: Factors) -> np.ndarray:
    """A leaf in float64 with an axis for every group."""
    a = np.asarray(leaf).astype(np.float64)
    if not np.isfinite(a).all():
        raise ValueError(f"leaf {path!r} of {name} is not finite: there is nothing to match.")
    return a.reshape(factors.shape)
