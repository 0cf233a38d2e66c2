"""Whether a spec's permutations leave a network's outputs alone, and which leaf is to blame."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax._trees import Tree
from flatjax.operators._callables import check_function
from flatjax.symmetry import _suspects as suspects
from flatjax.symmetry._network import Network, cycles
from flatjax.symmetry._permutations import host_generator, shape_of
from flatjax.symmetry._spec import Spec, factors_by_leaf


@reading.readable
class Check(NamedTuple):
    """What [`check_symmetry`][] found.

    Attributes:
      holds: whether every group permutes something and leaves the outputs alone.
      error: the largest relative change of the outputs (Euclidean norms) by a permutation.
      tolerance: the change that rounding explains; ``error`` is compared with it.
      groups: the groups that break, or that permute nothing.
      leaves: the leaves whose rules are wrong, by their paths; empty where none was found.
      message: all this in words.
    """

    holds: bool
    error: float
    tolerance: float
    groups: tuple[str, ...]
    leaves: tuple[str, ...]
    message: str


def check_symmetry(
    model_fn: Callable[..., Any],
    params: Tree,
    spec: Spec,
    inputs: Any,
    *args: Any,
    key: jax.Array,
) -> Check:
    r"""Check that a network's outputs stay when its units are permuted, or name the leaf to blame.

    Each group is permuted alone, by a random cycle of all its units; the outputs may change by
    rounding only. Where they change by more, entries of the spec are taken out and put in (one axis
    at a time, then up to four together) until the outputs stay: the leaves of these entries are
    named. A group is also wrong if it permutes nothing, that is, if no leaf of it moved without the
    others changes the outputs.

    It is done *near* the params, not at them: every entry is multiplied by a random factor between
    1 and 1.5, and leaves of zeros are drawn anew, because biases and norms of a fresh network are
    constant and would hide that they are forgotten.

    The tolerance is measured: a sum of n terms in another order is one of terms changed by at most
    n roundings each (Higham 2002, section 4.2), so it is the largest change of the outputs by a few
    random relative changes of the params of that size. Params are taken in at least float32; where
    outputs are in lower precision, one of their roundings is the least.

    Cost: one compilation, and forward passes: five, two or a few more for every group, and where
    a group breaks one for each axis that could be at fault.

    Args:
      model_fn: ``model_fn(params, inputs, *args)``, an array or a tree of arrays. With batch
        statistics in the tree it is the model as evaluated, with running averages: in training mode
        it does not use them.
      params: a pytree like that of the spec.
      spec: the groups, from [`spec_of`][].
      inputs: a few examples; not zeros.
      *args: anything else the model takes; not permuted.
      key: a PRNG key.

    Returns:
      A [`Check`][].

    Raises:
      TypeError: for a leaf that is no array, no function, or traced arguments.
      ValueError: for params of another spec.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> import flatjax
      >>> draw = np.random.default_rng(0).normal
      >>> params = {
      ...     "in": {"kernel": draw(size=(3, 4)), "bias": np.zeros(4)},
      ...     "out": {"kernel": draw(size=(4, 2))},
      ... }
      >>> def model_fn(params, x):
      ...     x = jax.nn.relu(x @ params["in"]["kernel"] + params["in"]["bias"])
      ...     return x @ params["out"]["kernel"]
      >>> rules = {"in/kernel": (None, "h"), "in/bias": None, "out/kernel": ("h", None)}
      >>> x, spec = draw(size=(8, 3)), flatjax.spec_of(params, rules)
      >>> check = flatjax.check_symmetry(model_fn, params, spec, x, key=jax.random.key(0))
      >>> check.holds, check.leaves
      (False, ('in/bias',))
      >>> print(check.message)
      Group 'h' changes the outputs by ... It does not if axis 0 of 'in/bias' moves with it.

    References:
      Higham, "Accuracy and stability of numerical algorithms", 2nd edition, SIAM 2002.
    """
    check_function(model_fn, "model_fn")
    if loops.is_traced(params, inputs, args):
        raise TypeError("params or inputs are traced, and the check looks: call it outside jit.")
    rng = host_generator(key)
    factors = factors_by_leaf(params, spec)
    network = Network(model_fn, params, inputs, args, rng)
    tolerance = network.tolerance(factors, rng)
    if not np.isfinite(tolerance):
        message = "The outputs are not finite, or zero: take other inputs or params."
        return Check(False, np.inf, tolerance, (), (), message)
    largest, broken, blamed, words = 0.0, [], [], []
    for group in (g for g, n in spec.sizes.items() if n > 1):
        reduced = suspects.alone(factors, group)
        change = functools.partial(
            network.change, permutations={group: cycles(shape_of(group, spec), rng)}
        )
        error = change(reduced)
        largest = max(largest, error)
        if error > tolerance:
            edits = suspects.search(factors, reduced, group, spec, change, tolerance)
            remedy = " and ".join(edit.words for edit in edits)
            words.append(
                f"Group {group!r} changes the outputs by {error:.1e}, rounding by {tolerance:.1e}. "
                + (
                    f"It does not if {remedy}."
                    if edits
                    else f"No change of up to {suspects.MOST_EDITS} axes mends it; it is the group "
                    f"of {_leaves(reduced, group)}."
                )
            )
            blamed += [edit.path for edit in edits]
        elif suspects.permutes_nothing(reduced, group, change, tolerance):
            words.append(
                f"Group {group!r} permutes nothing: in whatever order {_leaves(reduced, group)} "
                "may be alone, the outputs are the same."
            )
        else:
            continue
        broken.append(group)
    message = " ".join(words) or f"Each of the {len(spec.sizes)} groups leaves the outputs alone."
    leaves = tuple(dict.fromkeys(blamed))
    return Check(not broken, largest, tolerance, tuple(broken), leaves, message)


def _leaves(reduced, group):
    return ", ".join(repr(path) for path, f in reduced.items() if group in f.names)
