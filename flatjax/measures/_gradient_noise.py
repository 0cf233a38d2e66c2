"""The gradient noise scale: the batch size at which noise and signal are equal."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatjax import _collectives as collectives
from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax.measures import _objective as objective
from flatjax.measures._jackknife import jackknife_variance
from flatjax.operators import _terms as terms
from flatjax.operators._arguments import matmul_precision
from flatjax.operators._weighting import where_rows


@reading.readable
class GradientNoiseScale(NamedTuple):
    r"""The gradient noise scale and its two parts.

    Attributes:
      value: $\mathrm{tr}(K) / |g|^2$, a number of examples.
      standard_error: of ``value`` as an estimate for the population, by the jackknife over examples
        (or over measurements).
      trace: $\mathrm{tr}(K)$, the total variance of a single example's gradient.
      squared_norm: $|g|^2$ of the mean gradient; the unbiased estimate may be negative.
      count: the examples, or measurements, that entered.
    """

    value: jax.Array
    standard_error: jax.Array
    trace: jax.Array
    squared_norm: jax.Array
    count: jax.Array

    __float__ = reading.as_float


def gradient_noise_scale(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batch: Any,
    *args: Any,
    unbiased: bool = False,
    chunk_size: int | None = None,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    precision: str | None = "highest",
) -> GradientNoiseScale:
    r"""The simple gradient noise scale, from every example's gradient.

    $$B_{\text{simple}} = \frac{\mathrm{tr}(K)}{|g|^2}, \qquad
    K = \frac{1}{W} \sum_i w_i (g_i - g)(g_i - g)^\top$$

    (McCandlish et al. 2018): at this batch size the variance of a minibatch gradient equals its
    squared mean. As given, exact for the batch as the whole data set. ``unbiased=True`` takes the
    batch for n draws from a population, with the unbiased estimates $\frac{n}{n-1} \mathrm{tr} K$
    and $|g|^2 - \frac{1}{n-1} \mathrm{tr} K$ (the ratio is consistent, not unbiased).

    Invariances: to the scale of the loss and to rotations of the params.

    Cost: two gradients; memory ``chunk_size`` gradients.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the per-example losses, shape ``(n,)``, or the
        mean loss; per example it is called on batches of one.
      params: a pytree of floating arrays; in low precision, taken in float32.
      batch: a pytree whose leaves share a leading axis of ``n`` examples.
      *args: anything else the loss takes.
      unbiased: estimate the population's noise scale.
      chunk_size: gradients formed at once; ``None`` for all.
      weights: per-example weights or a padding mask, shape ``(n,)``; needs per-example losses.
      axis_name: the mesh axis over which the batch is split, inside ``shard_map`` or ``pmap``.
      precision: matmul precision; ``None`` leaves the caller's default.

    Returns:
      A [`GradientNoiseScale`][] of scalars.

    Raises:
      TypeError: if ``params`` holds anything but real floating arrays.
      ValueError: for no batch, fewer than two examples that count, unequal leading axes or a
        ``chunk_size`` below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> def losses_fn(w, x):
      ...     return x @ w  # the gradients are (1, 0) and (3, 0): variance 1, mean 2
      >>> x = jnp.array([[1.0, 0.0], [3.0, 0.0]])
      >>> float(flatjax.gradient_noise_scale(losses_fn, jnp.zeros(2), x).value)
      0.25

    References:
      McCandlish, Kaplan, Amodei et al., "An empirical model of large-batch training", 2018,
      arXiv:1812.06162.
    """
    op = objective.mean_loss(
        loss_fn, params, batch, args, weights=weights, axis_name=axis_name, precision=precision
    )
    if op.n is None:
        raise ValueError("gradient_noise_scale needs a batch of examples, got one without leaves.")
    _check_count(op, "gradient_noise_scale")
    op = op.for_chunks(1)  # gradients of single examples
    _, mean = objective.loss_and_gradient_at(op, op.params)
    local = collectives.varying((op.params, mean), axis_name)
    squares, products, own = loops.map_chunks(
        lambda part: _example_statistics(op.loss_fn, precision, *local, part, op.args),
        op.batch,
        chunk_size,
    )
    w = own.astype(trees.dtype(op.params))
    w = w if op.weights is None else w * op.weights
    squared_norm = trees.vdot(mean, mean)
    return _from_examples(w, squares, products, squared_norm, axis_name, bool(unbiased))


def _check_count(op, name):
    """Raise for fewer than two examples that count, where their number is known."""
    n = op.n * collectives.axis_size(op.axis_name)
    if op.weights is not None and n > 1 and not loops.is_traced(op.weights):
        n = int((op.weights != 0).sum())
    if n < 2:
        raise ValueError(
            f"{name} needs at least two examples that count, got {n}: the noise is the spread of "
            "their gradients. Pass a larger batch."
        )


@partial(jax.jit, static_argnums=1)
def _example_statistics(loss_fn, precision, params, mean, part, args):
    """The squared norm of every example's gradient, its product with the mean one, its weight."""

    def one(example):
        with matmul_precision(precision):
            gradient, weight = terms.gradient_of_one(loss_fn, params, example, args)
        wide = trees.cast(gradient, mean)
        return trees.vdot(wide, wide), trees.vdot(wide, mean), weight

    return jax.vmap(one)(part)


