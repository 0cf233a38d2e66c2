"""SAM for one gradient a step: the perturbation follows the momentum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatjax import _balls as balls
from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.transforms import _base as base
from flatjax.transforms import _means as means


@reading.readable
class MomentumSAMState(NamedTuple):
    """State of [`momentum_sam`][].

    Attributes:
      count: the number of updates.
      velocity: the momentum buffer, in at least float32.
      radius: the length by which the params are displaced now.
    """

    count: jax.Array
    velocity: Tree
    radius: jax.Array


def momentum_sam(
    learning_rate: base.Scalar,
    *,
    rho: base.Scalar = 0.3,
    momentum: base.Scalar = 0.9,
    weight_decay: base.Scalar = 0.0,
    axis_name: collectives.AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum-SAM with momentum SGD: a whole optimiser, one gradient a step.

    The params in the caller's hands are the *displaced* $\tilde w = w - \rho\,v / \lVert v \rVert$,
    at which the caller takes the gradient $g$. Then

    $$v \leftarrow \mu v + g + \lambda \tilde w, \qquad w \leftarrow w - \eta v,$$

    and the params are displaced again along the new $v$ (signs as in the paper: past the valley's
    floor the negative momentum direction is one of ascent). Evaluate the model at
    [`momentum_sam_eval_params`][], not at the displaced params. ``rho=0`` is ``optax.sgd`` with
    momentum.

    Cost: 1 gradient a step, one more copy of the params (the momentum, as for SGD).

    Args:
      learning_rate: $\eta$, a number or a schedule.
      rho: the displacement; 0.3 is the authors' default, 3 is in their configurations.
      momentum: $\mu$ in [0, 1).
      weight_decay: $\lambda$, in the gradient as the authors have it.
      axis_name: inside ``shard_map`` or ``pmap``, the axes of the batch.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`MomentumSAMState`][].

    Raises:
      ValueError: for ``learning_rate``, ``rho`` or ``weight_decay`` < 0, ``momentum`` outside
        [0, 1), or an update without params.

    Example:
      >>> import flatjax, jax, jax.numpy as jnp, optax
      >>> loss = lambda w: jnp.sum(w**2) / 2
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatjax.momentum_sam(0.1, rho=0.5)
      >>> updates, state = tx.update(jax.grad(loss)(w), tx.init(w), w)
      >>> displaced = optax.apply_updates(w, updates)
      >>> displaced.round(2).tolist()
      [2.40, 3.20]
      >>> flatjax.momentum_sam_eval_params(state, displaced).round(2).tolist()
      [2.70, 3.60]

    References:
      Becker, Altrock and Risse, "Momentum-SAM: Sharpness Aware Minimization without Computational
      Overhead", 2024.
    """
    checks.check_scalar("learning_rate", learning_rate, minimum=0.0, schedule=True)
    checks.check_scalar("rho", rho, minimum=0.0, schedule=True)
    checks.check_scalar("momentum", momentum, minimum=0.0, below=1.0, schedule=True)
    checks.check_scalar("weight_decay", weight_decay, minimum=0.0, schedule=True)

    def init(params):
        radius = jnp.zeros((), trees.dtype(params))
        return MomentumSAMState(base.start(), trees.zeros(trees.structure_of(params)), radius)

    def update(updates, state, params=None, **extra):
        del extra
        base.require_params("momentum_sam", params)
        g = means.average(updates, axis_name)
        scalar = trees.dtype(params)
        eta, mu, decay, radius = (
            base.at(a, state.count, scalar) for a in (learning_rate, momentum, weight_decay, rho)
        )
        like = state.velocity
        forced = base.combine(1.0, trees.cast(g, like), decay, trees.cast(params, like))
        velocity = base.combine(mu, state.velocity, 1.0, forced)
        # One displacement undone, one step, the next displacement: the sum is the update.
        step = base.combine(
            state.radius,
            balls.dual_direction(state.velocity),
            -radius,
            balls.dual_direction(velocity),
        )
        step = base.combine(1.0, step, -eta, velocity)
        kept = base.if_finite(forced, (velocity, radius), (state.velocity, state.radius))
        return trees.cast(step, params), MomentumSAMState(base.advance(state.count), *kept)

    return optax.GradientTransformationExtraArgs(init, update)


def momentum_sam_eval_params(state: Any, params: Tree) -> Tree:
    r"""The params $w = \tilde w + \rho\,v / \lVert v \rVert$ at which to evaluate the model.

    Args:
      state: the optimiser state, that of [`momentum_sam`][] or of a chain that holds it.
      params: the displaced params.

    Returns:
      The params without the displacement.

    Raises:
      ValueError: if ``state`` does not hold exactly one [`MomentumSAMState`][].

    Example:
      >>> import flatjax, jax.numpy as jnp
      >>> w, tx = jnp.ones(2), flatjax.momentum_sam(0.1)
      >>> flatjax.momentum_sam_eval_params(tx.init(w), w).tolist()  # not displaced yet
      [1.0, 1.0]
    """
    found = base.find_state(state, MomentumSAMState)
    lift = base.scaled(found.radius, balls.dual_direction(found.velocity))
    return balls.moved(params, lift)
