"""The moving average of the params, at the tail of a chain, and how every average is read."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatjax import _checks as checks
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.transforms import _base as base
from flatjax.transforms._swa import SWAGState, SWAState, params_after


@reading.readable
class EMAState(NamedTuple):
    """State of [`ema_params`][].

    Attributes:
      count: the number of updates.
      average: the average, in at least float32.
      weight: the total weight of the params seen, by which ``debias`` divides.
    """

    count: jax.Array
    average: Tree
    weight: jax.Array


def ema_params(
    decay: base.Scalar = 0.999, *, debias: bool = False, warmup: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Exponential moving average of the params, at the tail of a chain.

    After each update $\bar w \leftarrow d \bar w + (1 - d) w$ with the params $w$ as they will be.
    Updates pass unchanged. Read the average with [`averaged_params`][]. It is kept in at least
    float32: in bfloat16 $(1 - d)(w - \bar w)$ would round away.

    ``optax.ema`` averages *updates*; this averages params. Must be the last transform of the chain:
    what comes after it is not seen.

    Args:
      decay: $d$ in [0, 1], a number or a schedule.
      debias: start from zero and divide by the total weight $1 - d^t$; otherwise the average starts
        from the first params.
      warmup: $d_t = \min(d, (1 + t) / (10 + t))$ on update t = 0, 1, ...

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`EMAState`][].

    Raises:
      ValueError: for ``decay`` outside [0, 1], or an update without params.

    Example:
      >>> import flatjax, jax.numpy as jnp, optax
      >>> tx = optax.chain(optax.sgd(1.0), flatjax.ema_params(0.5))
      >>> w = jnp.array(1.0)
      >>> updates, state = tx.update(jnp.array(1.0), tx.init(w), w)
      >>> float(flatjax.averaged_params(state, optax.apply_updates(w, updates)))
      0.5

    References:
      Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
    """
    checks.check_scalar("decay", decay, minimum=0.0, maximum=1.0, schedule=True)

    def init(params):
        zeros = trees.zeros(trees.structure_of(params))
        return EMAState(base.start(), zeros, jnp.zeros((), trees.dtype(params)))

    def update(updates, state, params=None, **extra):
        del extra
        new = params_after("ema_params", updates, params)
        d = base.at(decay, state.count, state.weight.dtype)
        if warmup:
            t = state.count.astype(d.dtype)
            d = jnp.minimum(d, (1 + t) / (10 + t))
        old = state.average
        if not debias:
            # An abstract init has no values; the first params are here in any case.
            old = base.where(state.count == 0, trees.cast(params, old), old)
        average = base.combine(d, old, 1 - d, new)
        old_weight = state.weight if debias else jnp.ones_like(state.weight)
        weight = base.combine(d, old_weight, 1 - d, jnp.ones_like(d))
        kept = base.if_finite(new, (average, weight), (old, old_weight))
        return updates, EMAState(base.advance(state.count), *kept)

    return optax.GradientTransformationExtraArgs(init, update)


def averaged_params(state: Any, params: Tree) -> Tree:
    """The averaged params held in an optimiser state.

    Args:
      state: the state of [`ema_params`][], [`swa`][] or [`swag`][], or of a chain that holds one.
      params: the current params: their dtypes, and their values where nothing is collected yet.

    Returns:
      The average, in the dtypes of ``params``.

    Raises:
      ValueError: if the state holds none of them, or more than one.

    Example:
      >>> import flatjax, jax.numpy as jnp, optax
      >>> tx = optax.chain(optax.sgd(0.1), flatjax.swa())
      >>> w, state = jnp.ones(2), tx.init(jnp.ones(2))
      >>> _, state = tx.update(10 * w, state, w)
      >>> flatjax.averaged_params(state, w).tolist()
      [0.0, 0.0]
    """
    found = base.find_state(state, (EMAState, SWAState, SWAGState))
    if isinstance(found, EMAState):
        some = found.weight != 0
        weight = jnp.where(some, found.weight, jnp.ones_like(found.weight))
        average = jax.tree.map(lambda a: a / weight.astype(a.dtype), found.average)
    else:
        some, average = found.collected > 0, found.average
    return jax.tree.map(lambda a, w: jnp.where(some, a.astype(w.dtype), w), average, params)
