"""Operators over a batch on the device that is too large for one pass: chunk by chunk."""

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from flatjax import _checks as checks
from flatjax import _convolutions as convolutions
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax.operators import _normalisers as normalisers
from flatjax.operators import _sums as sums
from flatjax.operators._base import Operator, operator, static
from flatjax.operators._data import DataOperator
from flatjax.operators._maps import described

Data = TypeVar("Data", bound=DataOperator)


@operator
class Chunked(Operator):
    """An operator over a batch whose products go chunk by chunk: ``chunk_size`` of [`hessian`][].

    Attributes:
      op: the operator over the whole batch.
      chunk_size: examples a chunk.
    """

    op: DataOperator
    chunk_size: int = static()

    @property
    def host_driven(self):
        # Eager products drive one compiled chunk from the host; traced ones are a device loop.
        return True

    @property
    def structure(self):
        return self.op.structure

    @property
    def method(self) -> str:
        """How derivatives are taken."""
        return self.op.method

    @property
    def relative_noise(self) -> float:
        """The relative error of a product to expect."""
        return self.op.relative_noise

    def mv(self, v):
        trees.check(v, self.structure)
        first = local_sum(self.op, 0, v, self.chunk_size)

        def add(i, total):
            return _add_chunk(self.op, i + 1, v, total, self.chunk_size)

        # The output of the first chunk tells whether we are traced.
        count = -(-self.examples // self.chunk_size)
        return _mean(self.op, loops.fori(count - 1, add, first))

    def restrict(self, selection):
        op: Any = self.op.restrict(selection)  # over the same examples
        return Chunked(op, self.chunk_size)

    def _facts(self):
        return {"chunk_size": f"{self.chunk_size:,}", "of": described(self.op)}

    @property
    def examples(self) -> int:
        """The number of this device's examples."""
        assert self.op.examples is not None  # checked by `chunked`
        return self.op.examples


def chunked(op: Data, chunk_size: int | None, *, check: bool = True) -> Data | Chunked:
    """The same operator with its products taken chunk by chunk of the batch.

    The answer is that of the whole batch up to rounding, at its flops (1.4 times as many for a
    centred covariance, whose mean gradient is put together from those of the chunks in each
    product). One program serves all chunks: the last one overlaps the one before it and counts
    only the examples that are left. ``linearize()`` keeps nothing, because the residuals of all
    chunks are what there is no memory for. Inside ``shard_map`` and ``pmap`` a chunk is one of the
    local examples. Model state in ``*args`` is not split.

    Args:
      op: an operator over a batch.
      chunk_size: examples a chunk; ``None``, or as many as there are, returns ``op`` itself.
      check: whether to look that a plain scalar is a mean, see ``check_operators``.

    Raises:
      TypeError: for an operator without a batch, or one that is linearised.
      ValueError: for a chunk size that is not positive, or one that does not divide the batch of a
        loss that returns its mean (per-example losses can be masked, a mean cannot), or a scalar
        loss that is no mean over its examples: return a [`Mean`][].

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> from flatjax.operators._chunks import chunked
      >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
      >>> H = flatjax.hessian(lambda w, x: 0.5 * (x @ w) ** 2, jnp.zeros(2), x)
      >>> (3 * (chunked(H, 2) @ jnp.ones(2))).tolist()
      [10.0, 4.0]
    """
    if chunk_size is None:
        return op
    if not isinstance(op, DataOperator) or op.examples is None:
        raise TypeError(
            "only an operator over a batch can be chunked (flatjax.hessian, ggn, fisher, "
            f"gradient_covariance, before linearize() and before algebra), got {type(op).__name__}."
        )
    checks.check_count("chunk_size", chunk_size)
    if chunk_size >= op.examples:
        return op
    if op.examples % chunk_size and not op.per_example:
        raise ValueError(
            f"chunk_size={chunk_size} does not divide the {op.examples} examples, and a loss_fn "
            "that returns the mean cannot be masked: return the per-example losses, shape (n,)."
        )
    if check:
        normalisers.check_operators(op, op)
    return Chunked(op.for_chunks(chunk_size), chunk_size)


def _part(op, index, size):
    """Chunk ``index``: the last one is shifted back, and the examples that were counted masked."""
    n = op.examples
    if n % size == 0:
        return op.part(index * size, size, None)
    start = jnp.minimum(index * size, n - size)
    keep = (start + jnp.arange(size)) >= index * size
    return op.part(start, size, keep.astype(trees.dtype(op.structure)))


@functools.partial(convolutions.compiled, static_argnames="size")
def local_sum(op, index, v, size):
    """The sums over chunk ``index`` for a product with ``v``, on this device."""
    return sums.of(_part(op, index, size), v)


@functools.partial(convolutions.compiled, static_argnames="size", donate_argnames="total")
def _add_chunk(op, index, v, total, size):
    return sums.together(total, local_sum(op, index, v, size))


@jax.jit
def _mean(op, total):
    return sums.mean(total, op.axis_name)
