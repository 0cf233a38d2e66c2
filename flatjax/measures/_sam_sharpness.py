"""SAM sharpness: the largest rise of the loss in a p-ball, plain or adaptive."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.typing import ArrayLike

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax.measures import _objective as objective
from flatjax.measures import _worst_case as worst_case
from flatjax.measures._worst_case import SamSharpness


def sam_sharpness(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batch: Any,
    *args: Any,
    rho: ArrayLike = 0.05,
    p: float = 2.0,
    ascent_steps: int = 1,
    adaptive: bool = False,
    offset: ArrayLike = 0.01,
    num_starts: int = 1,
    key: jax.Array | None = None,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    precision: str | None = "highest",
) -> SamSharpness:
    r"""The largest rise of the mean loss in a p-ball around the params.

    $$S_\rho = \max_{\lVert T^{-1} \epsilon \rVert_p \le \rho} L(w + \epsilon) - L(w),$$

    with $T = 1$ (Foret et al. 2021), or $T = |w| + o$ entry by entry, $o$ the ``offset``, with
    ``adaptive=True`` (ASAM: Kwon et al. 2021). Found by ascent: one step is SAM's own
    first-order perturbation; more steps are conditional gradients with backtracking, which never
    lower the loss and stay in the ball. ``value`` is a lower bound of the maximum.

    One step measures the gradient more than the curvature: near a minimum it can fall short of the
    maximum by a factor of a hundred, where 10 to 20 steps come within some per cent. At an exact
    critical point the first start does not move at all; give ``num_starts=2`` and a key.

    Invariances: with ``adaptive=True`` and ``offset=0`` to any rescaling of single weights that
    leaves the function as it is (so to the neuron-wise rescaling of ReLU networks); plain,
    with p = 2, to rotations of the params.

    Cost: ``1 + num_starts * ascent_steps`` gradients, and the memory of a gradient and five
    vectors.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the mean loss (a scalar) or the per-example
        losses, shape ``(n,)``.
      params: a pytree of floating arrays; in low precision, taken in float32.
      batch: a pytree whose leaves share a leading axis of ``n`` examples.
      *args: anything else the loss takes.
      rho: the radius of the ball.
      p: the norm of the ball, in [1, inf].
      ascent_steps: ascent steps from every start.
      adaptive: scale the ball by ``|w| + offset``.
      offset: what is added to the magnitudes.
      num_starts: ascents; the first starts at the params, the others at random points of the
        boundary.
      key: a PRNG key, needed by ``num_starts > 1``.
      weights: per-example weights or a padding mask, shape ``(n,)``; needs per-example losses.
      axis_name: the mesh axis over which the batch is split, inside ``shard_map`` or ``pmap``; the
        perturbation is the global one.
      precision: matmul precision; ``None`` leaves the caller's default.

    Returns:
      A [`SamSharpness`][]; ``perturbation`` is a pytree like the params, in at least float32.

    Raises:
      TypeError: if ``params`` holds anything but real floating arrays, or ``p`` is traced.
      ValueError: for ``p < 1``, ``rho <= 0``, a negative ``offset``, no step, a missing key, or
        data that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> def loss_fn(w, _):
      ...     return 0.5 * (w[0] ** 2 + 10 * w[1] ** 2)  # the maximum is rho^2 * 10 / 2
      >>> w = jnp.array([1e-3, 1e-4])
      >>> result = flatjax.sam_sharpness(loss_fn, w, None, rho=1.0, ascent_steps=5)
      >>> round(float(result.value), 2)
      5.0

    References:
      Foret, Kleiner, Mobahi and Neyshabur, "Sharpness-aware minimization for efficiently improving
      generalization", ICLR 2021, arXiv:2010.01412; Kwon, Kim, Park and Choi, "ASAM: adaptive
      sharpness-aware minimization for scale-invariant learning of deep neural networks", ICML 2021,
      arXiv:2102.11600.
    """
    p = worst_case.check_p(p)
    checks.check_scalar("rho", rho, above=0.0)
    checks.check_scalar("offset", offset, minimum=0.0)
    worst_case.check_ascents(ascent_steps, num_starts, key)
    op = objective.mean_loss(
        loss_fn, params, batch, args, weights=weights, axis_name=axis_name, precision=precision
    )
    ball = worst_case.scaled_ball(op.params, rho, offset if adaptive else None)
    evaluate = partial(worst_case.loss_and_gradient, op, ball)
    return worst_case.search(evaluate, ball, p, ascent_steps, num_starts, key)
