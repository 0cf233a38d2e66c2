"""How many networks of which size a memory budget is best spent on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _checks as checks
from flatjax import _reading as reading
from flatjax.ensembles._power_laws import PowerLaw


@reading.readable
class Split(NamedTuple):
    """The best split of a memory budget.

    Attributes:
      members: the number of networks.
      size: that of one of them.
      value: what their law predicts for the ensemble.
      gain: the best prediction for one network within the budget, less ``value``; never negative.
    """

    members: int
    size: Any
    value: jax.Array
    gain: jax.Array

    __float__ = reading.as_float


def memory_split(laws: Mapping[Any, PowerLaw], budget: float) -> Split:
    r"""The number and the size of networks that a memory budget is best spent on.

    $$\min_{s, n} \; c_s + b_s\, n^{a_s} \quad \text{subject to} \quad n\,s \le B$$

    (Lobacheva et al. 2020, the memory split advantage: several networks of medium size may predict
    better than one that fills the memory). A law is monotone in the number of members, so of every
    size one network or as many as fit are best. Beyond the ensembles that a law was fitted to this
    is extrapolation.

    Args:
      laws: for every size of a network (its number of params, say) the law of the ensemble's
        loss in the number of members, as [`fit_power_law`][] gives it.
      budget: what all members may take together, in the units of the sizes.

    Returns:
      A [`Split`][].

    Raises:
      TypeError: if ``laws`` is no mapping of sizes to laws.
      ValueError: if a size is not positive, or no network fits into the budget.

    Example:
      >>> import numpy as np
      >>> import flatjax
      >>> n = np.array([1.0, 2.0, 4.0, 8.0])
      >>> laws = {
      ...     100: flatjax.fit_power_law(n, 0.30 + 0.20 / n),
      ...     400: flatjax.fit_power_law(n, 0.25 + 0.10 / n),
      ... }
      >>> split = flatjax.memory_split(laws, 800)
      >>> split.members, split.size, round(float(split.value), 3), round(float(split.gain), 3)
      (2, 400, 0.3, 0.05)

    References:
      Lobacheva, Chirkova, Kodryan and Vetrov, "On power laws in deep ensembles", NeurIPS 2020,
      arXiv:2007.08483.
    """
    if not isinstance(laws, Mapping) or not all(isinstance(x, PowerLaw) for x in laws.values()):
        raise TypeError("laws must map sizes to power laws: {size: fit_power_law(...), ...}.")
    checks.check_scalar("budget", budget, above=0.0)
    for size in laws:
        checks.check_scalar("a size", size, above=0.0)
    candidates = [
        (members, size)
        for size in laws
        for members in sorted({1, int(budget // size)})
        if members and members * size <= budget
    ]
    if not candidates:
        raise ValueError(
            f"no network fits into a budget of {budget}: the sizes are {', '.join(map(str, laws))}."
        )
    predicted = np.array([_at(laws[size], members) for members, size in candidates])
    alone = np.array([members == 1 for members, _ in candidates])
    best = int(np.argmin(predicted))  # the first that is no number, if there is one
    members, size = candidates[best]
    gain = predicted[alone].min() - predicted[best]
    return Split(members, size, jnp.asarray(predicted[best]), jnp.asarray(gain))


def _at(law: PowerLaw, members: int) -> float:
    """The law at a number of members, in float64."""
    return float(law.offset) + float(law.scale) * members ** float(law.exponent)
