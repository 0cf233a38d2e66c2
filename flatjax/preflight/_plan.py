"""Fitting products into memory, measured by the compiler before anything runs; and into time."""

import functools
import os
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import jax

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax import _texts as texts
from flatjax.linalg.vectors import _flat as flat
from flatjax.linalg.vectors import _probes as probes
from flatjax.linalg.vectors._budget import rows_within
from flatjax.operators import _chunks as chunks
from flatjax.operators._base import Operator
from flatjax.operators._chunks import Chunked
from flatjax.operators._data import DataOperator
from flatjax.preflight._calls import CallCost, calls

_SHARE = 0.9  # of the free memory that a plan may fill; the allocator fragments the rest
_TRIES = 6
_RUNS, _ENOUGH = 5, 0.2  # products to time: so many, or fewer once they have taken so many seconds


@reading.readable
class Plan(NamedTuple):
    """How to run the products of one operator within a budget; made by [`plan`][].

    Attributes:
      linearize: whether to keep the residuals of the primal pass (``op.linearize()``).
      chunk_size: examples per chunk, or ``None`` for the whole batch at once.
      probe_block: vectors whose products may be taken at once (``vmap`` over them).
      fits: whether the proposal stays within the budget; if not, it is the smallest there is.
      peak_bytes: what the proposal needs on one device beside the operator itself, with its block
        of vectors and without the reserve: temporary memory plus the result.
      budget_bytes: the budget, the reserve included.
      calls: the products of ``eigsh``, ``trace``, ``spectral_density`` and ``spectrum`` with their
        defaults, and the seconds of these products, by the name of the call.
      product_seconds: one product of the planned operator, or ``None`` where none was timed.
      compile_seconds: what came on top until the first one was there: compilation (little where the
        program was compiled before) and, with ``linearize``, the primal pass.
      basis_bytes: what one product at a time leaves of the budget for a Krylov run: pass it to
        ``eigsh`` or ``spectrum`` as ``basis_bytes=``.
      max_basis: how many vectors of a basis that holds, beside four others; with
        ``basis_dtype="bfloat16"`` it is about twice as many.
    """

    linearize: bool
    chunk_size: int | None
    probe_block: int
    fits: bool
    peak_bytes: int
    budget_bytes: int
    calls: dict[str, CallCost]
    product_seconds: float | None = None
    compile_seconds: float | None = None
    basis_bytes: int = 0
    max_basis: int = 0

    def __str__(self) -> str:
        size = "the whole batch" if self.chunk_size is None else f"chunks of {self.chunk_size}"
        head = [
            "residuals kept (linearize)" if self.linearize else f"residuals recomputed, {size}",
            f"{self.probe_block} vectors at once" if self.probe_block > 1 else "one vector at once",
            f"{self.peak_bytes:,} of {self.budget_bytes:,} bytes"
            + ("" if self.fits else ": does not fit"),
        ]
        lines = ["; ".join(head)]
        if self.product_seconds is not None and self.compile_seconds is not None:
            lines.append(
                f"a product takes {texts.duration(self.product_seconds)}, before the first one "
                f"{texts.duration(self.compile_seconds)}"
            )
        for name, cost in self.calls.items():
            at_most = cost.max_products > cost.num_products
            counts = f"{cost.num_products} products" + at_most * f", at most {cost.max_products}"
            line = f"{name:<21} {at_most * 'usually ' + counts:<34}"
            if cost.seconds is not None and cost.max_seconds is not None:
                line += f" {texts.duration(cost.seconds)}"
                line += at_most * f", at most {texts.duration(cost.max_seconds)}"
            lines.append(line.rstrip())
        return "\n".join(lines)

    def prepare(self, op: Operator) -> Operator:
        """The planned operator, or one of the same shapes: linearised, chunked, or as it is."""
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
    time: bool = False,
) -> Plan:
    """Choose between keeping residuals, recomputing and chunking, for a byte budget; say the cost.

    The first of these that fits: keep the residuals of the primal pass (a Hessian product then
    costs 2.0 gradients instead of 2.7); recompute it on the whole batch; recompute it chunk by
    chunk, in the largest chunks that fit. Then the largest block of vectors that fits beside it.

    Without ``time`` nothing is run: the programs are compiled ahead of time, at most some ten of
    them, and the compiler's own memory analysis is read. Sizes between two measured ones are
    extrapolated linearly, and the size that is proposed has been compiled.

    With ``time`` the planned operator is prepared and multiplied, in the very program in which
    ``eigsh`` and its like multiply it, so that they need not compile it another time: once, and
    then up to five times within some 0.2 seconds, the mean of which counts. The seconds of
    `Plan.calls` are those of products alone. On top come, once, a few seconds to compile the rest,
    and at every step of a Lanczos run two reads of its vectors and some milliseconds of the host,
    which are most of the time where a product is as short as that. ``print`` of the plan shows all
    as a table.

    Args:
      op: an operator over a batch, or made of one by algebra (which cannot be chunked). Its leaves
        may be ``jax.ShapeDtypeStruct``: plan on the login node.
      budget_bytes: memory of one device for what comes on top of the operator itself. ``None``:
        90 % of what is free, as a GPU or TPU reports and the operating system does for a CPU.
      reserve_vectors: vectors to leave room for, a Krylov basis for instance.
      max_probes: the largest block of vectors to consider.
      time: whether to run products and say what they take.

    Returns:
      The proposal.

    Raises:
      TypeError: for a stream, whose batches are the caller's to choose; or to time an operator of
        ``jax.ShapeDtypeStruct``, or inside ``jit``.
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
      >>> seen = flatjax.plan(H, budget_bytes=100_000_000, max_probes=1, time=True)
      >>> eigsh = seen.calls["eigsh(op, 1)"]
      >>> eigsh.num_products, eigsh.seconds == 12 * seen.product_seconds
      (12, True)
    """
    op = op.op if isinstance(op, Chunked) else op
    if op.host_driven:
        raise TypeError(
            "a stream has no batch to plan for: plan the operator of one of its batches."
        )
    budget = _free_bytes() if budget_bytes is None else budget_bytes
    checks.check_scalar("budget_bytes", budget, above=0)
    checks.check_count("reserve_vectors", reserve_vectors, 0)
    checks.check_count("max_probes", max_probes)
    if time:
        _check_runs(op)
    vector = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(op.structure))
    left = budget - reserve_vectors * vector
    need, held, peak = functools.cache(functools.partial(_bytes_of_products, op)), 0, 0
    linearize, chunk_size = False, None
    kept = jax.eval_shape(lambda op: op.linearize(), op)
    if jax.tree.structure(kept) != jax.tree.structure(op):  # something is kept
        residuals, temporary = _memory(jax.jit(lambda op: op.linearize()), op)
        linear = functools.cache(functools.partial(_bytes_of_products, kept))
        linearize = residuals + max(temporary, linear(1)) <= left
        if linearize:
            need, held, peak = linear, residuals, residuals + temporary
    if not linearize and need(1) > left and isinstance(op, DataOperator) and op.examples:
        chunk_size, need = _largest_chunk(op, left, need(1))
    block = _largest_block(need, left - held, max_probes)
    peak = max(peak, held + need(block))
    room = max(0, int(left - held - need(1)))
    rows = min(op.size, rows_within(room, op.structure))
    found = Plan(
        linearize, chunk_size, block, peak <= left, peak, budget, calls(op.size, None),
        basis_bytes=room, max_basis=rows,
    )  # fmt: skip
    if not time:
        return found
    product, before = _timed(found.prepare, op)
    costs = calls(op.size, product)
    return found._replace(calls=costs, product_seconds=product, compile_seconds=before)


