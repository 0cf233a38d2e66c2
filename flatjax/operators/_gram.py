"""The Gram matrix of per-example gradients."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _collectives as collectives
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax.operators import _terms as terms
from flatjax.operators import _weighting as weighting
from flatjax.operators._arguments import matmul_precision
from flatjax.operators._chunks import chunked, local_sum
from flatjax.operators._covariance import gradient_covariance
from flatjax.operators._data import sliced

_LIMIT = 20_000


def gradient_gram(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batch: Any,
    *args: Any,
    centered: bool = True,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> jax.Array:
    r"""The Gram matrix of the per-example gradients, with the exact non-zero spectrum of K.

    $$M_{ij} = \tfrac{1}{W} \sqrt{w_i w_j} \,
    \langle g_i - \bar g, \; g_j - \bar g \rangle, \qquad W = \sum_i w_i,$$

    the $n \times n$ matrix $A A^\top$ where [`gradient_covariance`][] is $K = A^\top A$: the two
    have the same non-zero eigenvalues. Without ``centered`` there is no $\bar g$, and K is the
    second moment (the empirical Fisher, for a negative log-likelihood). The mean is subtracted from
    the gradients, not from their products, where it would cancel the digits.

    Costs one gradient an example and ``n * P`` numbers; with ``chunk_size`` c the gradients are
    formed again for every pair of chunks, $n / (2c)$ times as many, in the memory of 2 c of them
    beside the matrix. Over N devices each sends the gradients of its own examples once,
    ``n P / N`` numbers in one all-to-all, and the matrix is added up over the devices.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the per-example losses, shape ``(n,)``. It is
        called on batches of one example.
      params: a pytree of floating arrays.
      batch: a pytree whose leaves share a leading axis of ``n`` examples.
      *args: model state, dropout keys, anything else the loss takes.
      centered: whether the mean gradient is subtracted.
      weights: per-example weights or a padding mask, shape ``(n,)``.
      axis_name: the mesh axis over which the batch is split, inside ``shard_map`` or ``pmap``.
      chunk_size: gradients formed at once; ``None`` for all, and with ``axis_name``.
      precision: matmul precision of the gradients; the products are at the highest always.

    Returns:
      A symmetric array of shape ``(n, n)``, of dtype at least float32.

    Raises:
      TypeError: if ``params`` holds anything but real floating arrays.
      ValueError: for an empty batch, unequal leading axes, a scalar loss, a ``chunk_size`` below 1
        or together with ``axis_name``, or beyond 20,000 examples.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> x = jnp.array([[1.0, 0.0], [3.0, 0.0]])
      >>> flatjax.gradient_gram(lambda w, x: x @ w, jnp.zeros(2), x).tolist()
      [[0.5, -0.5], [-0.5, 0.5]]
    """
    op, mean, size = prepared(
        loss_fn, params, batch, args, centered, weights, axis_name, chunk_size, precision
    )
    return matrix(op, mean, size)


def prepared(loss_fn, params, batch, args, centered, weights, axis_name, chunk_size, precision):
    """The covariance as an operator (which checks its arguments), its mean, and the chunk size."""
    op: Any = gradient_covariance(
        loss_fn, params, batch, *args, centered=centered, weights=weights, axis_name=axis_name,
        precision=precision,
    )  # fmt: skip
    op = op.for_chunks(1)  # gradients of single examples
    n = op.examples * collectives.axis_size(axis_name)
    if n > _LIMIT:
        raise ValueError(
            f"a Gram matrix of {n:,} examples is refused beyond {_LIMIT:,}; use "
            "flatjax.eigsh on flatjax.gradient_covariance."
        )
    parts: Any = chunked(op, chunk_size)
    if parts is not op and axis_name is not None:
        raise ValueError(
            f"chunk_size={chunk_size} is for one device: with axis_name= every device holds "
            "the gradients of its own examples; pass chunk_size=None."
        )
    size = op.examples if parts is op else chunk_size
    op = op.for_chunks(size)
    return op, _mean_gradient(op, size) if centered else trees.zeros(op.structure), size


def _mean_gradient(op, size):
    """The mean gradient over all devices, chunk by chunk."""
    first = _gradient_sum(op, 0, size)

    def add(i, total):
        return jax.tree.map(jnp.add, total, _gradient_sum(op, i + 1, size))

    total, weight = loops.fori(-(-op.examples // size) - 1, add, first)
    return collectives.weighted_mean(total, weight, op.axis_name)


@functools.partial(jax.jit, static_argnames="size")
def _gradient_sum(op, index, size):
    part = local_sum(op, index, trees.zeros(op.structure), size)  # of which no product is computed
    return trees.scale(part.weight, part.gradient), part.weight


def matrix(op, mean, size):
    n = op.examples
    starts = _starts(n, size)
    if len(starts) == 1:
        return _own_block(op, mean, 0, size)
    matrix = jnp.zeros((n, n), trees.dtype(op.structure))
    pairs = jnp.asarray([(i, j) for i in starts for j in starts if j <= i])

    def add(p, matrix):
        # Chunks that overlap write the same numbers twice.
        return _put_block(matrix, op, mean, pairs[p][0], pairs[p][1], size)

    matrix = add(0, matrix)
    return loops.fori(len(pairs) - 1, lambda p, m: add(p + 1, m), matrix)


def back_projected(op, mean, q, size):
    """``A^T q``, chunk by chunk, with the examples that overlap counted once."""
    if op.axis_name is not None:
        own = q[collectives.example_index(op.examples, op.axis_name)]
        part = _project(op, mean, own, jnp.zeros(2, jnp.int32), size)
        return collectives.total(part, op.axis_name)
    starts = _starts(op.examples, size)
    table = jnp.asarray([(s, i * size) for i, s in enumerate(starts)])
    first = _project(op, mean, q, table[0], size)

    def add(i, total):
        return jax.tree.map(jnp.add, total, _project(op, mean, q, table[i + 1], size))

    return loops.fori(len(starts) - 1, add, first)


def _starts(n, size):
    return [min(start, n - size) for start in range(0, n, size)]


def _rows(op, mean, start, size):
    """Rows of A: ``sqrt(w_i / W) (g_i - mean)``, every leaf raveled to ``(size, entries)``."""
    params = collectives.varying(op.params, op.axis_name)
    batch, given = sliced((op.batch, op.weights), start, size)

    def one(example):
        return terms.gradient_of_one(op.loss_fn, params, example, op.args)

    with matmul_precision(op.precision):
        gradients, weights = jax.vmap(one)(batch)
    weights = weights if given is None else weights.astype(given.dtype) * given
    gradients = weighting.where_rows(weights != 0, trees.cast(gradients, op.structure))
    scale = jnp.sqrt(weights / collectives.total(op.weight, op.axis_name).astype(weights.dtype))

    def leaf(g, m):
        g = (g - m[None]).reshape(size, -1)
        return g * scale[:, None].astype(g.dtype)

    return jax.tree.leaves(jax.tree.map(leaf, gradients, mean))


def _dot(a, b):
    return jnp.matmul(a, b, precision="highest")


def _block(left, right, dtype):
    products = [_dot(a, b.T).astype(dtype) for a, b in zip(left, right, strict=True)]
    return sum(products[1:], products[0])


@functools.partial(jax.jit, static_argnames="size")
def _own_block(op, mean, start, size):
    rows = _rows(op, mean, start, size)
    rows = [collectives.rows_to_columns(r, op.axis_name) for r in rows]
    block = _block(rows, rows, trees.dtype(op.structure))
    return collectives.total(block, op.axis_name)


@functools.partial(jax.jit, static_argnames="size", donate_argnames="matrix")
def _put_block(matrix, op, mean, i, j, size):
    left, right = _rows(op, mean, i, size), _rows(op, mean, j, size)
    block = _block(left, right, matrix.dtype)
    matrix = jax.lax.dynamic_update_slice(matrix, block, (i, j))
    return jax.lax.dynamic_update_slice(matrix, block.T, (j, i))


@functools.partial(jax.jit, static_argnames="size")
def _project(op, mean, q, where, size):
    start, begin = where[0], where[1]
    fresh = (start + jnp.arange(size, dtype=where.dtype)) >= begin
    coefficients = sliced(q, start, size) * fresh[:, None].astype(q.dtype)
    rows = _rows(op, mean, start, size)
    shapes, treedef = jax.tree.flatten(op.structure)
    vectors = [
        _dot(coefficients.T.astype(r.dtype), r).reshape(-1, *s.shape)
        for r, s in zip(rows, shapes, strict=True)
    ]
    return treedef.unflatten(vectors)
