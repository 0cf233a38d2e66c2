"""Fitting products into memory: measured by the compiler before anything runs."""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from flatjax import _checks as checks
from flatjax import _trees as trees
from flatjax.operators import _chunks as chunks
from flatjax.operators._base import Operator
from flatjax.operators._chunks import Chunked
from flatjax.operators._data import DataOperator, Linearized

_SHARE = 0.9  # of the free memory that a plan may fill; the allocator fragments the rest
_TRIES = 6


class Plan(NamedTuple):
    """How to run the products of one operator within a budget; made by [`plan`][].

    All sizes are bytes on one device, beside what the operator itself holds, as the compiler
    reports them: temporary memory plus the result.

    Attributes:
      linearize: whether to keep the residuals of the primal pass (``op.linearize()``).
      chunk_size: examples a chunk, or ``None`` for the whole batch at once.
      probe_block: vectors whose products may be taken at once (``vmap`` over them).
      fits: whether the proposal stays within the budget; if not, it is the smallest there is.
      peak_bytes: the memory of the proposal, with its block of vectors, without the reserve.
      budget_bytes: the budget, and ``reserve_bytes`` of it are set aside.
      reserve_bytes: the vectors that the caller keeps (``reserve_vectors``).
      resident_bytes: the operator itself: params, batch, arguments.
      vector_bytes: one vector like the params.
      product_bytes: one product on the whole batch, recomputing the primal pass.
      residual_bytes: the residuals that ``linearize()`` keeps; ``None`` if it keeps none.
      linearize_bytes: the peak of ``linearize()`` itself, residuals included; or ``None``.
      linear_product_bytes: one product with the residuals kept, beside them; or ``None``.
      chunk_bytes: one product on a chunk of the proposed size; ``None`` without chunks.
      programs: how many programs were compiled to find out.
    """

    linearize: bool
    chunk_size: int | None
    probe_block: int
    fits: bool
    peak_bytes: int
    budget_bytes: int
    reserve_bytes: int
    resident_bytes: int
    vector_bytes: int
    product_bytes: int
    residual_bytes: int | None
    linearize_bytes: int | None
    linear_product_bytes: int | None
    chunk_bytes: int | None
    programs: int

    def prepare(self, op: Operator) -> Operator:
        """The operator as proposed: linearised, chunked, or as it is.

        Args:
          op: the operator that was planned, or one of the same shapes.

        Returns:
          The operator to hand to the estimators.
        """
        if self.linearize:
            return op.linearize()
        if self.chunk_size is not None and isinstance(op, DataOperator):
            return chunks.chunked(op, self.chunk_size)
        return op


def plan(
    op: Operator,
    *,
    budget_bytes: int | None = None,
    reserve_vectors: int = 0,
    max_probes: int = 64,
) -> Plan:
    """Choose between keeping residuals, recomputing and chunking, for a byte budget.

    The first of these that fits: keep the residuals of the primal pass (a Hessian product then
    costs 2.0 gradients instead of 2.7); recompute it on the whole batch; recompute it chunk by
    chunk, in the largest chunks that fit. Then the largest block of vectors that fits beside it.

    Nothing is run: the programs are compiled ahead of time, at most some ten of them, and the
    compiler's own memory analysis is read. Sizes between two measured ones are extrapolated
    linearly, and the size that is proposed has been compiled.

    Args:
      op: an operator over a batch, or made of one by algebra (which cannot be chunked). Its leaves
        may be ``jax.ShapeDtypeStruct``: plan on the login node.
      budget_bytes: memory of one device for what comes on top of the operator itself. ``None``:
        90 % of what is free, as a GPU or TPU reports and the operating system does for a CPU.
      reserve_vectors: vectors to leave room for, a Krylov basis for instance.
      max_probes: the largest block of vectors to consider.

    Returns:
      The proposal, with every number it was made from.

    Raises:
      TypeError: for a stream, whose batches are the caller's to choose.
      ValueError: for a budget or ``max_probes`` that is not positive, or if the backend reports no
        memory.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> def loss_fn(w, x):
      ...     return jnp.tanh(jnp.tanh(x @ w) @ w).sum(axis=1)
      >>> H = flatjax.hessian(loss_fn, jnp.ones((64, 64)), jnp.ones((512, 64)))
      >>> flatjax.plan(H, budget_bytes=100_000_000).linearize
      True
      >>> flatjax.plan(H, budget_bytes=200_000, max_probes=1).chunk_size < 512
      True
    """
    if isinstance(op, Chunked):
        op = op.op
    if op.host_driven:
        raise TypeError(
            "a stream has no batch to plan for: plan the operator of one of its batches."
        )
    if budget_bytes is not None:
        checks.check_scalar("budget_bytes", budget_bytes, above=0)
    checks.check_count("reserve_vectors", reserve_vectors, 0)
    checks.check_count("max_probes", max_probes)
    compiler = _Compiler()
    vector = sum(_bytes(leaf) for leaf in jax.tree.leaves(op.structure))
    budget = free_bytes() if budget_bytes is None else budget_bytes
    left = budget - reserve_vectors * vector
    whole = functools.partial(compiler.product, op)
    product = whole(1)
    residual: Any = None
    peak: Any = None
    linear: Any = None
    chunk_size = chunk = None
    kept = jax.eval_shape(lambda op: op.linearize(), op)
    if _keeps_anything(kept):
        residual, peak = compiler.linearize(op)
        linear = compiler.product(kept, 1)
    linearize = residual is not None and max(peak, residual + linear) <= left
    base, measure = 0, whole
    if linearize:
        base, measure = residual, functools.partial(compiler.product, kept)
    elif product > left and isinstance(op, DataOperator) and op.examples:
        chunk_size, chunk = _largest_chunk(compiler, op, left, product)
        measure = functools.partial(compiler.chunk, op, chunk_size)
    block, size = _largest_block(measure, left - base, max_probes)
    total = max(base + size, peak) if linearize else base + size
    return Plan(
        linearize=linearize,
        chunk_size=chunk_size,
        probe_block=block,
        fits=total <= left,
        peak_bytes=total,
        budget_bytes=budget,
        reserve_bytes=reserve_vectors * vector,
        resident_bytes=sum(_bytes(leaf) for leaf in jax.tree.leaves(op)),
        vector_bytes=vector,
        product_bytes=product,
        residual_bytes=residual,
        linearize_bytes=peak,
        linear_product_bytes=linear,
        chunk_bytes=chunk,
        programs=compiler.count,
    )


