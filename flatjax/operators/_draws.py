"""Targets drawn from the model, for the sampled Fisher information."""

import functools

import jax
import jax.numpy as jnp

from flatjax import _collectives as collectives
from flatjax import _loops as loops
from flatjax import losses
from flatjax.losses import _blockwise as blockwise
from flatjax.operators._arguments import matmul_precision
from flatjax.operators._data import sliced


def drawn(op, key, num_samples, chunk_size):
    """Targets of every example, chunk by chunk, shape ``(num_samples, rows, ...)``."""
    n = op.examples
    index = collectives.example_index(n, op.axis_name)
    # Traced, one pass: unrolled chunks would be as many copies of the model.
    if chunk_size is None or chunk_size >= n or loops.is_traced(op):
        return _draws(op, index, key, num_samples)
    op, pieces = op.for_chunks(chunk_size), []
    for begin in range(0, n, chunk_size):
        start = min(begin, n - chunk_size)
        part = op.part(start, chunk_size, None)
        piece = _draws(part, sliced(index, start, chunk_size), key, num_samples)
        fresh = (begin - start) * op.rows_per_example
        pieces.append(jax.tree.map(lambda a, k=fresh: a[:, k:], piece))
    return jax.tree.map(lambda *p: jnp.concatenate(p, axis=1), *pieces)


@functools.partial(jax.jit, static_argnames="num_samples")
def _draws(op, index, key, num_samples):
    """Targets drawn from the model, shape ``(num_samples, examples, ...)``."""
    with matmul_precision(op.precision):
        outputs = op.model(op.params)

    if isinstance(outputs, losses.LinearHead):
        keys = jax.vmap(
            lambda i: jax.random.split(jax.random.fold_in(key, i), num_samples), out_axes=1
        )(index)

        def draw(done, keys):
            return done, blockwise.resample(op.loss, keys, outputs, op.targets)

        return jax.vmap(op.rows)(loops.scan(draw, (), keys)[1])

    def example(i, output, target):
        keys = jax.random.split(jax.random.fold_in(key, i), num_samples)
        target = jax.tree.map(lambda a: a[None], target)
        one = jax.vmap(lambda k: op.loss.resample(k, output[None], target))(keys)
        return jax.tree.map(lambda a: a[:, 0], one)

    return jax.vmap(op.rows)(jax.vmap(example, out_axes=1)(index, outputs, op.targets))
