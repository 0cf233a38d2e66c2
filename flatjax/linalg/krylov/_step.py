"""The state of a Lanczos run and its one compiled step.

A step takes the product ``w = A q_j``, subtracts the three-term recurrence, and orthogonalises
against every vector of the basis by classical Gram-Schmidt, a second time when the test of Daniel,
Gragg, Kaufman and Stewart asks for it. Where nothing but rounding is left, the Krylov space is
exhausted: the run goes on from a random vector orthogonal to the basis, with a zero off-diagonal.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _probes as probes
from flatjax.operators._base import Operator

# The Krylov space is exhausted where beta <= 64 eps |T|. A larger constant (sqrt(eps) is common)
# lies inside the range of legitimate off-diagonals in float32 and corrupts Ritz values.
BREAKDOWN = 64.0
# Daniel, Gragg, Kaufman and Stewart (1976): a pass that leaves less than 1/sqrt(2) of the norm may
# have left rounding errors that are not orthogonal, so another one follows.
_DGKS = 0.5
_MAX_PASSES = 4
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
      key: the key of the random restarts.
    """

    basis: Tree
    vector: Tree
    alphas: jax.Array
    betas: jax.Array
    breakdown: jax.Array
    step: jax.Array
    norm: jax.Array
    scale: jax.Array
    key: jax.Array


@jax.jit
def unit(v: Tree) -> Tree:
    """The vector scaled to norm 1; a zero vector itself."""
    norm = trees.norm(v)
    return jax.tree.map(lambda x: x / jnp.where(norm > 0, norm, 1).astype(x.dtype), v)


@functools.partial(jax.jit, static_argnums=1)
def start(v0: Tree, capacity: int, key: jax.Array) -> Krylov:
    """The state before the first step, from a unit vector."""
    scalar = trees.dtype(v0)
    empty = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), v0)
    return Krylov(
        basis=bases.set_row(empty, 0, v0),
        # A copy: the run consumes its buffers, and these are not its own.
        vector=jax.tree.map(jnp.copy, v0),
        alphas=jnp.zeros(capacity, scalar),
        betas=jnp.zeros(capacity, scalar),
        breakdown=jnp.zeros(capacity, bool),
        step=jnp.zeros((), jnp.int32),
        norm=jnp.zeros((), scalar),
        scale=jnp.ones((), scalar),
        key=key,
    )


def power_of_two(x: jax.Array) -> jax.Array:
    """The power of two next below a positive number; 1 for zero and for what is not finite.

    Its inverse is a normal number too.
    """
    good = (x > 0) & jnp.isfinite(x)
    exponent = jnp.frexp(jnp.where(good, x, 1))[1] - 1
    limit = -int(jnp.finfo(x.dtype).minexp)
    return jnp.ldexp(jnp.ones((), x.dtype), jnp.clip(exponent, -limit, limit))


def _step(state: Krylov, w: Tree, restart: bool) -> Krylov:
    """One step, given the product ``w`` of the operator with ``state.vector``.

    On a breakdown with ``restart=False`` the next vector is zero, and so is all that follows until
    `inject` puts another one in its place: the host does so when it next looks. The random draw
    then stays out of this program, of which it would be a quarter of the compile time.
    """
    scalar = state.alphas.dtype
    eps = jnp.finfo(scalar).eps
    j, q = state.step, state.vector
    scale = lax.cond(
        j == 0,
        lambda: bases.vary_like(power_of_two(trees.norm(w)), w, state.scale),
        lambda: bases.vary_like(state.scale, w),
    )
    w = trees.scale(1 / scale, trees.cast(w, q))
    before = jnp.maximum(j - 1, 0)
    previous = jnp.where(j > 0, state.betas[before], 0)
    # The recurrence goes first: what the full pass then removes is rounding, and the test for a
    # second pass is no longer set off by large diagonals.
    alpha = trees.vdot(q, w)
    w = trees.axpy(-alpha, q, w)
    w = trees.axpy(-previous, bases.row(state.basis, before), w)
    zero, no = jnp.zeros((), scalar), jnp.zeros((), bool)
    carry = _Passes(
        w=w,
        alpha=alpha,
        squared=zero,
        norm=jnp.maximum(state.norm, jnp.abs(alpha)),
        count=jnp.zeros((), jnp.int32),
        broken=no | (j + 1 >= trees.size(q)),
        done=no | (j + 1 >= trees.size(q)),
    )

    def one_pass(carry):
        h, before = bases.coefficients(state.basis, carry.w)
        # The overlap with the last vector is the one with the largest terms to cancel, and the
        # CPU's matrix-vector product is poor at that: 4e-6 in 5e4 dimensions, 3e-5 in 4e6.
        h = h.at[j].set(trees.vdot(q, carry.w))
        rest = bases.subtract(carry.w, bases.combine(state.basis, h))
        after = jnp.maximum(before - jnp.sum(h * h), 0)
        alpha = carry.alpha + h[j]
        norm = jnp.maximum(carry.norm, jnp.sqrt(alpha**2 + previous**2 + after))
        clean = after >= _DGKS * before
        tiny = jnp.sqrt(after) <= BREAKDOWN * eps * norm
        broken = tiny | (~clean & (carry.count + 1 >= _MAX_PASSES))
        return _Passes(rest, alpha, after, norm, carry.count + 1, broken, clean | broken)

    carry = bases.vary_like(carry, w, state.basis)
    carry = lax.while_loop(lambda c: ~c.done, one_pass, carry)
    beta = jnp.where(carry.broken, 0, jnp.sqrt(carry.squared))
    inverse = jnp.where(carry.broken, 0, 1 / jnp.where(carry.broken, 1, beta))
    q = trees.scale(inverse, carry.w)
    key = state.key
    if restart:
        key = jax.random.fold_in(key, j)
        q = lax.cond(
            carry.broken & (j + 1 < trees.size(q)),
            lambda: bases.vary_like(_random_unit(state.basis, key, q), q),
            lambda: bases.vary_like(q, key, state.basis),
        )
    return Krylov(
        basis=bases.set_row(state.basis, j + 1, q),
        vector=q,
        alphas=lax.dynamic_update_index_in_dim(state.alphas, carry.alpha, j, 0),
        betas=lax.dynamic_update_index_in_dim(state.betas, beta, j, 0),
        breakdown=lax.dynamic_update_index_in_dim(state.breakdown, carry.broken, j, 0),
        step=j + 1,
        norm=carry.norm,
        scale=scale,
        key=key,
    )


