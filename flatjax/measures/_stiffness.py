"""How alike the gradients of different examples are: stiffness and gradient confusion."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatjax import _collectives as collectives
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax.linalg.vectors._basis import gram
from flatjax.measures import _objective as objective
from flatjax.measures._jackknife import jackknife_variance
from flatjax.operators._arguments import num_examples
from flatjax.operators._per_example import per_example_gradients
from flatjax.operators._weighting import check_total, where_rows


@reading.readable
class PairStatistic(NamedTuple):
    """A mean over pairs of different examples, by whether their classes agree.

    Attributes:
      within: the mean over pairs of one class; NaN if there are none.
      between: the mean over pairs of different classes; NaN if there are none.
      within_standard_error: of ``within``, by the jackknife over examples.
      between_standard_error: of ``between``, likewise.
      classes: the mean over the pairs of every two classes, shape ``(classes, classes)``; NaN where
        there are none.
    """

    within: jax.Array
    between: jax.Array
    within_standard_error: jax.Array
    between_standard_error: jax.Array
    classes: jax.Array


@reading.readable
class Stiffness(NamedTuple):
    """How alike the gradients of different examples are.

    Attributes:
      cosine: statistics of the cosine of two gradients.
      sign: statistics of the sign of their inner product.
    """

    cosine: PairStatistic
    sign: PairStatistic


@reading.readable
class GradientConfusion(NamedTuple):
    r"""How much the gradients of examples hinder each other.

    Attributes:
      value: $\max(0, -\min_{i \ne j} \langle g_i, g_j \rangle)$.
      min_inner_product: the smallest inner product of two different examples' gradients.
      min_cosine: the smallest cosine.
      pair: the two examples with the smallest inner product, shape ``(2,)``.
    """

    value: jax.Array
    min_inner_product: jax.Array
    min_cosine: jax.Array
    pair: jax.Array

    __float__ = reading.as_float


def stiffness(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batch: Any,
    *args: Any,
    labels: Any = None,
    other: Any = None,
    other_labels: Any = None,
    num_classes: int | None = None,
    chunk_size: int | None = None,
    weights: Any = None,
    other_weights: Any = None,
    axis_name: collectives.AxisName = None,
    precision: str | None = "highest",
) -> Stiffness:
    r"""The stiffness of the gradients of pairs of examples, within and between classes.

    $$S_{\cos} = \mathbb{E}\,\frac{\langle g_i, g_j \rangle}{|g_i|\,|g_j|}, \qquad
    S_{\text{sign}} = \mathbb{E}\,\mathrm{sign} \langle g_i, g_j \rangle$$

    over pairs $i \ne j$ (Fort, Nowak, Jastrzebski & Narayanan 2019): positive where a step on one
    example lowers the loss of the other. With ``other`` (a validation batch) the pairs have one
    example of each.

    Invariances: to the scale of every example's loss, and to rotations of the params.

    Cost: one gradient in flops and ``n P`` numbers of memory for the per-example gradients, and
    their ``n x n`` Gram matrix. Over N devices each forms the gradients of its own examples and
    sends them once, ``n P / N`` numbers in one all-to-all, for the products of all examples over an
    N-th of the params; then the Gram matrix is added up over the devices, and every one holds it.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the per-example losses or their mean; it is called
        on batches of one.
      params: a pytree of floating arrays; in low precision, taken in float32.
      batch: a pytree whose leaves share a leading axis of ``n`` examples.
      *args: anything else the loss takes.
      labels: integer classes, shape ``(n,)``; ``None`` puts all examples in one class.
      other: a second batch to pair with, or ``None`` for pairs within ``batch``.
      other_labels: its classes; needed with ``other`` and ``labels``.
      num_classes: the number of classes; ``None`` for the largest label plus one (not under
        ``jit``).
      chunk_size: gradients formed at once; ``None`` for all.
      weights: a mask or weights of the examples of ``batch``, shape ``(n,)``; a pair has the
        product.
      other_weights: those of ``other``.
      axis_name: the mesh axis over which the batch is split, and ``other`` with it, inside
        ``shard_map`` or ``pmap``.
      precision: matmul precision of the gradients; ``None`` leaves the caller's default.

    Returns:
      A [`Stiffness`][] of two [`PairStatistic`][].

    Raises:
      TypeError: if ``params`` holds anything but real floating arrays, or labels are no integers.
      ValueError: for an empty batch, or labels or weights of another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> x = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])  # the gradients
      >>> result = flatjax.stiffness(
      ...     lambda w, x: x @ w, jnp.zeros(2), x, labels=jnp.array([0, 0, 1, 1])
      ... )
      >>> float(result.cosine.within), float(result.cosine.between)
      (1.0, 0.0)

    References:
      Fort, Nowak, Jastrzebski and Narayanan, "Stiffness: a new perspective on generalization in
      neural networks", 2019, arXiv:1901.09491.
    """
    n = num_examples(batch)
    if n is None:
        raise ValueError("stiffness needs a batch of examples, got one without leaves.")
    for name, value in (("other_labels", other_labels), ("other_weights", other_weights)):
        if other is None and value is not None:
            raise ValueError(f"{name} are those of `other`: pass both or neither.")
    if other is not None and (labels is None) != (other_labels is None):
        raise ValueError("pass labels and other_labels together, or neither.")
    params = objective.widened(params)
    over = loss_fn, params
    options = {"chunk_size": chunk_size, "precision": precision}
    labels = _checked_labels("labels", labels, n)
    collectives.check_named(params, (batch, other, args, weights, other_weights), axis_name)
    gradients, w = _gradients(*over, batch, args, "weights", weights, **options)
    seconds, second_w, others = labels, w, None
    if other is not None:
        seconds = _checked_labels("other_labels", other_labels, num_examples(other))
        others, second_w = _gradients(*over, other, args, "other_weights", other_weights, **options)
    if num_classes is None:
        if isinstance(labels, jax.core.Tracer) or isinstance(seconds, jax.core.Tracer):
            raise ValueError("under jit the number of classes is needed: pass num_classes=10.")
        num_classes = int(max(labels.max(), seconds.max())) + 1
    labels, w, seconds, second_w = (
        collectives.gathered(a, axis_name) for a in (labels, w, seconds, second_w)
    )
    products = _products(gradients, others, axis_name)
    return _stiffness(*products, labels, seconds, w, second_w, num_classes, other is None)


def gradient_confusion(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batch: Any,
    *args: Any,
    chunk_size: int | None = None,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    precision: str | None = "highest",
) -> GradientConfusion:
    r"""The gradient confusion of a batch.

    $$\eta = \max(0, -\min_{i \ne j} \langle \nabla \ell_i, \nabla \ell_j \rangle)$$

    (Sankararaman, De, Xu, Huang & Goldstein 2020): the smallest bound for which
    $\langle \nabla \ell_i, \nabla \ell_j \rangle \ge -\eta$ holds for all pairs. Small confusion
    lets SGD converge fast with a constant step. For minibatches instead of examples let the leading
    axis count minibatches.

    Invariances: to rotations of the params; it scales with the square of the loss.

    Cost: one gradient in flops and ``n P`` numbers of memory, and the ``n x n`` Gram matrix. Over N
    devices that of [`stiffness`][]: ``n P / N`` numbers sent by each, and the Gram matrix.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the per-example losses or their mean; it is called
        on batches of one.
      params: a pytree of floating arrays; in low precision, taken in float32.
      batch: a pytree whose leaves share a leading axis of at least two examples.
      *args: anything else the loss takes.
      chunk_size: gradients formed at once; ``None`` for all.
      weights: a mask of the examples, shape ``(n,)``: those of weight zero are left out.
      axis_name: the mesh axis over which the batch is split, inside ``shard_map`` or ``pmap``; the
        ``pair`` then counts the examples of all devices.
      precision: matmul precision of the gradients; ``None`` leaves the caller's default.

    Returns:
      A [`GradientConfusion`][] of three scalars and ``pair``.

    Raises:
      TypeError: if ``params`` holds anything but real floating arrays.
      ValueError: for fewer than two examples, or weights of another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> x = jnp.array([[1.0, 0.0], [-2.0, 0.0], [0.0, 1.0]])  # the gradients
      >>> float(flatjax.gradient_confusion(lambda w, x: x @ w, jnp.zeros(2), x).value)
      2.0

    References:
      Sankararaman, De, Xu, Huang and Goldstein, "The impact of neural network overparameterization
      on gradient confusion and stochastic gradient descent", ICML 2020, arXiv:1904.06963.
    """
    n = num_examples(batch)
    if n is None or n * collectives.axis_size(axis_name) < 2:
        raise ValueError(f"gradient_confusion needs at least two examples, got {n or 'none'}.")
    params = objective.widened(params)
    collectives.check_named(params, (batch, args, weights), axis_name)
    gradients, w = _gradients(
        loss_fn, params, batch, args, "weights", weights, chunk_size=chunk_size, precision=precision
    )
    products, norms, _ = _products(gradients, None, axis_name)
    return _confusion(products, norms, collectives.gathered(w, axis_name))


def _gradients(loss_fn, params, batch, args, name, weights, **options):
    """The gradients of all examples, zero for those of weight zero, and the weights."""
    n = num_examples(batch)
    w = jnp.ones((n,)) if weights is None else jnp.asarray(weights)
    if w.shape != (n,):
        raise ValueError(f"{name} must have one entry per example, shape ({n},), got {w.shape}.")
    check_total(w)
    w = w.astype(trees.dtype(params))
    return _counted(per_example_gradients(loss_fn, params, batch, *args, **options), w), w


@jax.jit
def _counted(gradients, w):
    return where_rows(w != 0, gradients)


@partial(jax.jit, static_argnums=2)
def _products(a, b, axis_name):
    """The inner products of two stacks of gradients (one for ``None``), and the norms of each."""

    def columns(g):
        return collectives.rows_to_columns(g.reshape(g.shape[0], -1), axis_name)

    if axis_name is not None:
        a, b = jax.tree.map(columns, (a, b))
    squares = jax.vmap(lambda g: trees.vdot(g, g))
    first = squares(a)
    summed = gram(a, a if b is None else b), first, first if b is None else squares(b)
    products, first, second = collectives.total(summed, axis_name)
    return products, jnp.sqrt(first), jnp.sqrt(second)


def _cosines(products, norms, other_norms):
    scale = norms[:, None] * other_norms[None, :]
    # A zero gradient has no direction; it is alike to nothing.
    return jnp.where(scale > 0, products / jnp.where(scale > 0, scale, 1.0), 0.0)


@partial(jax.jit, static_argnums=(7, 8))
def _stiffness(products, norms, other_norms, labels, others, w, other_w, num_classes, symmetric):
    pairs = w[:, None] * other_w[None, :]
    if symmetric:
        pairs = pairs * (1 - jnp.eye(w.shape[0], dtype=w.dtype))
    same = (labels[:, None] == others[None, :]).astype(w.dtype)
    rows = jax.nn.one_hot(labels, num_classes, dtype=w.dtype)
    columns = jax.nn.one_hot(others, num_classes, dtype=w.dtype)

    def statistic(values):
        within, within_error = _mean(values, pairs * same, symmetric)
        between, between_error = _mean(values, pairs * (1 - same), symmetric)
        sums = jnp.linalg.multi_dot([rows.T, values * pairs, columns], precision="highest")
        counts = jnp.linalg.multi_dot([rows.T, pairs, columns], precision="highest")
        return PairStatistic(within, between, within_error, between_error, sums / counts)

    return Stiffness(
        statistic(_cosines(products, norms, other_norms)), statistic(jnp.sign(products))
    )


def _mean(values, weights, symmetric):
    """The weighted mean over pairs, and its standard error by leaving out every example."""
    values = values * weights
    total, weight = values.sum(), weights.sum()
    # Leaving out example i takes away its row, and where both sides are one batch its column.
    variance = _jackknife(total, weight, values, weights, 1, 2 if symmetric else 1)
    if not symmetric:
        variance = variance + _jackknife(total, weight, values, weights, 0, 1)
    return total / weight, jnp.sqrt(variance)


def _jackknife(total, weight, values, weights, axis, times):
    part = weights.sum(axis=axis)
    left_out = (total - times * values.sum(axis=axis)) / (weight - times * part)
    return jackknife_variance(left_out, part > 0)


@jax.jit
def _confusion(products, norms, w):
    there = (w > 0)[:, None] & (w > 0)[None, :] & ~jnp.eye(w.shape[0], dtype=bool)
    inner = jnp.where(there, products, jnp.inf)
    cosines = jnp.where(there, _cosines(products, norms, norms), jnp.inf)
    least = inner.min()
    pair = jnp.stack(jnp.unravel_index(inner.argmin(), inner.shape))
    return GradientConfusion(jnp.maximum(-least, 0.0), least, cosines.min(), pair)


def _checked_labels(name, labels, n):
    if labels is None:
        return jnp.zeros((n,), jnp.int32)
    labels = jnp.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), got {labels.shape}.")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{name} must be integer classes, got dtype {labels.dtype}.")
    return labels
