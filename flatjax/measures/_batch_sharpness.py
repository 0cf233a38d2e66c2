"""Batch sharpness: the curvature of a batch's loss along the gradient of the same batch."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _convolutions as convolutions
from flatjax import _trees as trees
from flatjax.linalg.probing._estimate import Estimate, from_samples
from flatjax.measures import _objective as objective
from flatjax.measures._batches import Objectives


def batch_sharpness(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batches: Iterable[Any],
    *args: Any,
    precision: str | None = "highest",
) -> Estimate:
    r"""The mean curvature of a batch's loss along its own gradient.

    $$\mathbb E_B \left[ \frac{g_B^\top H_B\, g_B}{\lVert g_B \rVert^2} \right]$$

    with the gradient $g_B$ and the Hessian $H_B$ of the mean loss over the batch $B$. SGD with the
    step $\eta$ holds this number, and not the sharpness of the whole loss, at about $2 / \eta$ (the
    edge of stochastic stability, Andreyev and Beneventano 2024). Of one batch that is all of the
    data it is what gradient descent holds there; see [`directional_sharpness`][].

    Invariances: to rotations of the params; scales with the loss.

    Cost: a gradient and a Hessian product per batch, some 3.7 gradients, and the memory of these.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the mean loss (a scalar), the per-example losses,
        shape ``(n,)``, or a [`Mean`][].
      params: a pytree of floating arrays; in low precision, taken in float32.
      batches: a re-iterable of batches (a list, a dataset object), of the size that training uses;
        taken for independent draws.
      *args: anything else the loss takes.
      precision: matmul precision; ``None`` leaves the caller's default.

    Returns:
      An [`Estimate`][] over the batches, each counted equally. NaN and not converged where a
      batch's gradient is zero.

    Raises:
      TypeError: for one batch, a one-shot iterator, or inside ``jit``.
      ValueError: for fewer than two batches.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> def loss_fn(w, x):
      ...     return 0.5 * (x @ w) ** 2  # of one example: g = (x.w) x, H = x x', so |x|^2
      >>> batches = [jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 2.0]])]
      >>> float(flatjax.batch_sharpness(loss_fn, jnp.ones(2), batches).value)
      3.0

    References:
      Andreyev and Beneventano, "Edge of stochastic stability: revisiting the edge of stability for
      SGD", 2024, arXiv:2412.20553.
    """
    ops = Objectives("batch_sharpness", loss_fn, params, batches, args, precision=precision)
    samples = [_along_the_gradient(op) for op in ops]
    if len(samples) < 2:
        raise ValueError(
            "batches has 1 batch: a standard error needs at least 2. Along the gradient g of a "
            "single one see flatjax.directional_sharpness(flatjax.hessian(...), g)."
        )
    dtype = samples[0].dtype
    numbers = np.asarray(jax.device_get(samples), np.float64)
    return from_samples(numbers, 0.0, np.abs(numbers).max(), len(samples), None, dtype)


@convolutions.compiled
def _along_the_gradient(op):
    unit, length = trees.normalized(objective.value_and_gradient(op, op.params)[1])
    form = trees.vdot(unit, op.mv(unit))
    return jnp.where(length > 0, form, jnp.nan)
