"""Linear stability of SGD at a minimum: sharpness and non-uniformity of examples' Hessians."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax.linalg import eigsh
from flatjax.measures import _objective as objective
from flatjax.operators import _terms as terms
from flatjax.operators._arguments import matmul_precision
from flatjax.operators._base import Operator, operator, static
from flatjax.operators._data import sliced
from flatjax.operators._maps import described
from flatjax.operators._weighting import where_rows


@reading.readable
class LinearStability(NamedTuple):
    r"""The linear stability of SGD at a minimum.

    Attributes:
      value: $(1 - \eta a)^2 + \eta^2 \frac{n - B}{B (n - 1)} s^2$.
      stable: whether ``value`` is at most 1.
      sharpness: $a = \lambda_{\max}(H)$.
      non_uniformity: $s = \lambda_{\max}(\Sigma)^{1/2}$.
      bound: the largest non-uniformity that is stable at this sharpness; 0 where the sharpness
        alone exceeds $2 / \eta$, infinite for the whole batch below it.
      residual_norms: those of the eigenvalues a and $s^2$, shape ``(2,)``.
      converged: whether each residual is at most ``tol`` times its eigenvalue, shape ``(2,)``.
      num_products: products spent, those of H and those of $\Sigma$ together.
    """

    value: jax.Array
    stable: jax.Array
    sharpness: jax.Array
    non_uniformity: jax.Array
    bound: jax.Array
    residual_norms: jax.Array
    converged: jax.Array
    num_products: int

    __float__ = reading.as_float


@operator
class HessianVariance(Operator):
    """``mean(H_i^2) - H^2``; made by [`hessian_variance`][]."""

    op: Any  # the mean loss, with weights, followed for single examples
    chunk_size: int = static()

    @property
    def structure(self):
        return self.op.structure

    @property
    def host_driven(self):
        return self.chunk_size < self.op.n

    def mv(self, v):
        trees.check(v, self.structure)
        # mean(H_i (H_i v - H v)): the difference is taken of vectors, not of their squares.
        mean = self._mean(v, trees.zeros(self.structure), squared=False)
        return self._mean(v, mean, squared=True)

    def _facts(self):
        return {"of": described(self.op)}

    def _mean(self, v, offset, *, squared):
        op, size = self.op, self.chunk_size
        nothing = trees.zeros(self.structure), jnp.zeros((), op.weights.dtype)
        body = lambda i, total: _add_chunk(op, size, i, v, offset, total, squared)  # noqa: E731
        summed, weight = objective.repeat(op.n // size, body, nothing)
        return collectives.weighted_mean(summed, weight, op.axis_name)


@partial(jax.jit, static_argnums=(1, 6))
def _add_chunk(op, size, index, v, offset, total, squared):
    """Add the weighted ``H_i v`` or ``H_i (H_i v - offset)`` of the examples of a chunk."""
    batch, given = sliced((op.batch, op.weights), index * size, size)
    params, v, offset = collectives.varying((op.params, v, offset), op.axis_name)

    def product(example, u):
        def gradient(p):
            return terms.gradient_of_one(op.loss_fn, p, example, op.args)

        with matmul_precision(op.precision):
            _, hvp, weight = jax.jvp(gradient, (params,), (trees.cast(u, params),), has_aux=True)
        return trees.cast(hvp, offset), weight

    def one(example):
        w, weight = product(example, trees.cast(v, offset))
        if squared:
            w, weight = product(example, jax.tree.map(jnp.subtract, w, offset))
        return w, weight

    products, own = jax.vmap(one)(batch)
    weights = own.astype(given.dtype) * given
    products = where_rows(weights != 0, products)

    def add(t, products):
        return t + (trees.per_row(weights, products) * products).sum(axis=0)

    return jax.tree.map(add, total[0], products), total[1] + weights.sum()


def hessian_variance(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batch: Any,
    *args: Any,
    chunk_size: int | None = None,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    precision: str | None = "highest",
) -> HessianVariance:
    r"""The variance over the examples of their Hessians, as a product.

    $$\Sigma = \frac{1}{W} \sum_i w_i H_i^2 - H^2 = \frac{1}{W} \sum_i w_i (H_i - H)^2,
    \qquad H = \frac{1}{W} \sum_i w_i H_i, \quad W = \sum_i w_i$$

    (Wu, Ma & E 2018, with equal weights). Symmetric and positive semi-definite; 0 where all
    examples have one curvature, a *uniform* minimum.

    Cost: a product takes three Hessian products of the batch in flops, and the memory of
    ``chunk_size`` vectors. Over several devices two all-reduces of P numbers, of $Hv$ and of the
    answer.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the per-example losses or their mean; it is called
        on batches of one.
      params: a pytree of floating arrays; in low precision, taken in float32.
      batch: a pytree whose leaves share a leading axis of ``n`` examples.
      *args: anything else the loss takes.
      chunk_size: examples at once, a divisor of ``n`` (of the device's own, with ``axis_name``);
        ``None`` for all.
      weights: per-example weights or a padding mask, shape ``(n,)``.
      axis_name: the mesh axis over which the batch is split, inside ``shard_map`` or ``pmap``.
      precision: matmul precision of the products; ``None`` leaves the caller's default.

    Returns:
      An operator on pytrees like ``params``.

    Raises:
      TypeError: if ``params`` holds anything but real floating arrays.
      ValueError: for no batch, an empty one, or a ``chunk_size`` that does not divide ``n``.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> curvatures = jnp.array([1.0, 3.0])  # the variance of 1 and 3 is 1
      >>> V = flatjax.measures.hessian_variance(
      ...     lambda w, c: 0.5 * c * w**2, jnp.float32(0.0), curvatures
      ... )
      >>> float(V @ jnp.float32(1.0))
      1.0

    References:
      Wu, Ma and E, "How SGD selects the global minima in over-parameterized learning: a dynamical
      stability perspective", NeurIPS 2018.
    """
    op = objective.mean_loss(
        loss_fn, params, batch, args, weights=weights, axis_name=axis_name, precision=precision
    )
    if op.n is None:
        raise ValueError("hessian_variance needs a batch of examples, got one without leaves.")
    size = op.n if chunk_size is None else min(chunk_size, op.n)
    if size < 1 or op.n % size:
        raise ValueError(f"chunk_size must divide the {op.n} examples, got {chunk_size}.")
    op = op.for_chunks(1)  # Hessians of single examples
    if op.weights is None:
        op = dataclasses.replace(op, weights=jnp.ones((op.n,), trees.dtype(op.params)))
    return HessianVariance(op, size)


def linear_stability(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batch: Any,
    *args: Any,
    learning_rate: ArrayLike,
    batch_size: int,
    key: jax.Array,
    tol: float = 1e-3,
    max_products: int | None = None,
    chunk_size: int | None = None,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    precision: str | None = "highest",
) -> LinearStability:
    r"""Whether SGD can stay at a minimum: sharpness and non-uniformity against their bound.

    $$(1 - \eta a)^2 + \eta^2 \frac{n - B}{B (n - 1)}\, s^2 \le 1, \qquad
    a = \lambda_{\max}(H), \quad s^2 = \lambda_{\max}\Big(\frac{1}{n} \sum_i H_i^2 - H^2\Big)$$

    (Wu, Ma & E 2018), for batches of B out of n examples drawn without replacement, at a minimum at
    which every example's gradient vanishes. For one parameter it is exact: the second moment of the
    distance grows above 1 and shrinks below. With more it is the paper's condition for the top
    directions, which takes a and s to have one eigenvector. B = n gives gradient descent's
    $a \le 2 / \eta$.

    Invariances: to rotations of the params, and to $\eta \to \eta / c$ with a loss scaled by c.

    Cost: that of [`eigsh`][] for the top eigenvalue of $H$ and of [`hessian_variance`][].

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the per-example losses or their mean; it is called
        on batches of one too.
      params: a pytree of floating arrays, the minimum; in low precision, taken in float32.
      batch: the whole data set, a pytree whose leaves share a leading axis of ``n`` examples.
      *args: anything else the loss takes.
      learning_rate: the step size of SGD.
      batch_size: B, from 1 to n.
      key: a PRNG key of the starts.
      tol: the residual relative to each eigenvalue.
      max_products: the most products for each.
      chunk_size: examples at once in products of the variance, a divisor of ``n`` (of the
        device's own, with ``axis_name``).
      weights: a padding mask, shape ``(n,)``, or weights in both means; n counts those above zero.
        Needs per-example losses.
      axis_name: the mesh axis over which the batch is split, inside ``shard_map`` or ``pmap``.
      precision: matmul precision; ``None`` leaves the caller's default.

    Returns:
      A [`LinearStability`][]; all but the residual norms and their verdicts are scalars.

    Raises:
      TypeError: if ``params`` holds anything but real floating arrays.
      ValueError: for a learning rate that is not positive, a batch size out of range, or data that
        do not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> def loss_fn(w, curvature):
      ...     return 0.5 * curvature * (w**2).sum()
      >>> c = jnp.array([0.2, 3.8])  # mean 2, standard deviation 1.8
      >>> for eta in (0.5, 0.7):
      ...     result = flatjax.linear_stability(
      ...         loss_fn, jnp.zeros(1), c, learning_rate=eta, batch_size=1, key=jax.random.key(0)
      ...     )
      ...     print(round(float(result.value), 2), bool(result.stable))
      0.81 True
      1.75 False

    References:
      Wu, Ma and E, "How SGD selects the global minima in over-parameterized learning: a dynamical
      stability perspective", NeurIPS 2018.
    """
    checks.check_scalar("learning_rate", learning_rate, above=0.0)
    checks.check_count("batch_size", batch_size)
    data = {"weights": weights, "axis_name": axis_name, "precision": precision}
    op = objective.mean_loss(loss_fn, params, batch, args, **data)
    variance = hessian_variance(loss_fn, params, batch, *args, chunk_size=chunk_size, **data)
    n = _num_examples(variance.op, batch_size)
    options = {"which": "LA", "tol": tol, "max_products": max_products, "verify": False}
    first, second = jax.random.split(key)
    top = eigsh(op, 1, key=first, **options)
    spread = eigsh(variance, 1, key=second, **options)
    a, squared = top.values[0], jnp.maximum(spread.values[0], 0.0)
    eta = jnp.asarray(learning_rate).astype(a.dtype)
    share = ((n - batch_size) / (batch_size * jnp.maximum(n - 1, 1))).astype(a.dtype)
    value = (1 - eta * a) ** 2 + eta**2 * share * squared
    room = jnp.maximum(1 - (1 - eta * a) ** 2, 0.0)
    bound = jnp.sqrt(room / jnp.where(share > 0, share, 1.0)) / eta
    bound = jnp.where(share > 0, bound, jnp.where(room > 0, jnp.inf, 0.0))
    return LinearStability(
        value=value,
        stable=value <= 1,
        sharpness=a,
        non_uniformity=jnp.sqrt(squared),
        bound=bound,
        residual_norms=jnp.concatenate([top.residual_norms, spread.residual_norms]),
        converged=jnp.concatenate([top.converged, spread.converged]),
        num_products=top.num_products + spread.num_products,
    )


def _num_examples(op, batch_size):
    """The examples of positive weight on all devices, at least ``batch_size`` where it is known."""
    n = collectives.total((op.weights > 0).sum(), op.axis_name)
    most = op.n * collectives.axis_size(op.axis_name) if loops.is_traced(n) else int(n)
    if batch_size > most:
        raise ValueError(f"batch_size={batch_size} exceeds the {most} examples.")
    return n
