"""Critical sharpness: curvature along an update, from forward passes alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax._balls import moved
from flatjax.measures import _objective as objective
from flatjax.measures import _search as search


@reading.readable
class CriticalSharpness(NamedTuple):
    r"""The smallest step along an update at which the loss rises.

    Attributes:
      value: $\lambda_c = 2 / \eta_c$.
      step: $\eta_c$, the middle of the bracket, in multiples of the update.
      lower: a step at which the loss has not yet risen; 0 if none was found.
      upper: a step at which it has; infinite if none was found.
      loss: $L(w)$.
      converged: whether the bracket is closed to ``tol``.
      num_evaluations: forward passes spent.
    """

    value: jax.Array
    step: jax.Array
    lower: jax.Array
    upper: jax.Array
    loss: jax.Array
    converged: jax.Array
    num_evaluations: jax.Array

    __float__ = reading.as_float


def critical_sharpness(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batch: Any,
    *args: Any,
    update: Any,
    initial_step: ArrayLike = 1.0,
    factor: ArrayLike = 1.0,
    tol: float = 1e-2,
    max_trials: int = 24,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    precision: str | None = "highest",
) -> CriticalSharpness:
    r"""The curvature along an update, from the smallest step at which the loss rises.

    $$\lambda_c = 2 / \eta_c, \qquad
    \eta_c = \min \{ \eta > 0 : L(w + \eta u) > c\,L(w) \}, \quad c = 1$$

    (Kalra et al. 2026, critical sharpness and critical learning rate). To second order, with the
    gradient g, $\lambda_c = u^\top H u / (-u^\top g)$: for gradient descent, $u = -g$, the Rayleigh
    quotient of the gradient, at most $\lambda_{\max}$ and equal to it once the gradient lies along
    the sharpest direction. With $c = 1.2$ the step is the $\alpha^*$ of Jastrzebski et al. 2019.

    ``update`` is what optax adds to the params, so it points downhill: with $u = -g$ the critical
    step is a learning rate; with an optimiser's whole update it is a multiple of that step, and
    $\lambda_c$ times the learning rate is comparable to 2. Along another loss's update this is the
    paper's relative critical sharpness.

    The step is doubled until the loss rises, or halved until it does not, and the bracket bisected.
    If the update points uphill no step is found: ``converged`` is false and ``value`` large. Where
    the loss has several crossings the one found need not be the first.

    Invariances: ``value`` is inverse to the scale of the update (``step * update`` does not depend
    on it); both are the same in every linear parametrisation that maps the update along.

    Cost: one forward pass and, from an initial step within a factor of two, 8 more at the default
    tolerance. Memory of a forward pass.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the mean loss (a scalar) or the per-example
        losses, shape ``(n,)``.
      params: a pytree of floating arrays; in low precision, taken in float32.
      batch: a pytree whose leaves share a leading axis of ``n`` examples.
      *args: anything else the loss takes.
      update: the direction, a pytree like ``params``.
      initial_step: the first step tried; the last answer is a good one along a training run.
      factor: the loss has risen when it exceeds ``factor`` times the loss at ``params``.
      tol: the width of the bracket of the step, relative to its upper end, at which the search
        stops; the relative error of ``value`` is half of it.
      max_trials: the most steps tried, a forward pass each.
      weights: per-example weights or a padding mask, shape ``(n,)``; needs per-example losses.
      axis_name: the mesh axis over which the batch is split, inside ``shard_map`` or ``pmap``.
      precision: matmul precision; ``None`` leaves the caller's default.

    Returns:
      A [`CriticalSharpness`][] of scalars.

    Raises:
      TypeError: if ``params`` holds anything but real floating arrays, or ``update`` another tree.
      ValueError: for an update of other shapes, a step or tolerance that is not positive, or data
        that do not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> def loss_fn(w, _):
      ...     return 1.5 * (w**2).sum()  # H = 3 everywhere
      >>> w = jnp.ones(4)
      >>> update = -jax.grad(loss_fn)(w, None)
      >>> result = flatjax.critical_sharpness(loss_fn, w, None, update=update)
      >>> round(float(result.value), 1), bool(result.converged)
      (3.0, True)

    References:
      Kalra et al., 2026, arXiv:2601.16979; Jastrzebski et al., "On the relation between the
      sharpest directions of DNN loss and the SGD step length", ICLR 2019, arXiv:1807.05031.
    """
    checks.check_scalar("initial_step", initial_step, above=0.0)
    checks.check_scalar("factor", factor, above=0.0)
    checks.check_scalar("tol", tol, above=0.0)
    checks.check_count("max_trials", max_trials)
    op = objective.mean_loss(
        loss_fn, params, batch, args, weights=weights, axis_name=axis_name, precision=precision
    )
    trees.check(update, op.structure, "update")
    loss = objective.loss_at(op, op.params)
    level = jnp.asarray(factor).astype(loss.dtype) * loss
    found = search.crossing(
        lambda step: _risen(op, update, step, level),
        initial_step,
        tol=tol,
        max_trials=max_trials,
        dtype=loss.dtype,
    )
    step = (found.lower + found.upper) / 2
    return CriticalSharpness(
        value=2 / step,
        step=step,
        lower=found.lower,
        upper=found.upper,
        loss=loss,
        converged=found.converged(tol),
        num_evaluations=found.num_evaluations + 1,
    )


@jax.jit
def _risen(op, update, step, level):
    loss = objective.value(
        op, moved(op.params, trees.scale(step, trees.cast(update, op.structure)))
    )
    # A loss that is no number counts as risen.
    return ~(loss <= level)
