"""Surrogate-gap and gradient-norm variants of SAM: what becomes of the two gradients.

GSAM (Zhuang et al. 2022), GNP (Zhao et al. 2022) and WSAM (Yue et al. 2023) take the gradient at
the params and at the perturbed params like SAM, and combine them differently.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.transforms import _base as base
from flatjax.transforms._ascent import EUCLIDEAN, Ascent, check_ascent
from flatjax.transforms._incoming import check_is_gradient
from flatjax.transforms._perturbed import (
    gap_function,
    head,
    initial_metrics,
    measured,
    perturbed_gradient,
    rejection,
)


class PairState(NamedTuple):
    """State of the transforms that combine the clean and the perturbed gradient.

    Attributes:
      count: the number of updates.
      metrics: [`SharpnessMetrics`][] with ``diagnostics=True``, else ``()``.
    """

    count: jax.Array
    metrics: Any


def pair_transform(
    name: str,
    combine: Callable[[Tree, Tree, jax.Array], Tree],
    rho: base.Scalar,
    ascent: Ascent,
    axis_name: collectives.AxisName,
    diagnostics: bool,
    check: bool,
) -> optax.GradientTransformationExtraArgs:
    """A head-of-chain transform ``combine(gradient, perturbed gradient, count)``."""
    check_ascent(ascent)
    checks.check_scalar("rho", rho, minimum=0.0, schedule=True)

    def init(params):
        return PairState(base.start(), initial_metrics(params) if diagnostics else ())

    def update(updates, state, params=None, *, grad_fn=None, value_fn=None, **extra):
        del extra
        gradient, g = head(name, updates, params, grad_fn, value_fn, axis_name)
        result = perturbed_gradient(
            ascent, gradient, g, params, base.at(rho, state.count, trees.dtype(params)),
            value_fn=gap_function(name, diagnostics, value_fn, axis_name),
        )  # fmt: skip
        if check:
            check_is_gradient(name, g, result.gradient, gradient, params, state.count)
        metrics = measured(g, result, state.metrics) if diagnostics else ()
        out = trees.cast(combine(g, result.gradient, state.count), g)
        return out, PairState(base.advance(state.count), metrics)

    return base.head_of_chain(init, update)


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
    without raising the perturbed loss (Zhuang et al. 2022, "Surrogate Gap Minimization Improves
    Sharpness-Aware Training"). $\alpha = 0$ is SAM. The paper ties rho to the learning rate: see
    [`proportional_schedule`][].

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
      ValueError: for ``rho`` < 0, ``alpha`` not finite, and as in [`sam`][].

    Example:
      >>> import flatjax, jax, jax.numpy as jnp
      >>> loss = lambda w: jnp.sum(jnp.array([1.0, 3.0]) * w**2) / 2
      >>> w = jnp.array([4.0, 1.0])
      >>> tx = flatjax.gsam(rho=0.5, alpha=0.5)
      >>> out, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, grad_fn=jax.grad(loss))
      >>> out.round(2).tolist()
      [4.26, 4.05]
    """
    checks.check_scalar("alpha", alpha, schedule=True)

    def combine(g, perturbed, count):
        orthogonal, _ = rejection(g, perturbed)
        return base.combine(1.0, perturbed, -base.at(alpha, count, trees.dtype(g)), orthogonal)

    return pair_transform("gsam", combine, rho, ascent, axis_name, diagnostics, check)


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
    \rho\,\hat g)$ with $\alpha = \lambda / \rho$ (Zhao et al. 2022, "Penalizing Gradient Norm for
    Efficiently Improving Generalization in Deep Learning"). $\alpha = 1$ is SAM. Both gradients
    enter as they are; the authors' default configuration normalises the first, which their formula
    does not. A schedule for ``alpha`` or ``rho`` gives the warm-ups of Zhao et al. (2024).

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
      ValueError: for ``rho`` < 0, ``alpha`` not finite, and as in [`sam`][].

    Example:
      >>> import flatjax, jax, jax.numpy as jnp
      >>> loss = lambda w: jnp.sum(w**2) / 2
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatjax.gradient_norm_penalty(rho=1.0, alpha=0.5)
      >>> out, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, grad_fn=jax.grad(loss))
      >>> out.round(2).tolist()
      [3.30, 4.40]
    """
    checks.check_scalar("alpha", alpha, schedule=True)

    def combine(g, perturbed, count):
        weight = base.at(alpha, count, trees.dtype(g))
        return base.combine(1 - weight, g, weight, perturbed)

    return pair_transform(
        "gradient_norm_penalty", combine, rho, ascent, axis_name, diagnostics, check
    )


class WSAMState(NamedTuple):
    """State of the decoupled [`wsam`][].

    Attributes:
      count: the number of updates.
      optimizer_state: the state of the optimiser.
      metrics: [`SharpnessMetrics`][] with ``diagnostics=True``, else ``()``.
    """

    count: jax.Array
    optimizer_state: Any
    metrics: Any


def wsam(
    rho: base.Scalar = 0.05,
    *,
    gamma: base.Scalar = 0.9,
    optimizer: optax.GradientTransformation | None = None,
    learning_rate: base.Scalar | None = None,
    ascent: Ascent = EUCLIDEAN,
    axis_name: collectives.AxisName = None,
    diagnostics: bool = False,
    check: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Weighted SAM: sharpness as a regulariser of chosen weight.

    Minimises $L + \frac{\gamma}{1 - \gamma} (L(w + \epsilon) - L(w))$ (Yue et al. 2023,
    "Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization Term").
    $\gamma = 1/2$ is SAM, $\gamma = 0$ the plain gradient.

    - Without ``optimizer``: the head of a chain, handing out $g + \frac{\gamma}{1 - \gamma}(g_s -
      g)$.
    - With ``optimizer`` and ``learning_rate``: a whole optimiser, decoupled as in the paper. The
      optimiser sees the plain $g$, and $-\eta \frac{\gamma}{1 - \gamma} (g_s - g)$ is added to its
      update, past its momentum and preconditioner.

    Cost: 2 gradients per step, one more copy of the params.

    Args:
      rho: the radius, a number or a schedule.
      gamma: the weight in [0, 1); 0.9 in the paper.
      optimizer: the optimiser for the plain part, learning rate included.
      learning_rate: the learning rate of the sharpness part, usually the optimiser's.
      ascent: the ball, and what of the params moves in it: see [`Ascent`][].
      axis_name: inside ``shard_map`` or ``pmap``, the axes of the batch.
      diagnostics: keep [`SharpnessMetrics`][] in the state; needs ``value_fn``.
      check: compare the incoming updates with ``grad_fn(params)`` once, see [`sam`][].

    Returns:
      An ``optax.GradientTransformationExtraArgs``; ``update`` takes ``grad_fn`` or ``value_fn``.

    Raises:
      ValueError: for ``gamma`` outside [0, 1), one of ``optimizer`` and ``learning_rate`` without
        the other, and as in [`sam`][].

    Example:
      >>> import flatjax, jax, jax.numpy as jnp, optax
      >>> loss = lambda w: jnp.sum(w**2) / 2
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatjax.wsam(0.5, gamma=0.5, optimizer=optax.sgd(0.1), learning_rate=0.1)
      >>> out, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, grad_fn=jax.grad(loss))
      >>> out.round(2).tolist()
      [-0.33, -0.44]
    """
    checks.check_scalar("gamma", gamma, minimum=0.0, below=1.0, schedule=True)
    if (optimizer is None) != (learning_rate is None):
        raise ValueError(
            "the decoupled wsam needs both `optimizer` and `learning_rate`; with neither it is a "
            "head-of-chain transform."
        )

    def ratio(count, dtype):
        weight = base.at(gamma, count, dtype)
        return weight / (1 - weight)

    if optimizer is None:

        def combine(g, perturbed, count):
            factor = ratio(count, trees.dtype(g))
            return base.combine(1 - factor, g, factor, perturbed)

        return pair_transform("wsam", combine, rho, ascent, axis_name, diagnostics, check)

    inner = optax.with_extra_args_support(optimizer)
    rate: base.Scalar = 0.0 if learning_rate is None else learning_rate
    checks.check_scalar("learning_rate", rate, minimum=0.0, schedule=True)

    def sharpness(g, perturbed, count):
        dtype = trees.dtype(g)
        factor = -base.at(rate, count, dtype) * ratio(count, dtype)
        return base.combine(factor, perturbed, -factor, g)

    part = pair_transform("wsam", sharpness, rho, ascent, axis_name, diagnostics, check)

    def init(params):
        state: Any = part.init(params)
        return WSAMState(state.count, inner.init(params), state.metrics)

    def update(updates, state, params=None, **extra):
        pair = PairState(state.count, state.metrics)
        result: Any = part.update(updates, pair, params, **extra)
        extra_step, pair = result
        incoming = base.average(updates, axis_name)
        plain, optimizer_state = inner.update(incoming, state.optimizer_state, params, **extra)
        out = jax.tree.map(lambda a, b: a + b.astype(a.dtype), plain, extra_step)
        return out, WSAMState(pair.count, optimizer_state, pair.metrics)

    return base.head_of_chain(init, update)