@partial(jax.jit, static_argnums=(4, 5))
def _from_examples(w, squares, products, squared_norm, axis_name, unbiased):
    add = lambda a: collectives.total(a.sum(), axis_name)  # noqa: E731
    squares, products = where_rows(w != 0, (squares, products))
    total, total_squares = add(w), add(w * w)
    count = add((w > 0).astype(w.dtype))
    moment = add(w * squares) / total

    def parts(moment, squared_norm, n):
        trace = moment - squared_norm
        if unbiased:
            trace, squared_norm = trace * n / (n - 1), squared_norm - trace / (n - 1)
        return trace, squared_norm

    # The number of equal examples that the weights are worth: exact for a mask.
    n = total**2 / total_squares
    trace, norm = parts(moment, squared_norm, n)
    # Every example left out, in closed form.
    rest = total - w
    moments = (total * moment - w * squares) / rest
    norms = (total**2 * squared_norm - 2 * total * w * products + w * w * squares) / rest**2
    left_out = parts(moments, norms, rest**2 / (total_squares - w * w))
    error = jnp.sqrt(jackknife_variance(left_out[0] / left_out[1], w > 0, axis_name))
    return GradientNoiseScale(trace / norm, error, trace, norm, count)


def gradient_noise_scale_from_norms(
    small: Any, large: Any, *, small_size: int, large_size: int
) -> GradientNoiseScale:
    r"""The gradient noise scale from squared gradient norms at two batch sizes.

    $$|G|^2 = \frac{B |g_B|^2 - b |g_b|^2}{B - b}, \qquad
    S = \frac{|g_b|^2 - |g_B|^2}{1/b - 1/B}, \qquad B_{\text{simple}} = S / |G|^2$$

    (McCandlish et al. 2018, appendix A.1). Both parts are unbiased for $|G|^2$ and $\mathrm{tr}(K)$
    of the population; the ratio of their means over several measurements is consistent. In
    data-parallel training both norms are at hand: of a device's gradient and of their mean.

    Cost: a few numbers per measurement; no gradient.

    Args:
      small: $|g_b|^2$ of every measurement, shape ``(m,)`` or a scalar.
      large: $|g_B|^2$ of the same measurements, of the same shape.
      small_size: the batch size b.
      large_size: the batch size B, larger than b.

    Returns:
      A [`GradientNoiseScale`][], its standard error by the jackknife over measurements, taken as
      independent; NaN for a single one.

    Raises:
      ValueError: for other shapes, or sizes that are not ``0 < small_size < large_size``.

    Example:
      >>> import flatjax
      >>> result = flatjax.gradient_noise_scale_from_norms(
      ...     3.0, 2.0, small_size=10, large_size=20
      ... )  # |G|^2 = 1, S = 20
      >>> round(float(result.value), 4)
      20.0

    References:
      McCandlish, Kaplan, Amodei et al., "An empirical model of large-batch training", 2018,
      arXiv:1812.06162.
    """
    small, large = (jnp.atleast_1d(jnp.asarray(a)) for a in (small, large))
    if small.ndim != 1 or small.shape != large.shape or not small.size:
        raise ValueError(
            f"small and large must be scalars or of one shape (m,), got {small.shape} and "
            f"{large.shape}."
        )
    if not 0 < small_size < large_size:
        raise ValueError(
            f"the batch sizes must be 0 < small_size < large_size, got {small_size} and "
            f"{large_size}."
        )
    b, big = float(small_size), float(large_size)
    norms = (big * large - b * small) / (big - b)
    traces = (small - large) / (1 / b - 1 / big)
    trace, norm = traces.mean(), norms.mean()
    # 0 / 0 for a single one.
    error = jnp.sqrt(jackknife_variance((traces.sum() - traces) / (norms.sum() - norms)))
    count = jnp.asarray(small.shape[0], trace.dtype)
    return GradientNoiseScale(trace / norm, error, trace, norm, count)
