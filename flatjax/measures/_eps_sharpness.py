"""Keskar's sharpness: the largest rise of the loss in a box, in the whole space or a subspace."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax.linalg.vectors import _basis as basis
from flatjax.linalg.vectors import _probes as probes
from flatjax.measures import _objective as objective
from flatjax.measures import _worst_case as worst_case
from flatjax.operators._hessian import Hessian


@reading.readable
class EpsSharpness(NamedTuple):
    r"""Keskar's sharpness at a point.

    Attributes:
      value: $100\,(\max L - L) / (1 + L)$; a lower bound, for the maximum is found by ascent.
      max_loss: the largest loss found in the box.
      loss: $L(w)$.
      perturbation: where, a pytree like the params: $z$, or $A z$ in a subspace.
      gap: the most that the linear model there still rises inside the box, in units of the loss;
        0 at a stationary point of the maximisation.
      starts: the best rise of the loss from every start, shape ``(num_starts,)``.
      num_evaluations: gradients spent, or forward passes with forward differences.
    """

    value: jax.Array
    max_loss: jax.Array
    loss: jax.Array
    perturbation: Any
    gap: jax.Array
    starts: jax.Array
    num_evaluations: int

    __float__ = reading.as_float


def eps_sharpness(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batch: Any,
    *args: Any,
    epsilon: ArrayLike = 1e-3,
    subspace: int | None = None,
    key: jax.Array | None = None,
    ascent_steps: int = 10,
    num_starts: int = 1,
    gradient: str = "autodiff",
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    precision: str | None = "highest",
) -> EpsSharpness:
    r"""Keskar's sharpness: how far the loss rises in a small box around the params, in per cent.

    $$\phi_\epsilon = 100\,\frac{\max_{z \in C_\epsilon} L(w + z) - L(w)}{1 + L(w)}, \qquad
    C_\epsilon = \{ z : |z_i| \le \epsilon (|w_i| + 1) \}$$

    (Keskar et al. 2017). With ``subspace=k`` the maximum is over $w + A z$ with $A$ of $k$ random
    columns of unit length and the box $|z_i| \le \epsilon (|(A^+ w)_i| + 1)$. The paper maximises
    by 10 iterations of L-BFGS-B; here every step is a conditional gradient with backtracking, which
    reaches higher values for the same number of gradients. The box is the ball of
    [`sam_sharpness`][] with p = inf and $T = |w| + 1$.

    The loss is taken to be at least 0. At small $\epsilon$ and away from a minimum the value
    measures the residual gradient rather than the curvature.

    Invariances: to permutations of the params and to flips of their signs; not to rescaling, in
    general (the 1 in the box).

    Cost: ``1 + num_starts * ascent_steps`` gradients; with a subspace the memory of ``k`` vectors
    more; with forward differences ``k + 1`` forward passes per gradient.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the mean loss (a scalar) or the per-example
        losses, shape ``(n,)``.
      params: a pytree of floating arrays; in low precision, taken in float32.
      batch: a pytree whose leaves share a leading axis of ``n`` examples.
      *args: anything else the loss takes.
      epsilon: the size of the box; the paper uses 1e-3 and 5e-4.
      subspace: the number of random directions (the paper: 100), or ``None`` for all params.
      key: a PRNG key, needed by a subspace and by ``num_starts > 1``.
      ascent_steps: ascent steps from every start.
      num_starts: ascents; the first starts at the params, the others at random corners of the box.
      gradient: ``"autodiff"``, or ``"forward"`` for forward differences in a subspace, which need
        forward passes only.
      weights: per-example weights or a padding mask, shape ``(n,)``; needs per-example losses.
      axis_name: the mesh axis over which the batch is split, inside ``shard_map`` or ``pmap``.
      precision: matmul precision; ``None`` leaves the caller's default.

    Returns:
      An [`EpsSharpness`][]; ``perturbation`` is a pytree like the params, in at least float32.

    Raises:
      TypeError: if ``params`` holds anything but real floating arrays.
      ValueError: for ``epsilon <= 0``, no step, a missing key, a subspace larger than the space,
        ``gradient="forward"`` without a subspace, or data that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> def loss_fn(w, _):
      ...     return (w**2).sum()  # at w = 1 the box is |z| <= 0.2
      >>> result = flatjax.eps_sharpness(loss_fn, jnp.ones(2), None, epsilon=0.1)
      >>> round(float(result.value), 3)  # 100 * 2 * (1.2**2 - 1) / 3
      29.333

    References:
      Keskar, Mudigere, Nocedal, Smelyanskiy and Tang, "On large-batch training for deep learning:
      generalization gap and sharp minima", ICLR 2017, arXiv:1609.04836.
    """
    checks.check_scalar("epsilon", epsilon, above=0.0)
    checks.check_choice("gradient", gradient, ("autodiff", "forward"))
    worst_case.check_ascents(ascent_steps, num_starts, key)
    if subspace is None and gradient == "forward":
        raise ValueError(
            'gradient="forward" takes one forward pass per direction: give subspace=100 or so.'
        )
    if subspace is not None:
        checks.check_count("subspace", subspace)
        if key is None:
            raise ValueError("a random subspace needs key=jax.random.key(0).")
        if subspace > trees.size(params):
            raise ValueError(
                f"a subspace of {subspace} directions does not fit into {trees.size(params)} "
                "params: leave subspace=None for the whole space."
            )
    op = objective.mean_loss(
        loss_fn, params, batch, args, weights=weights, axis_name=axis_name, precision=precision
    )
    if subspace is None:
        ball = worst_case.scaled_ball(op.params, epsilon, 1.0)
    else:
        ball = random_subspace(key, op.params, subspace, epsilon)
    evaluate, cost = _evaluation(op, ball, gradient, subspace)
    best = worst_case.search(evaluate, ball, math.inf, ascent_steps, num_starts, key)
    return EpsSharpness(
        value=100 * best.value / (1 + best.loss),
        max_loss=best.loss + best.value,
        loss=best.loss,
        perturbation=best.perturbation,
        gap=best.gap,
        starts=best.starts,
        num_evaluations=cost * best.num_gradients,
    )


def _evaluation(op: Hessian, ball: Any, gradient: str, subspace: int | None):
    """The loss and its gradient as a function of ``y``, and what an evaluation costs."""
    if gradient == "autodiff":
        return partial(worst_case.loss_and_gradient, op, ball), 1
    # In units of the box. The cube root of eps, not the square root: the loss is rounded
    # relative to its own size, and its rise over the whole box may be a thousandth of that.
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(op.params))
    width = jnp.asarray(eps ** (1 / 3), ball.scales.dtype)
    return lambda y: worst_case.forward_differences(op, ball, y, width), int(subspace or 0) + 1


def random_subspace(key: Any, params: Any, size: int, epsilon: ArrayLike) -> worst_case.Subspace:
    """``size`` random directions of unit length, with Keskar's box in their coefficients."""
    keys = jax.random.split(jax.random.fold_in(key, 0), size)
    return _subspace(probes.block(keys, trees.structure_of(params), "normal"), params, epsilon)


@jax.jit
def _subspace(directions, params, epsilon):
    directions = basis.scale_rows(1 / basis.row_norms(directions), directions)
    # A^+ w by the normal equations: random columns in a large space are close to orthonormal.
    moments = basis.coefficients(directions, params)[0]
    coefficients = jnp.linalg.lstsq(basis.gram(directions, directions), moments)[0]
    return worst_case.Subspace(directions, trees.scale(epsilon, jnp.abs(coefficients) + 1))
