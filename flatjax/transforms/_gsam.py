"""GSAM: SAM that lowers the surrogate gap, and its radius."""

import optax

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax.transforms import _base as base
from flatjax.transforms._ascent import EUCLIDEAN, Ascent
from flatjax.transforms._perturbed import rejection
from flatjax.transforms._sharpness_aware import sharpness_aware


def gsam(
    rho: base.Scalar = 0.05,
    *,
    alpha: base.Scalar = 0.4,
    ascent: Ascent = EUCLIDEAN,
    axis_name: collectives.AxisName = None,
    diagnostics: bool = False,
    check: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Surrogate-gap guided SAM, at the head of a chain.

    With $g_p = \nabla L(w + \epsilon)$ the update is $g_p - \alpha\,g_\perp$, where $g_\perp$ is
    the component of $g$ orthogonal to $g_p$: it lowers the surrogate gap $L(w + \epsilon) - L(w)$
    without raising the perturbed loss. $\alpha = 0$ is SAM. The paper ties rho to the learning
    rate: see [`proportional_schedule`][].

    Cost: 2 gradients per step, one more copy of the params.

    Args:
      rho: the radius, a number or a schedule.
      alpha: the weight of the orthogonal component; 0.4 to 0.6 in the paper.
      ascent: the ball, and what of the params moves in it: see [`Ascent`][].
      axis_name: inside ``shard_map`` or ``pmap``, the axes of the batch.
      diagnostics: keep [`SharpnessMetrics`][] in the state; needs ``value_fn``.
      check: compare the incoming updates with ``grad_fn(params)`` once, see [`sam`][].

    Returns:
      An ``optax.GradientTransformationExtraArgs``; ``update`` takes ``grad_fn`` or ``value_fn``.

    Raises:
      ValueError: for an ``alpha`` that is not finite, and wherever [`sam`][] raises it.

    Example:
      >>> import flatjax, jax, jax.numpy as jnp
      >>> loss = lambda w: jnp.sum(jnp.array([1.0, 3.0]) * w**2) / 2
      >>> w = jnp.array([4.0, 1.0])
      >>> tx = flatjax.gsam(rho=0.5, alpha=0.5)
      >>> out, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, grad_fn=jax.grad(loss))
      >>> out.round(2).tolist()
      [4.26, 4.05]

    References:
      Zhuang et al., "Surrogate Gap Minimization Improves Sharpness-Aware Training", ICLR 2022.
    """
    checks.check_scalar("alpha", alpha, schedule=True)

    def step(g, perturbed, state, params, extra):
        del params, extra
        other, metrics = perturbed()
        orthogonal, _ = rejection(g, other)
        weight = base.at(alpha, state.count, trees.dtype(g))
        return base.combine(1.0, other, -weight, orthogonal), state._replace(metrics=metrics)

    return sharpness_aware("gsam", step, rho, ascent, axis_name, diagnostics, check)


def proportional_schedule(
    learning_rate: optax.Schedule,
    *,
    rho_max: float,
    rho_min: float,
    learning_rate_max: float,
    learning_rate_min: float = 0.0,
) -> optax.Schedule:
    r"""A radius that follows the learning rate linearly, as GSAM has it.

    $\rho_t = \rho_{\min} + (\rho_{\max} - \rho_{\min})\,(\eta_t - \eta_{\min}) / (\eta_{\max} -
    \eta_{\min})$.

    Args:
      learning_rate: the schedule of the optimiser.
      rho_max: the radius at ``learning_rate_max``.
      rho_min: the radius at ``learning_rate_min``.
      learning_rate_max: the largest learning rate.
      learning_rate_min: the smallest.

    Returns:
      A schedule for ``rho``.

    Raises:
      ValueError: if the range of learning rates is empty.

    Example:
      >>> import flatjax, optax
      >>> lr = optax.linear_schedule(1.0, 0.0, 10)
      >>> rho = flatjax.transforms.proportional_schedule(
      ...     lr, rho_max=0.6, rho_min=0.1, learning_rate_max=1.0
      ... )
      >>> round(float(rho(5)), 3)
      0.35
    """
    if not learning_rate_max > learning_rate_min:
        raise ValueError(
            f"learning_rate_max={learning_rate_max} must exceed "
            f"learning_rate_min={learning_rate_min}."
        )
    checks.check_scalar("rho_min", rho_min, minimum=0.0)
    checks.check_scalar("rho_max", rho_max, minimum=0.0)
    slope = (rho_max - rho_min) / (learning_rate_max - learning_rate_min)
    return lambda count: rho_min + slope * (learning_rate(count) - learning_rate_min)
