"""Equally weighted averages of the params along the trajectory, at the tail of a chain."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatjax import _checks as checks
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.transforms import _base as base
from flatjax.transforms import _prng as prng


@reading.readable
class SWAState(NamedTuple):
    """State of [`swa`][].

    Attributes:
      count: the number of updates.
      collected: the number of params in the average.
      average: the average, in at least float32.
    """

    count: jax.Array
    collected: jax.Array
    average: Tree


@reading.readable
class SWAGState(NamedTuple):
    """State of [`swag`][].

    Attributes:
      count: the number of updates.
      collected: the number of params in the moments.
      average: the mean, in at least float32.
      square: the mean of the centred squares (the diagonal variance).
      deviations: the last ``rank`` deviations from the mean, a leading axis on every leaf; ``()``
        for rank 0.
    """

    count: jax.Array
    collected: jax.Array
    average: Tree
    square: Tree
    deviations: Any


def params_after(name: str, updates: Tree, params: Tree) -> Tree:
    """The params after this update, in at least float32."""
    if params is None:
        raise ValueError(f"{name} needs the params: call update(updates, state, params).")
    after = optax.apply_updates(params, updates)
    return trees.cast(after, trees.structure_of(params))


def swa(start: base.Number = 0, *, every: base.Number = 1) -> optax.GradientTransformationExtraArgs:
    r"""Stochastic weight averaging, at the tail of a chain.

    After update ``start`` + c, ``start`` + 2c, ... (c = ``every``) the params join an equally
    weighted mean. Updates pass unchanged. Read the mean with [`averaged_params`][], and estimate
    batch-norm statistics anew with [`reestimate_batch_statistics`][]: those along the way belong to
    other params. Must be the last transform of the chain.

    Args:
      start: the number of updates before the averaging begins.
      every: updates between two params of the mean, usually an epoch.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`SWAState`][].

    Raises:
      ValueError: for ``start`` < 0, ``every`` < 1, or an update without params.

    Example:
      >>> import flatjax, jax.numpy as jnp, optax
      >>> tx = optax.chain(optax.sgd(1.0), flatjax.swa())
      >>> w, state = jnp.array(3.0), tx.init(jnp.array(3.0))
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.array(1.0), state, w)
      ...     w = optax.apply_updates(w, updates)
      >>> float(flatjax.averaged_params(state, w))  # of 2 and 1
      1.5

    References:
      Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI
      2018.
    """
    checks.check_scalar("start", start, minimum=0)
    base.check_every(every)

    def init(params):
        return SWAState(base.start(), base.start(), trees.zeros(trees.structure_of(params)))

    def update(updates, state, params=None, **extra):
        del extra
        _, _, *new = _with_one_more("swa", updates, state, params, start, every)
        return updates, SWAState(*new)

    return optax.GradientTransformationExtraArgs(init, update)


def _with_one_more(name, updates, state, params, start, every):
    """The params after this update, whether they join the mean, and count, members and mean."""
    new = params_after(name, updates, params)
    count = base.advance(state.count)
    done = count - jnp.asarray(start, count.dtype)
    due = (done > 0) & (done % jnp.asarray(every, count.dtype) == 0) & base.all_finite(new)
    collected = state.collected + due.astype(state.collected.dtype)

    def towards(a, b):
        return jnp.where(due, a + (b - a) / jnp.maximum(collected, 1).astype(a.dtype), a)

    return new, due, count, collected, jax.tree.map(towards, state.average, new)


def swag(
    start: base.Number = 0, *, every: base.Number = 1, rank: int = 20
) -> optax.GradientTransformationExtraArgs:
    r"""SWA-Gaussian: the mean and the covariance of the trajectory, at the tail of a chain.

    Beside the mean of [`swa`][], the diagonal variance $\Sigma_d$ of the collected params and the
    last K = ``rank`` deviations $D$ from the running mean. Draw params with [`swag_sample`][].

    The variance is accumulated centred (Welford), not as the difference of two large means, which
    cancels in float32.

    Cost: 2 + K copies of the params. Must be the last transform of the chain.

    Args:
      start: the number of updates before the collection begins.
      every: updates between two collected params.
      rank: K; 0 for the diagonal alone.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`SWAGState`][].

    Raises:
      ValueError: for ``start`` < 0, ``every`` < 1, a ``rank`` of 1 or less than 0, or an update
        without params.

    Example:
      >>> import flatjax, jax.numpy as jnp, optax
      >>> tx = optax.chain(optax.sgd(1.0), flatjax.swag(rank=2))
      >>> w, state = jnp.array(3.0), tx.init(jnp.array(3.0))
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.array(1.0), state, w)
      ...     w = optax.apply_updates(w, updates)
      >>> float(state[-1].square)  # the variance of 2 and 1
      0.25

    References:
      Maddox et al., "A Simple Baseline for Bayesian Uncertainty in Deep Learning", NeurIPS 2019.
    """
    checks.check_scalar("start", start, minimum=0)
    base.check_every(every)
    columns = base.static_int("rank", rank, minimum=0)
    if columns == 1:
        raise ValueError("rank must be 0 (diagonal) or at least 2, got 1.")

    def init(params):
        structure = trees.structure_of(params)
        deviations = trees.zeros(structure, (columns,)) if columns else ()
        return SWAGState(
            base.start(), base.start(), trees.zeros(structure), trees.zeros(structure), deviations
        )

    def update(updates, state, params=None, **extra):
        del extra
        new, due, count, collected, average = _with_one_more(
            "swag", updates, state, params, start, every
        )

        def second(s, a, b, w):
            members = jnp.maximum(collected, 1).astype(s.dtype)
            return jnp.where(due, s + ((w - a) * (w - b) - s) / members, s)

        square = jax.tree.map(second, state.square, state.average, average, new)
        deviations = state.deviations
        held = {a.shape[0] for a in jax.tree.leaves(deviations)}
        if held - {columns}:
            raise ValueError(
                f"this state of swag holds {max(held)} deviations, and rank={rank}: go on with the "
                "rank that it was begun with, or begin anew."
            )
        if columns:
            slot = jnp.maximum(collected - 1, 0) % columns

            def column(d, a, w):
                return jnp.where(due, jnp.asarray(d).at[slot].set(w - a), d)

            deviations = jax.tree.map(column, deviations, average, new)
        return updates, SWAGState(count, collected, average, square, deviations)

    return optax.GradientTransformationExtraArgs(init, update)


def swag_sample(state: Any, params: Tree, *, key: jax.Array, scale: base.Number = 1.0) -> Tree:
    r"""Params drawn from the Gaussian of [`swag`][].

    $\bar w + s \left(\tfrac1{\sqrt2} \Sigma_d^{1/2} z_1 + \tfrac1{\sqrt{2 (K - 1)}} D z_2 \right)$
    with standard normal $z_1, z_2$ and the $K$ deviations collected so far; with rank 0, $\bar w +
    s\,\Sigma_d^{1/2} z_1$.

    Args:
      state: the state of [`swag`][], or of a chain that holds it.
      params: params, for their dtypes.
      key: a PRNG key.
      scale: $s$.

    Returns:
      A pytree like ``params``.

    Raises:
      ValueError: if the state does not hold exactly one [`SWAGState`][].

    Example:
      >>> import flatjax, jax, jax.numpy as jnp
      >>> tx = flatjax.swag(rank=2)
      >>> w, state = jnp.zeros(2), tx.init(jnp.zeros(2))
      >>> for update in (1.0, 2.0):
      ...     _, state = tx.update(jnp.full(2, update), state, w)
      >>> flatjax.swag_sample(state, w, key=jax.random.key(0)).shape
      (2,)
    """
    found = base.find_state(state, SWAGState)
    first, second = jax.random.split(key)
    z = prng.normal_like(first, found.average)
    diagonal = jax.tree.map(lambda s, a: jnp.sqrt(s) * a, found.square, z)
    if not isinstance(found.deviations, tuple) or found.deviations:
        columns = jax.tree.leaves(found.deviations)[0].shape[0]
        filled = jnp.minimum(found.collected, columns)
        draw = jax.random.normal(second, (columns,), trees.dtype(found.average))
        # Empty columns are zero; they only matter in the count.
        draw = draw / jnp.sqrt(2.0 * jnp.maximum(filled - 1, 1)).astype(draw.dtype)
        low = jax.tree.map(
            lambda d: jnp.tensordot(draw.astype(d.dtype), d, 1, precision="highest"),
            found.deviations,
        )
        diagonal = base.combine(1 / math.sqrt(2), diagonal, 1.0, low)
    return trees.cast(base.combine(1.0, found.average, scale, diagonal), params)
