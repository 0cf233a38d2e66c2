"""The state of a Lanczos run and its one compiled step.

A step takes the product ``w = A q_j``, subtracts the three-term recurrence, and orthogonalises
against every vector of the basis by classical Gram-Schmidt, a second time when the test of Daniel,
Gragg, Kaufman and Stewart asks for it. Where nothing but rounding is left, the Krylov space is
exhausted: in the same step a random vector takes its place and goes through the same passes, with a
zero off-diagonal.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax._watching import Watch
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _blocks as blocks
from flatjax.operators._base import Operator

# The Krylov space is exhausted where beta <= 64 eps |T|. A larger constant (sqrt(eps) is common)
# lies inside the range of legitimate off-diagonals in float32 and corrupts Ritz values.
BREAKDOWN = 64.0
# Daniel, Gragg, Kaufman and Stewart (1976): a pass that leaves less than 1/sqrt(2) of the norm may
# have left rounding errors that are not orthogonal, so another one follows.
_DGKS = 0.5
_MAX_PASSES = 4
# A basis that may grow begins with so many rows, and doubles them (in a part of its own) when they
# are full: every growth compiles the step once more. A `spectrum` of 160 steps of 1e6 numbers takes
# 8.0 s of CPU time, and 12.8 with compilation (48 programs); in parts of 32 rows behind
# conditionals that pass over the empty ones 9.0 and 12.0 (42 programs).
FIRST = 32
# Up to so many numbers it begins with all rows that it may need: 4 MB stay in a CPU's cache.
SMALL = 1 << 20
# Vectors above so many numbers (64 MB) are more dear than programs: so many rows more each time.
LARGE, _FEW = 1 << 24, 16
# So are those above so many (32 MB) where the end is not known: a few eigenvalues often take less
# than 16 products, and 16 rows more are 715 MB of 11.2e6 numbers; to compile the step again 1.6 s.
_DEAR = 1 << 23
# Above `SMALL` in parts of so many rows, which are passed over until they are begun: 26 steps in 32
# rows then take some two thirds of the time (`python -m benchmarks basis_parts`).
_EACH = 8
CHECK_EVERY = 8  # steps between two looks of the host at the coefficients


class Krylov(NamedTuple):
    """A Lanczos run in progress, in units of ``scale``.

    Attributes:
      basis: leading axis m, rows beyond ``step`` zero (row ``step`` is ``vector``).
      vector: the unit vector to be multiplied next.
      alphas: ``(m,)``, the diagonal of the projected matrix, filled up to ``step``.
      betas: ``(m,)``, ``betas[j]`` couples rows j and j + 1; the last is the residual's norm.
      breakdown: ``(m,)``, whether row j + 1 is a random restart.
      step: the number of steps done.
      norm: a lower bound of the operator's norm, the largest column norm seen.
      scale: a power of two near the norm of the first product, so that no square under- or
        overflows whatever the operator's units.
      seed: that of the random restarts; another one at every step.
    """

    basis: Tree
    vector: Tree
    alphas: jax.Array
    betas: jax.Array
    breakdown: jax.Array
    step: jax.Array
    norm: jax.Array
    scale: jax.Array
    seed: jax.Array


def start(
    v0: Tree, capacity: int, key: jax.Array, basis_dtype: Any = None, each: int | None = None
) -> Krylov:
    """The state before the first step, from a unit vector; its basis in parts of ``each`` rows.

    With a ``basis_dtype`` every vector of the run is rounded to it, not only where it is stored:
    what is multiplied is the row itself. So rounding enters the Lanczos relation in units of the
    couplings, which behind the first few steps are those of the bulk, and not of the norm.
    """
    return _start(v0, capacity, key, basis_dtype, each)  # one program, whatever is given


@functools.partial(jax.jit, static_argnums=(1, 3, 4))
def _start(v0, capacity, key, basis_dtype, each):
    scalar = trees.dtype(v0)
    stored = None if basis_dtype is None else blocks.stored_in(basis_dtype)
    empty = bases.empty(v0, capacity, stored, each)
    return Krylov(
        basis=bases.set_row(empty, 0, v0),
        # A copy: the run consumes its buffers, and these are not its own.
        vector=bases.rounded(empty, jax.tree.map(jnp.copy, v0)),
        alphas=jnp.zeros(capacity, scalar),
        betas=jnp.zeros(capacity, scalar),
        breakdown=jnp.zeros(capacity, bool),
        step=jnp.zeros((), jnp.int32),
        norm=jnp.zeros((), scalar),
        scale=jnp.ones((), scalar),
        seed=bases.seed_of(key),
    )


@functools.partial(jax.jit, static_argnums=2)
def begin(v0: Tree, w: Tree, capacity: int, key: jax.Array) -> tuple[Krylov, Tree, jax.Array]:
    """The state before the first step, from a vector of any norm, and the product of that step.

    Args:
      v0: the vector.
      w: its product.
      capacity: the rows of the basis.
      key: as of `start`.

    Returns:
      The state, the product of the unit vector, and the norm.
    """
    unit, length = trees.normalized(v0)
    safe = jnp.where(length > 0, length, 1)
    return start(unit, capacity, key), jax.tree.map(lambda a: a / safe.astype(a.dtype), w), length


def first_rows(size: int, last: int) -> int:
    """The rows to begin a run of at most ``last`` steps with: see `FIRST`."""
    if size * last <= SMALL:
        return last
    return min(last, FIRST if size <= LARGE else _FEW)


def rows_at_first(size: int, capacity: int) -> tuple[int, int | None]:
    """The rows to begin a run with that restarts at a capacity, and may be short; and in parts."""
    return min(capacity, _FEW) if size > _DEAR else capacity, _EACH if size > SMALL else None


def with_room(state: Krylov, last: int) -> Krylov:
    """The state itself, or with more rows where all are full, for a run of ``last`` steps."""
    rows = state.alphas.shape[0]
    if int(state.step) < rows:
        return state
    more = max(rows, FIRST) if trees.size(state.vector) <= LARGE else _FEW
    more = min(more, last - rows)
    longer: dict[str, Any] = {  # on the host: no program to compile
        name: np.pad(jax.device_get(getattr(state, name)), (0, more))
        for name in ("alphas", "betas", "breakdown")
    }
    return state._replace(basis=bases.grown(state.basis, more, state.vector), **longer)


def power_of_two(x: jax.Array) -> jax.Array:
    """The power of two next below a positive number; 1 for zero and for what is not finite.

    Its inverse is a normal number too.
    """
    good = (x > 0) & jnp.isfinite(x)
    exponent = jnp.frexp(jnp.where(good, x, 1))[1] - 1
    limit = -int(jnp.finfo(x.dtype).minexp)
    return jnp.ldexp(jnp.ones((), x.dtype), jnp.clip(exponent, -limit, limit))


def _step(state: Krylov, w: Tree) -> Krylov:
    """One step, given the product ``w`` of the operator with ``state.vector``."""
    scalar = state.alphas.dtype
    eps = jnp.finfo(scalar).eps
    j, q = state.step, state.vector
    full = j + 1 >= trees.size(q)
    # The unit is that of the first product that is not zero.
    scale = lax.cond(
        state.norm > 0,
        lambda: bases.vary_like(state.scale, w),
        lambda: bases.vary_like(power_of_two(trees.norm(w)), w, state.scale),
    )
    w = trees.scale(1 / scale, trees.cast(w, q))
    before = jnp.maximum(j - 1, 0)
    previous = jnp.where(j > 0, state.betas[before], 0)
    # The recurrence goes first: what the full pass then removes is rounding, and the test for a
    # second pass is no longer set off by large diagonals.
    alpha = trees.vdot(q, w)
    w = trees.axpy(-alpha, q, w)
    w = trees.axpy(-previous, bases.row(state.basis, before), w)
    no = jnp.zeros((), bool)
    carry = _Passes(
        w=w,
        alpha=alpha,
        squared=jnp.zeros((), scalar),
        norm=jnp.maximum(state.norm, jnp.abs(alpha)),
        count=jnp.zeros((), jnp.int32),
        broken=no | full,
        clean=no,
        done=no | full,
    )

    def one_pass(carry):
        h, before = bases.coefficients(state.basis, carry.w, j + 1)
        # The overlap with the last vector is the one with the largest terms to cancel, and the
        # CPU's matrix-vector product is poor at that: 4e-6 in 5e4 dimensions, 3e-5 in 4e6.
        h = h.at[j].set(trees.vdot(q, carry.w))
        # Always so, or not a number: what depends on the norm waits for it, and only where nothing
        # reads the vector any more does the compiler subtract in place.
        h = jnp.where(before >= 0, h, before)
        rest = bases.less(state.basis, carry.w, h)
        after = jnp.maximum(before - jnp.sum(h * h), 0)
        # What is taken from a random vector is none of the operator's.
        alpha = jnp.where(carry.broken, carry.alpha, carry.alpha + h[j])
        column = jnp.sqrt(alpha**2 + previous**2 + after)
        norm = jnp.where(carry.broken, carry.norm, jnp.maximum(carry.norm, column))
        count = carry.count + 1
        clean = (after >= _DGKS * before) & (before > 0)
        tiny = jnp.sqrt(after) <= BREAKDOWN * eps * norm
        breaks = ~carry.broken & (tiny | (~clean & (count >= _MAX_PASSES)))
        # The passes over the random vector are these ones: with a loop of its own for it the step
        # compiles for .27 s in place of .24 (one leaf) and 1.2 in place of .87 (24 leaves); without
        # any draw for .19 and .65, and 40 rows of 1e6 numbers take 8 ms whichever way.
        rest = lax.cond(
            breaks,
            lambda: bases.vary_like(bases.random_vector(state.seed, rest), rest),
            lambda: rest,
        )
        done = ~breaks & (clean | (count >= _MAX_PASSES))
        count = jnp.where(breaks, 0, count)
        return _Passes(rest, alpha, after, norm, count, carry.broken | breaks, clean, done)

    carry = bases.vary_like(carry, w, state.basis, state.seed)
    carry = lax.while_loop(lambda c: ~c.done, one_pass, carry)
    # Near the full dimension every pass over a random vector may cancel; of the last nothing stays.
    good = carry.clean & (carry.squared > 0)
    length = jnp.sqrt(jnp.where(good, carry.squared, 1))
    q = trees.scale(jnp.where(good, 1 / length, 0), carry.w)
    q = bases.rounded(state.basis, q)
    beta = jnp.where(carry.broken, 0, length)
    # Always so: the row that is replaced is read after the passes, not held during them.
    following = jnp.where(carry.count >= 0, j + 1, 0)
    return Krylov(
        basis=bases.set_row(state.basis, following, q),
        vector=q,
        alphas=lax.dynamic_update_index_in_dim(state.alphas, carry.alpha, j, 0),
        betas=lax.dynamic_update_index_in_dim(state.betas, beta, j, 0),
        breakdown=lax.dynamic_update_index_in_dim(state.breakdown, carry.broken, j, 0),
        step=j + 1,
        norm=carry.norm,
        scale=scale,
        seed=state.seed + bases.NEXT_SEED,
    )


class _Passes(NamedTuple):
    """The carry of the passes of one step.

    Once ``broken``, the vector is a random one. ``clean``: the last pass has left most of it.
    """

    w: Tree
    alpha: jax.Array
    squared: jax.Array
    norm: jax.Array
    count: jax.Array
    broken: jax.Array
    clean: jax.Array
    done: jax.Array


_compiled_step = jax.jit(_step, donate_argnums=0)
# For runs that are someone else's: a step consumes its buffers.
copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


@functools.partial(jax.jit, donate_argnums=1, keep_unused=True)
def _before_injection(
    basis: Tree, replaced: Tree, betas: jax.Array, before: jax.Array
) -> tuple[dict[str, Any], Tree]:
    """What differs in a state whose next step writes the row after ``before``; and zeros."""
    vector = trees.cast(bases.row(basis, before), replaced)
    cut = betas.at[jnp.maximum(before - 1, 0)].set(0)
    return {"vector": vector, "betas": cut, "step": before}, trees.zeros(vector)


def inject(state: Krylov, index: ArrayLike) -> Krylov:
    """Continue from a random vector orthogonal to the basis, placed at row ``index`` > 0.

    It is the step after a product of the row before that is zero. The rows from ``index`` on must
    be zero, and so are the coefficients of the rows before and at ``index - 1`` from here on.
    """
    changed, zero = _before_injection(state.basis, state.vector, state.betas, index - 1)
    return _compiled_step(state._replace(**changed), zero)


def run(op: Operator, state: Krylov, num_steps: int, w: Tree = None) -> Krylov:
    """Advance a run by ``num_steps`` steps.

    Args:
      op: the operator.
      state: the run; its buffers are consumed when driven from the host.
      num_steps: the number of steps.
      w: the product of the operator with ``state.vector`` where it is there already.

    Returns:
      The state after the steps.
    """
    product = loops.product(op)
    w = arguments.first_product(op, state.vector) if w is None else w
    if loops.is_traced(w):
        # The product above served to ask whether we are traced; unused, the compiler drops it.
        return _run_traced(op, bases.vary_like(state, w), num_steps, w)
    if loops.on_device() and not op.host_driven:
        return _run_on_device(op, state, num_steps)
    for _ in range(num_steps):
        state = _compiled_step(state, product(state.vector) if w is None else w)
        w = None
    return state


def watched(
    op: Operator,
    state: Any,
    num_steps: int,
    watch: Watch,
    report: Callable[[Any, int], None],
    w: Tree = None,
    advance: Callable[..., Any] = run,
) -> tuple[Any, int]:
    """`run`, or another one, in the chunks of a watch, each followed by ``report(state, steps)``.

    Returns:
      The state, and the steps taken: fewer where the watch has stopped them.
    """
    done = 0
    for first, done in watch.chunks(num_steps, whole=loops.on_device() and not op.host_driven):
        state, w = advance(op, state, done - first, w), None
        if watch.wants():
            report(state, done)
    return state, done


def _run_traced(op, state, num_steps, w=()):
    product = loops.product(op)

    def body(_, s):
        return _step(s, product(s.vector))

    return loops.fori(num_steps, body, state, like=w)


_run_on_device = jax.jit(_run_traced, static_argnums=2, donate_argnums=1)