class _Compiler:
    """Compiles products without running them, and reads what they would need."""

    def __init__(self):
        self.count = 0
        self._known: dict = {}

    def product(self, op, probes):
        return self._temporary(("product", type(op), probes), _block_product, op, probes)

    def chunk(self, op, size, probes):
        size = min(size, op.examples)
        op = op.for_chunks(size)
        return self._temporary(("chunk", size, probes), _block_chunk, op, probes, size)

    def linearize(self, op):
        """What is kept, and the peak while it is made."""
        analysis = self._analysis(_linearize, op)
        kept = analysis.output_size_in_bytes
        return kept, kept + analysis.temp_size_in_bytes

    def _temporary(self, key, fn, op, probes, *static):
        if key not in self._known:
            block = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct((probes, *a.shape), a.dtype), op.structure
            )
            analysis = self._analysis(fn, op, block, *static)
            self._known[key] = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
        return self._known[key]

    def _analysis(self, fn, *args):
        self.count += 1
        analysis = fn.lower(*args).compile().memory_analysis()
        if analysis is None:
            raise ValueError(f"the {jax.default_backend()} backend reports no memory analysis.")
        return analysis


@jax.jit
def _linearize(op):
    return op.linearize()


@jax.jit
def _block_product(op, block):
    return _over_block(op.mv, block)


@functools.partial(jax.jit, static_argnums=2)
def _block_chunk(op, block, size):
    return _over_block(lambda v: chunks.local_sum(op, 0, v, size), block)


def _over_block(fn: Callable[[Any], Any], block: Any) -> Any:
    if jax.tree.leaves(block)[0].shape[0] == 1:
        return fn(jax.tree.map(lambda a: a[0], block))
    return jax.vmap(fn)(block)


def _keeps_anything(op) -> bool:
    """Whether linearisation changed anything inside of an operator."""
    if isinstance(op, Linearized):
        return True
    children = jax.tree.leaves(list(vars(op).values()), is_leaf=lambda a: isinstance(a, Operator))
    return any(isinstance(child, Operator) and _keeps_anything(child) for child in children)


def _largest_chunk(compiler, op, left, whole) -> tuple[int, int]:
    """A chunk that fits, about the largest, and its size; 1 if none does."""
    n = op.examples
    sizes = [n // d for d in range(1, n + 1) if n % d == 0] if not op.per_example else None

    def allowed(size):
        size = max(1, min(int(size), n))
        return size if sizes is None else max(s for s in sizes if s <= size)

    size = allowed(n * left / whole)
    for _ in range(_TRIES):
        need = compiler.chunk(op, size, 1)
        if need <= left or size == 1:
            return size, need
        size = allowed(min(size - 1, 0.9 * size * left / need))
    return 1, compiler.chunk(op, 1, 1)


def _largest_block(measure, left, most) -> tuple[int, int]:
    """The largest block of vectors that fits, and its size; 1 if two do not."""
    one = measure(1)
    if most == 1 or one > left:
        return 1, one
    two = measure(2)
    if two > left:
        return 1, one
    block = min(most, 2 + int((left - two) / max(two - one, 1)))
    for _ in range(_TRIES):
        need = measure(block)
        if need <= left or block == 1:
            return block, need
        block = max(1, min(block - 1, int(block * left / need * 0.95)))
    return 1, one


def free_bytes() -> int:
    """90 % of the free memory of the first local device.

    Returns:
      The bytes.

    Raises:
      ValueError: if nobody reports it.

    Example:
      >>> from flatjax.preflight._plan import free_bytes
      >>> free_bytes() > 0
      True
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(_SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    if device.platform == "cpu" and hasattr(os, "sysconf"):
        return int(_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    raise ValueError(f"{device.device_kind} does not report its memory: pass budget_bytes=.")


def _bytes(leaf) -> int:
    dtype = leaf.dtype
    return trees.size([leaf]) * (dtype.itemsize if hasattr(dtype, "itemsize") else 4)
