"""Friendly SAM: SAM along the batch-specific part of the gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.transforms import _base as base
from flatjax.transforms._ascent import EUCLIDEAN, Ascent
from flatjax.transforms._sharpness_aware import sharpness_aware


@reading.readable
class FriendlySAMState(NamedTuple):
    """State of [`friendly_sam`][].

    Attributes:
      count: the number of updates.
      collected: the number of finite gradients among them, which are in the average.
      average: the moving average of the gradients, in at least float32.
      metrics: [`SharpnessMetrics`][] with ``diagnostics=True``, else ``()``.
    """

    count: jax.Array
    collected: jax.Array
    average: Tree
    metrics: Any


def friendly_sam(
    rho: base.Scalar = 0.05,
    *,
    sigma: base.Scalar = 1.0,
    decay: base.Scalar = 0.9,
    ascent: Ascent = EUCLIDEAN,
    axis_name: collectives.AxisName = None,
    diagnostics: bool = False,
    check: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""SAM along the batch-specific part of the gradient, at the head of a chain.

    With the moving average $m_t = \lambda m_{t-1} + (1 - \lambda) g_t$ of the *raw* gradients, the
    perturbation follows $d_t = g_t - \sigma m_{t-1}$ instead of $g_t$: the full-batch component
    hurts generalisation. On the first step $m = d = g$. A gradient that is not finite does not
    enter $m$. ``sigma=0`` is SAM.

    Cost: 2 gradients per step, two more copies of the params.

    Args:
      rho: the radius, a number or a schedule.
      sigma: how much of the average is taken away; 1 in the paper.
      decay: $\lambda$; 0.6 to 0.95 in the authors' scripts.
      ascent: the ball, and what of the params moves in it: see [`Ascent`][].
      axis_name: inside ``shard_map`` or ``pmap``, the axes of the batch.
      diagnostics: keep [`SharpnessMetrics`][] in the state; needs ``value_fn``.
      check: compare the incoming updates with ``grad_fn(params)`` once, see [`sam`][].

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`FriendlySAMState`][]; ``update``
      takes ``grad_fn`` or ``value_fn``.

    Raises:
      ValueError: for ``decay`` outside [0, 1), and wherever [`sam`][] raises it.

    Example:
      >>> import flatjax, jax, jax.numpy as jnp
      >>> loss = lambda w: jnp.sum(w**2) / 2
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatjax.friendly_sam(rho=0.5)
      >>> out, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, grad_fn=jax.grad(loss))
      >>> out.round(2).tolist()
      [3.30, 4.40]

    References:
      Li, Zhou, He, Cheng and Huang, "Friendly Sharpness-Aware Minimization", CVPR 2024.
    """
    checks.check_scalar("sigma", sigma, schedule=True)
    checks.check_scalar("decay", decay, minimum=0.0, below=1.0, schedule=True)

    def init(params):
        average = trees.zeros(trees.structure_of(params))
        return FriendlySAMState(base.start(), base.start(), average, ())

    def step(g, perturbed, state, params, extra):
        del extra
        first, wide = state.collected == 0, trees.cast(g, state.average)
        weight, memory = (
            jnp.where(first, 0.0, base.at(a, state.count, trees.dtype(params)))
            for a in (sigma, decay)
        )
        # The ascent follows the difference; the gradient itself only enters the diagnostics.
        out, metrics = perturbed(base.combine(1.0, wide, -weight, state.average))
        average = base.combine(memory, state.average, 1 - memory, wide)
        old = (state.collected, state.average)
        collected, average = base.if_finite(wide, (state.collected + 1, average), old)
        return out, FriendlySAMState(state.count, collected, average, metrics)

    return sharpness_aware(
        "friendly_sam", step, rho, ascent, axis_name, diagnostics, check, init=init
    )
