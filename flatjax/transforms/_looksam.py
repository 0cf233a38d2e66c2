"""LookSAM: SAM at the price of less than two gradients."""

from typing import Any, NamedTuple

import jax
import optax

from flatjax import _balls as balls
from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.transforms import _base as base
from flatjax.transforms._ascent import EUCLIDEAN, Ascent
from flatjax.transforms._perturbed import rejection
from flatjax.transforms._sharpness_aware import sharpness_aware


@reading.readable
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
    \rVert)\,g_v$. Projection and norms are those of the whole parameter vector. ``every=1`` is SAM.

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
      ValueError: for an ``alpha`` that is not finite, and wherever [`sam`][] raises it.

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

    References:
      Liu et al., "Towards Efficient and Scalable Sharpness-Aware Minimization", CVPR 2022.
    """
    checks.check_scalar("alpha", alpha, schedule=True)
    base.check_every(every)

    def init(params):
        return LookSAMState(base.start(), trees.zeros(trees.structure_of(params)), ())

    def step(g, perturbed, state, params, extra):
        del params, extra

        def look():
            out, metrics = perturbed()
            direction = trees.cast(rejection(out, g)[0], state.direction)
            direction = base.if_finite(direction, direction, state.direction)
            return out, state._replace(direction=direction, metrics=metrics)

        def reuse():
            unit = balls.dual_direction(state.direction)
            factor = base.at(alpha, state.count, trees.dtype(g)) * trees.norm(g)
            return base.combine(1.0, g, factor, unit), state

        return base.on_every(every, state.count, look, reuse)

    return sharpness_aware("looksam", step, rho, ascent, axis_name, diagnostics, check, init=init)
