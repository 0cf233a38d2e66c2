"""WSAM: sharpness as a regulariser of chosen weight."""

from typing import Any, NamedTuple

import jax
import optax

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax.transforms import _base as base
from flatjax.transforms._ascent import EUCLIDEAN, Ascent
from flatjax.transforms._sharpness_aware import SAMState, sharpness_aware


@reading.readable
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

    Minimises $L + \frac{\gamma}{1 - \gamma} (L(w + \epsilon) - L(w))$. $\gamma = 1/2$ is SAM,
    $\gamma = 0$ the plain gradient.

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
        the other, and wherever [`sam`][] raises it.

    Example:
      >>> import flatjax, jax, jax.numpy as jnp, optax
      >>> loss = lambda w: jnp.sum(w**2) / 2
      >>> w = jnp.array([3.0, 4.0])
      >>> tx = flatjax.wsam(0.5, gamma=0.5, optimizer=optax.sgd(0.1), learning_rate=0.1)
      >>> out, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, grad_fn=jax.grad(loss))
      >>> out.round(2).tolist()
      [-0.33, -0.44]

    References:
      Yue et al., "Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization
      Term", KDD 2023.
    """
    checks.check_scalar("gamma", gamma, minimum=0.0, below=1.0, schedule=True)
    if (optimizer is None) != (learning_rate is None):
        raise ValueError(
            "the decoupled wsam needs both `optimizer` and `learning_rate`; with neither it is a "
            "head-of-chain transform."
        )

    rate: base.Scalar = 0.0 if learning_rate is None else learning_rate
    checks.check_scalar("learning_rate", rate, minimum=0.0, schedule=True)
    inner = None if optimizer is None else optax.with_extra_args_support(optimizer)

    def init(params):
        if inner is None:
            return SAMState(base.start(), ())
        return WSAMState(base.start(), inner.init(params), ())

    def step(g, perturbed, state, params, extra):
        other, metrics = perturbed()
        weight = base.at(gamma, state.count, trees.dtype(g))
        ratio = weight / (1 - weight)
        if inner is None:
            return base.combine(1 - ratio, g, ratio, other), state._replace(metrics=metrics)
        factor = -base.at(rate, state.count, trees.dtype(g)) * ratio
        sharpness = base.combine(factor, other, -factor, g)
        plain, optimizer_state = inner.update(g, state.optimizer_state, params, **extra)
        out = jax.tree.map(lambda a, b: a + b.astype(a.dtype), plain, sharpness)
        return out, WSAMState(state.count, optimizer_state, metrics)

    return sharpness_aware("wsam", step, rho, ascent, axis_name, diagnostics, check, init=init)