def _check_runs(op: Operator) -> None:
    """Raise where products cannot be timed."""
    leaves = jax.tree.leaves(op)
    if any(isinstance(a, jax.ShapeDtypeStruct) for a in leaves):
        raise TypeError(
            "time=True runs products, for which there must be arrays, not their shapes."
        )
    if loops.is_traced(leaves, jax.numpy.zeros(())):
        raise TypeError("time=True runs products and cannot be traced: call plan outside jit.")


def _timed(prepare: Callable[[Operator], Operator], op: Operator) -> tuple[float, float]:
    """The seconds of one product of the prepared operator, and those before the first one."""
    began = perf_counter()
    ready = flat.packed(prepare(op))
    product = loops.product(ready)
    v = probes.probe(jax.random.key(0), ready.structure, "normal")
    jax.block_until_ready(product(v))
    first = perf_counter()
    seconds: list[float] = []
    while len(seconds) < _RUNS and sum(seconds) < _ENOUGH:
        start = perf_counter()
        jax.block_until_ready(product(v))
        seconds.append(perf_counter() - start)
    mean = sum(seconds) / len(seconds)
    return mean, max(first - began - mean, 0.0)


def _bytes_of_products(op: Any, count: int, size: int | None = None) -> int:
    """Of a block of ``count`` vectors, on the whole batch or a chunk of ``size`` examples."""

    def one(op, v):
        return op.mv(v) if size is None else chunks.local_sum(op, 0, v, size)

    products = jax.vmap(one, in_axes=(None, 0)) if count > 1 else one
    leading = (count,) if count > 1 else ()
    block = jax.tree.map(lambda a: jax.ShapeDtypeStruct(leading + a.shape, a.dtype), op.structure)
    return sum(_memory(jax.jit(products), op, block))


def _memory(fn: Any, *args: Any) -> tuple[int, int]:
    """The bytes of the result, and the temporary ones."""
    analysis = fn.lower(*args).compile().memory_analysis()
    if analysis is None:
        raise ValueError(f"the {jax.default_backend()} backend reports no memory analysis.")
    return analysis.output_size_in_bytes, analysis.temp_size_in_bytes


def _largest_chunk(op: DataOperator, left: int, whole: int) -> tuple[int, Any]:
    """A chunk that fits, about the largest, or 1; and the bytes of a block of vectors on it."""
    n: Any = op.examples

    def allowed(size):
        size = max(1, min(int(size), n))
        return size if op.per_example else max(d for d in range(1, size + 1) if n % d == 0)

    @functools.cache
    def need(size, count):
        return _bytes_of_products(op.for_chunks(size), count, size)

    size = _shrunk(allowed(n * left / whole), lambda size: need(size, 1), left, allowed)
    return size, functools.partial(need, size)


def _largest_block(need: Callable[[int], int], left: int, most: int) -> int:
    """The largest block of vectors that fits; 1 if two do not."""
    if most == 1 or need(1) > left or need(2) > left:
        return 1
    guess = 2 + int((left - need(2)) / max(need(2) - need(1), 1))
    return _shrunk(min(most, guess), need, left, int)


def _shrunk(size, need, left, allowed) -> int:
    """``size``, or what is left of it when it fits."""
    for _ in range(_TRIES):
        if size == 1:
            break
        needed = need(size)
        if needed <= left:
            return size
        size = allowed(max(1, min(size - 1, 0.9 * size * left / needed)))
    return 1


def _free_bytes() -> int:
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(_SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    if device.platform == "cpu" and hasattr(os, "sysconf"):
        return int(_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    raise ValueError(f"{device.device_kind} does not report its memory: pass budget_bytes=.")
