"""GNP: a penalty on the gradient norm, not squared."""

import optax

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax.transforms import _base as base
from flatjax.transforms._ascent import EUCLIDEAN, Ascent
from flatjax.transforms._sharpness_aware import sharpness_aware


def gradient_norm_penalty(
    rho: base.Scalar = 0.1,
    *,
    alpha: base.Scalar = 0.8,
    ascent: Ascent = EUCLIDEAN,
    axis_name: collectives.AxisName = None,
    diagnostics: bool = False,
    check: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Penalty on the gradient norm (not squared) by finite differences, at the head of a chain.

    For $L + \lambda \lVert \nabla L \rVert_2$ the update is $(1 - \alpha)\,g + \alpha\,\nabla L(w +
    \rho\,\hat g)$ with $\alpha = \lambda / \rho$. $\alpha = 1$ is SAM. Both gradients enter as they
    are; the authors' default configuration normalises the first, which their formula does not. A
    schedule for ``alpha`` or ``rho`` gives the warm-ups of Zhao et al. (2024).

    Cost: 2 gradients per step, one more copy of the params.

    Args:
      rho: the length of the finite-difference step, a number or a schedule.
      alpha: the coefficient of the norm over ``rho``.
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
      >>> loss = lambda w: jnp.sum(w**2) / 2
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatjax.gradient_norm_penalty(rho=1.0, alpha=0.5)
      >>> out, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, grad_fn=jax.grad(loss))
      >>> out.round(2).tolist()
      [3.30, 4.40]

    References:
      Zhao, Zhang and Hu, "Penalizing Gradient Norm for Efficiently Improving Generalization in Deep
      Learning", ICML 2022.
    """
    checks.check_scalar("alpha", alpha, schedule=True)

    def step(g, perturbed, state, params, extra):
        del params, extra
        other, metrics = perturbed()
        weight = base.at(alpha, state.count, trees.dtype(g))
        return base.combine(1 - weight, g, weight, other), state._replace(metrics=metrics)

    return sharpness_aware(
        "gradient_norm_penalty", step, rho, ascent, axis_name, diagnostics, check
    )
