"""The permutation that makes the units of one network correlate most with those of another."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flatjax import _loops as loops
from flatjax._trees import Tree
from flatjax.symmetry import _assignments as assignments
from flatjax.symmetry._factors import Factors, parent_of
from flatjax.symmetry._permutations import apply_permutation, identity, shape_of
from flatjax.symmetry._spec import Spec
from flatjax.symmetry._weights import Matching


def match_activations(
    target_activations: Mapping[str, jax.Array],
    activations: Mapping[str, jax.Array],
    params: Tree,
    spec: Spec,
) -> Matching:
    r"""Permute a network so that its units do what those of a target do, on the same examples.

    For every group the sum of the correlations of matched units is maximised,

    $$\max_\pi \; \sum_i \operatorname{corr}(a^*_i, a_{\pi(i)}),$$

    a linear assignment problem (Li et al. 2015; Jordan et al. 2023). Groups do not depend on one
    another, so that one pass is exact. Heads and other blocks with inner groups are matched by what
    their units are worth in the best order inside. A unit that never changes correlates with none.

    Units that are matched need not have the same scale: a network between the two then shrinks its
    activations, which Jordan et al. 2023 repair (REPAIR). With batch norm the repair is to make the
    statistics anew at every point of a chord: ``args_fn`` of [`barrier`][] with
    [`reestimate_batch_statistics`][].

    Cost: on the host in float64, $n^2$ times the number of examples for n units; nothing is
    compiled.

    Args:
      target_activations: for every group without inner ones, the activations of the network that
        stays, shape ``(examples, ..., units)``; for every inner one, shape ``(examples, ...,
        blocks, units)``. Leading axes, those of pixels and tokens too, are all taken for examples.
      activations: the same of the network that is permuted.
      params: its params, a pytree like that of the spec.
      spec: the groups, from [`spec_of`][].

    Returns:
      A [`Matching`][]; ``overlap`` is the sum of the correlations.

    Raises:
      TypeError: where anything is traced.
      ValueError: for a group without activations, an unknown one, or activations that differ in
        shape, are of another number of units, of less than two examples, or not finite.

    Example:
      >>> import numpy as np
      >>> import flatjax
      >>> rng = np.random.default_rng(0)
      >>> x, w = rng.normal(size=(20, 3)), rng.normal(size=(3, 4))
      >>> spec = flatjax.spec_of(w, {"": (None, "h")})
      >>> other = 2 * w[:, [2, 0, 3, 1]]
      >>> found = flatjax.match_activations({"h": x @ other}, {"h": x @ w}, w, spec)
      >>> found.permutations["h"].tolist()
      [2, 0, 3, 1]

    References:
      Li, Yosinski, Clune, Lipson and Hopcroft, "Convergent learning: do different neural networks
      learn the same representations?", ICLR 2016, arXiv:1511.07543.

      Jordan, Sedghi, Saukh, Entezari and Neyshabur, "REPAIR: REnormalizing permuted activations for
      interpolation repair", ICLR 2023, arXiv:2211.08403.
    """
    if loops.is_traced(dict(target_activations), dict(activations), params):
        raise TypeError("activations are traced, and matched on the host: call it outside jit.")
    wanted = spec.sizes.keys() - {parent_of(g) for g in spec.sizes}
    for name, given in (("target_activations", target_activations), ("activations", activations)):
        if wanted ^ given.keys():
            missing, other = sorted(wanted - given.keys()), sorted(given.keys() - wanted)
            raise ValueError(
                f"{name} needs one entry for each of the groups {sorted(wanted)}: "
                f"{missing} missing, {other} too many."
            )
    pairs = []
    for group in sorted(wanted):
        target = _standardised("target_activations", group, target_activations[group], spec)
        source = _standardised("activations", group, activations[group], spec)
        if target.shape != source.shape:
            raise ValueError(
                f"the activations of {group!r} are those of {target.shape[-1]} examples in the "
                f"target, of {source.shape[-1]} in the other: take the same inputs for both."
            )
        names = (parent_of(group), group) if target.ndim == 3 else (group,)
        parents = (None, 0, None) if target.ndim == 3 else (None, None)
        axes = tuple(range(target.ndim))
        pairs.append(
            assignments.Pair(target, source, Factors(target.shape, (*names, None), parents, axes))
        )
    # Independent problems: the first sweep solves all of them, the second finds nothing to change.
    found = assignments.descend(pairs, identity(spec), np.random.default_rng(0), 2)
    moved = apply_permutation(params, found.permutations, spec)
    return Matching(moved, found.permutations, found.overlap, 1, True)


def _standardised(name: str, group: str, value: Any, spec: Spec) -> np.ndarray:
    """Activations as ``(units, examples)``, or ``(blocks, units, examples)``, of norm one."""
    a, units = np.asarray(value).astype(np.float64), shape_of(group, spec)
    if a.ndim <= len(units) or a.shape[-len(units) :] != units:
        raise ValueError(
            f"{name}[{group!r}] must have shape (examples, ..., "
            f"{', '.join(map(str, units))}), got {a.shape}."
        )
    a = np.moveaxis(a.reshape(-1, *units), 0, -1)
    if a.shape[-1] < 2:
        raise ValueError(f"{name}[{group!r}] has {a.shape[-1]} example: correlations need two.")
    if not np.isfinite(a).all():
        raise ValueError(f"{name}[{group!r}] is not finite.")
    mean = a.mean(-1, keepdims=True)
    centred = a - mean
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    # What rounding leaves of a unit that never changes.
    floor = 4 * np.finfo(np.float64).eps * np.abs(mean) * np.sqrt(a.shape[-1])
    constant = length <= floor
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, length))