class _Passes(NamedTuple):
    """The carry of the passes of one step: the vector, the diagonal, what is left, the verdict."""

    w: Tree
    alpha: jax.Array
    squared: jax.Array
    norm: jax.Array
    count: jax.Array
    broken: jax.Array
    done: jax.Array


def _random_unit(basis: Tree, key: jax.Array, like: Tree) -> Tree:
    """A random unit vector orthogonal to the basis; zero where the basis spans the whole space."""
    w = bases.random_vector(key, like)
    no = jnp.zeros((), bool)
    carry = bases.vary_like((w, jnp.zeros((), trees.dtype(w)), jnp.int32(0), no), w, basis)

    def one_pass(carry):
        w, _, count, _ = carry
        rest, _, before, after = bases.project_out(basis, w)
        return rest, after, count + 1, after >= _DGKS * before

    # Near the full dimension every pass but the last may cancel; only then are there so many.
    w, squared, _, clean = lax.while_loop(lambda c: ~c[3] & (c[2] < _MAX_PASSES), one_pass, carry)
    good = clean & (squared > 0)
    return trees.scale(jnp.where(good, 1 / jnp.sqrt(jnp.where(good, squared, 1)), 0), w)


_compiled_step = jax.jit(functools.partial(_step, restart=False), donate_argnums=0)


@jax.jit
def _before_injection(state: Krylov, before: jax.Array) -> tuple[Krylov, Krylov]:
    """The state, less its basis, whose next step writes the row after ``before``; and a copy."""
    small = state._replace(basis=None, vector=None)
    cleared = small._replace(
        vector=bases.row(state.basis, before),
        betas=jnp.zeros_like(state.betas),
        step=before,
        norm=jnp.zeros_like(state.norm),
        scale=jnp.ones_like(state.scale),
    )
    return cleared, small


@functools.partial(jax.jit, donate_argnums=0)
def _after_injection(small: Krylov, key: jax.Array, index: jax.Array) -> Krylov:
    return small._replace(betas=small.betas.at[index - 1].set(0), step=index, key=key)


def inject(state: Krylov, index: chex.Numeric) -> Krylov:
    """Continue from a random vector orthogonal to the basis, placed at row ``index`` > 0.

    The rows from ``index`` on must be zero, as they are after a breakdown. The off-diagonal before
    it is zero: what comes after is another Krylov space. Zero where the basis spans the whole
    space.

    The compiled step itself makes it orthogonal, as if the random vector were the product of the
    row before: a program of its own would compile for as long as the step's.
    """
    key = jax.random.fold_in(state.key, index)
    drawn = probes.probe(key, state.vector, "normal")
    cleared, small = _before_injection(state, index - 1)
    found = _compiled_step(cleared._replace(basis=state.basis), drawn)
    small = _after_injection(small, key, index)
    return small._replace(basis=found.basis, vector=found.vector)


def run(op: Operator, state: Krylov, num_steps: int, w: Tree = None) -> tuple[Krylov, int]:
    """Advance a run by ``num_steps`` steps.

    Args:
      op: the operator.
      state: the run; its buffers are consumed when driven from the host.
      num_steps: the number of steps.
      w: the product of the operator with ``state.vector`` where it is there already.

    Returns:
      The state after the steps, and the number of products spent: driven from the host, a few more
      than the steps where the Krylov space was exhausted between two looks.
    """
    product = loops.product(op)
    w = arguments.first_product(op, state.vector) if w is None else w
    if loops.is_traced(w):
        # The product above served to ask whether we are traced; unused, the compiler drops it.
        return _run_traced(op, bases.vary_like(state, w), num_steps, w), num_steps
    if loops.on_device() and not op.host_driven:
        return _run_on_device(op, state, num_steps), num_steps
    start = int(state.step)
    last, spent, interval = start + num_steps, 0, CHECK_EVERY
    done = start
    while done < last:
        for _ in range(min(interval, last - done)):
            state = _compiled_step(state, product(state.vector) if w is None else w)
            w, spent = None, spent + 1
        reached = min(done + interval, last)
        broken = np.flatnonzero(np.asarray(state.breakdown)[done:reached])
        if len(broken) and done + broken[0] + 1 < op.size:
            # Whatever followed was the product of a zero vector. Breakdowns come in series: look
            # after every step from here on.
            reached, interval = done + int(broken[0]) + 1, 1
            state = inject(state, np.int32(reached))
        done = reached
    return state, spent


def _run_traced(op, state, num_steps, w=()):
    product = loops.product(op)

    def body(_, s):
        return _step(s, product(s.vector), restart=True)

    return loops.fori(num_steps, body, state, like=w)


_run_on_device = jax.jit(_run_traced, static_argnums=2, donate_argnums=1)
