"""The gradient of a curvature: the third derivative of the loss along two directions."""

from collections.abc import Callable
from typing import Any

import jax

from flatjax import _collectives as collectives
from flatjax import _convolutions as convolutions
from flatjax import _trees as trees
from flatjax.measures import _objective as objective
from flatjax.operators._arguments import matmul_precision
from flatjax.operators._weighting import over_devices


def curvature_gradient(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    u: Any,
    v: Any,
    batch: Any,
    *args: Any,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    precision: str | None = "highest",
) -> Any:
    r"""The gradient of the curvature along two directions, $\nabla_w\, u^\top H(w)\, v$.

    For a unit eigenvector $u = v$ of a simple eigenvalue it is the gradient of that eigenvalue: the
    direction in which the loss gets sharper. Gradient descent at the edge of stability oscillates
    along $u$ and drifts along its negative, which is what brings the sharpness back (Damian,
    Nichani and Lee 2023), and what the central flow of the oscillation is made of (Cohen et al.
    2025).

    As the third derivative is symmetric, it is taken forward over forward over reverse,
    $\partial_s \partial_t \nabla L(w + s u + t v)$: no residuals are kept.

    Cost: one pass of about six gradients; the memory of a few.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the mean loss (a scalar), the per-example losses,
        shape ``(n,)``, or a [`Mean`][]. The model must have forward-mode rules: one with
        ``jax.custom_vjp`` raises JAX's own error.
      params: a pytree of floating arrays; in low precision, taken in float32.
      u: a direction, a pytree like ``params``.
      v: a direction, a pytree like ``params``.
      batch: a pytree whose leaves share a leading axis of ``n`` examples; ``None`` for a loss
        without data.
      *args: anything else the loss takes.
      weights: per-example weights or a padding mask, shape ``(n,)``; needs per-example losses.
      axis_name: the mesh axis over which the batch is split, inside ``shard_map`` or ``pmap``.
      precision: matmul precision; ``None`` leaves the caller's default.

    Returns:
      A pytree like ``params``, in at least float32.

    Raises:
      TypeError: if ``params`` holds anything but real floating arrays, or a direction is another
        tree.
      ValueError: for a direction of other shapes, or data that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> def loss_fn(w, _):
      ...     return w[0] ** 2 * w[1]  # H_00 = 2 w_1
      >>> e = jnp.array([1.0, 0.0])
      >>> flatjax.curvature_gradient(loss_fn, jnp.ones(2), e, e, None).tolist()
      [0.0, 2.0]

    References:
      Damian, Nichani and Lee, "Self-stabilization: the implicit bias of gradient descent at the
      edge of stability", ICLR 2023, arXiv:2209.15594; Cohen, Damian, Talwalkar, Kolter and Lee,
      "Understanding optimization in deep learning with central flows", ICLR 2025, arXiv:2410.24206.
    """
    op = objective.mean_loss(
        loss_fn, params, batch, args, weights=weights, axis_name=axis_name, precision=precision
    )
    for name, direction in (("u", u), ("v", v)):
        trees.check(direction, op.structure, name)
    return _third_derivative(op, trees.cast(u, op.structure), trees.cast(v, op.structure))


@convolutions.compiled
def _third_derivative(op, u, v):
    params, u, v = collectives.varying((op.params, u, v), op.axis_name)

    def along(fn, direction):
        return lambda p: jax.jvp(fn, (p,), (direction,))[1]

    with matmul_precision(op.precision):
        local = along(along(jax.grad(op.local_loss), v), u)(params)
    return over_devices(trees.cast(local, op.structure), op.example_weights, op.scale, op.axis_name)
