"""SAM at the price of less than two gradients, and SAM along a friendlier direction."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatjax import _balls as balls
from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _loops as loops
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


class LookSAMState(NamedTuple):
    """State of [`looksam`][].

    Attributes:
      count: the number of updates.
      direction: the component of the last finite SAM gradient orthogonal to the gradient.
      metrics: [`SharpnessMetrics`][] of the last SAM step with ``diagnostics=True``, else ``()``.
    """

    count: jax.Array
    direction: Tree
    metrics: Any


def looksam(
    rho: base.Scalar = 0.05,
    *,
    every: base.Number = 5,
    alpha: base.Scalar = 0.7,
    ascent: Ascent = EUCLIDEAN,
    axis_name: collectives.AxisName = None,
    diagnostics: bool = False,
    check: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""SAM on every k-th step, its orthogonal component re-used between, at the head of a chain.

    On steps $t$ divisible by k the update is the SAM gradient $g_s$, and $g_v = g_s - \langle g_s,
    \hat g \rangle \hat g$ is kept; on the others it is $g + \alpha\,(\lVert g \rVert / \lVert g_v
    \rVert)\,g_v$ (Liu et al. 2022, "Towards Efficient and Scalable Sharpness-Aware Minimization").
    Projection and norms are those of the whole parameter vector. ``every=1`` is SAM.

    Cost: 1 + 1/k gradients per step, really skipped by ``lax.cond`` (under ``vmap`` a cond computes
    both branches); two more copies of the params.

    Args:
      rho: the radius, a number or a schedule.
      every: k; 5 to 10 in the paper.
      alpha: the weight of the re-used component; 0.7 in the paper.
      ascent: the ball, and what of the params moves in it: see [`Ascent`][].
      axis_name: inside ``shard_map`` or ``pmap``, the axes of the batch.
      diagnostics: keep [`SharpnessMetrics`][] in the state; needs ``value_fn``.
      check: compare the incoming updates with ``grad_fn(params)`` once, see [`sam`][].

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`LookSAMState`][]; ``update`` takes
      ``grad_fn`` or ``value_fn``.

    Raises:
      ValueError: for ``rho`` < 0, ``every`` < 1, ``alpha`` not finite, and as in [`sam`][].

    Example:
      >>> import flatjax, jax, jax.numpy as jnp
      >>> loss = lambda w: jnp.sum(jnp.array([1.0, 3.0]) * w**2) / 2
      >>> w = jnp.array([4.0, 1.0])
      >>> tx = flatjax.looksam(rho=0.5, every=2, alpha=0.1)
      >>> g, state = jax.grad(loss)(w), tx.init(w)
      >>> _, state = tx.update(g, state, w, grad_fn=jax.grad(loss))  # the SAM gradient
      >>> out, state = tx.update(g, state, w, grad_fn=jax.grad(loss))
      >>> out.round(2).tolist()
      [3.70, 3.40]
    """
    check_ascent(ascent)
    checks.check_scalar("rho", rho, minimum=0.0, schedule=True)
    checks.check_scalar("alpha", alpha, schedule=True)
    base.check_every(every)

    def init(params):
        metrics = initial_metrics(params) if diagnostics else ()
        return LookSAMState(base.start(), trees.zeros(trees.structure_of(params)), metrics)

    def update(updates, state, params=None, *, grad_fn=None, value_fn=None, **extra):
        del extra
        gradient, g = head("looksam", updates, params, grad_fn, value_fn, axis_name)

        def look():
            result = perturbed_gradient(
                ascent, gradient, g, params, base.at(rho, state.count, trees.dtype(params)),
                value_fn=gap_function("looksam", diagnostics, value_fn, axis_name),
            )  # fmt: skip
            direction, _ = rejection(result.gradient, g)
            direction = trees.cast(direction, state.direction)
            direction = base.where(base.all_finite(direction), direction, state.direction)
            metrics = measured(g, result, state.metrics) if diagnostics else ()
            return result.gradient, direction, metrics

        def reuse():
            unit = balls.dual_direction(state.direction)
            factor = base.at(alpha, state.count, trees.dtype(g)) * trees.norm(g)
            return base.combine(1.0, g, factor, unit), state.direction, state.metrics

        due = state.count % jnp.asarray(every, state.count.dtype) == 0
        out, direction, metrics = look() if base.always(every) else loops.cond(due, look, reuse)
        if check:
            check_is_gradient("looksam", g, out, gradient, params, state.count)
        return out, LookSAMState(base.advance(state.count), direction, metrics)

    return base.head_of_chain(init, update)


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
    hurts generalisation (Li et al. 2024, "Friendly Sharpness-Aware Minimization"). On the first
    step $m = d = g$. A gradient that is not finite does not enter $m$. ``sigma=0`` is SAM.

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
      ValueError: for ``rho`` < 0, ``decay`` outside [0, 1), and as in [`sam`][].

    Example:
      >>> import flatjax, jax, jax.numpy as jnp
      >>> loss = lambda w: jnp.sum(w**2) / 2
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatjax.friendly_sam(rho=0.5)
      >>> out, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, grad_fn=jax.grad(loss))
      >>> out.round(2).tolist()
      [3.30, 4.40]
    """
    check_ascent(ascent)
    checks.check_scalar("rho", rho, minimum=0.0, schedule=True)
    checks.check_scalar("sigma", sigma, schedule=True)
    checks.check_scalar("decay", decay, minimum=0.0, below=1.0, schedule=True)

    def init(params):
        metrics = initial_metrics(params) if diagnostics else ()
        average = trees.zeros(trees.structure_of(params))
        return FriendlySAMState(base.start(), base.start(), average, metrics)

    def update(updates, state, params=None, *, grad_fn=None, value_fn=None, **extra):
        del extra
        gradient, g = head("friendly_sam", updates, params, grad_fn, value_fn, axis_name)
        scalar = trees.dtype(params)
        first = state.collected == 0
        wide = trees.cast(g, state.average)
        weight = jnp.where(first, 0.0, base.at(sigma, state.count, scalar)).astype(scalar)
        memory = jnp.where(first, 0.0, base.at(decay, state.count, scalar)).astype(scalar)
        direction = base.combine(1.0, wide, -weight, state.average)
        # The ascent follows `direction`; the gradient itself only enters the diagnostics.
        result = perturbed_gradient(
            ascent, gradient, direction, params, base.at(rho, state.count, scalar),
            value_fn=gap_function("friendly_sam", diagnostics, value_fn, axis_name),
        )  # fmt: skip
        finite = base.all_finite(wide)
        average = base.combine(memory, state.average, 1 - memory, wide)
        average = base.where(finite, average, state.average)
        collected = state.collected + finite.astype(state.collected.dtype)
        metrics = measured(g, result, state.metrics) if diagnostics else ()
        if check:
            check_is_gradient("friendly_sam", g, result.gradient, gradient, params, state.count)
        out = trees.cast(result.gradient, g)
        return out, FriendlySAMState(base.advance(state.count), collected, average, metrics)

    return base.head_of_chain(init, update)
