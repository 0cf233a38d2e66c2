"""Inverse products by conjugate gradients."""

import contextlib
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax import _texts as texts
from flatjax import _trees as trees
from flatjax.operators._base import Modified, Operator, as_operator, operator, static

_CHECK_EVERY = 8  # iterations between two looks at the residual, when driven from the host


@reading.readable
class Solution(NamedTuple):
    """The solution of ``(A + damping I) x = v``, and how good it is.

    Attributes:
      x: the solution, a tree like ``v``.
      residual_norm: the norm of ``v - (A + damping I) x``, by a product of its own.
      relative_residual: ``residual_norm / norm(v)``; 0 for a zero ``v``.
      iterations: conjugate-gradient steps taken, one product each; two products come on top.
      converged: whether ``relative_residual <= tol``.
      indefinite: whether a direction of zero or negative curvature was met, which ends the
        iteration: the matrix is not positive definite and needs more damping. ``x`` is the last
        iterate before it.
    """

    x: Any
    residual_norm: jax.Array
    relative_residual: jax.Array
    iterations: jax.Array
    converged: jax.Array
    indefinite: jax.Array


class _State(NamedTuple):
    x: Any
    residual: Any
    direction: Any
    slope: jax.Array  # <residual, M^-1 residual>
    target: jax.Array
    iterations: jax.Array
    done: jax.Array
    indefinite: jax.Array


@operator
class Inverse(Modified):
    """``(A + damping I)^-1`` by conjugate gradients; made by [`inverse`][]."""

    op: Operator
    damping: Any
    tol: Any
    preconditioner: Any  # an operator, or None
    max_iters: int = static()

    @property
    def host_driven(self):
        # Eager products drive compiled steps from the host; traced ones are a loop on the device.
        return True

    def mv(self, v):
        found = self.solve(v)
        wrong = found.indefinite & ~found.converged
        return jax.tree.map(lambda a: jnp.where(wrong, jnp.full_like(a, jnp.nan), a), found.x)

    def _facts(self):
        numbers = {"damping": texts.text(self.damping), "tol": texts.text(self.tol)}
        return {**numbers, **super()._facts()}

    def solve(self, v: Any) -> Solution:
        """The product with ``v``, with its certificate.

        Args:
          v: a tree like the vectors of the operator.

        Returns:
          The solution, its true residual, and the fate of the iteration.
        """
        trees.check(v, self.structure)
        v = trees.cast(v, self.structure)
        product = loops.product(self.op)
        precondition = self.preconditioner
        inner = (lambda r: r) if precondition is None else loops.product(precondition)

        def step(state):
            moved = _descend(state, product(state.direction), self.damping, self.max_iters)
            return _turn(state, moved, inner(moved.residual))

        # The first step is outside of the loop: its output tells whether we are traced.
        state = step(_start(v, inner(v), self.tol))
        streamed = self.op.host_driven or getattr(precondition, "host_driven", False)
        with loops.device(False) if streamed else contextlib.nullcontext():
            state = loops.until(lambda s: s.done, step, state, check_every=_CHECK_EVERY)
        return _finish(state, v, product(state.x), self.damping, self.tol)


@jax.jit
def _start(v, inner, tol):
    length = trees.norm(v)
    # Half of the tolerance, so that the drift of the recursion does not spoil the true residual.
    target = length * jnp.asarray(tol, length.dtype) / 2
    no = jnp.zeros((), bool)
    iterations = jnp.zeros((), jnp.int32)
    x = jax.tree.map(jnp.zeros_like, v)
    return _State(x, v, inner, trees.vdot(v, inner), target, iterations, length == 0, no)


@jax.jit
def _descend(state, product, damping, max_iters):
    """Move along the direction, unless done or its curvature is not positive."""
    product = trees.axpy(damping, state.direction, product)
    curvature = trees.vdot(state.direction, product)
    indefinite = ~state.done & ~(curvature > 0)
    moves = ~state.done & ~indefinite
    one = jnp.ones_like(curvature)
    length = jnp.where(moves, state.slope / jnp.where(moves, curvature, one), 0 * one)
    residual = trees.axpy(-length, product, state.residual)
    iterations = state.iterations + moves.astype(jnp.int32)
    return state._replace(
        x=trees.axpy(length, state.direction, state.x),
        residual=residual,
        iterations=iterations,
        done=(
            ~moves | (trees.norm(residual) <= state.target) | (iterations >= jnp.int32(max_iters))
        ),
        indefinite=state.indefinite | indefinite,
    )


@jax.jit
def _turn(before, state, inner):
    """The next conjugate direction; a finished state keeps its own."""
    slope = trees.vdot(state.residual, inner)
    ratio = jnp.where(before.slope > 0, slope / before.slope, jnp.zeros_like(slope))
    turned = trees.axpy(ratio, state.direction, inner)
    keep = functools.partial(jnp.where, before.done)
    return state._replace(
        direction=jax.tree.map(keep, state.direction, turned), slope=keep(state.slope, slope)
    )


@jax.jit
def _finish(state, v, product, damping, tol):
    residual = trees.axpy(-1.0, trees.axpy(damping, state.x, product), v)
    norm, length = trees.norm(residual), trees.norm(v)
    relative = jnp.where(length > 0, norm / jnp.where(length > 0, length, 1), 0 * norm)
    converged = relative <= jnp.asarray(tol, relative.dtype)
    return Solution(state.x, norm, relative, state.iterations, converged, state.indefinite)


@operator
class _Division(Operator):
    """Division by a positive diagonal."""

    diagonal: Any

    @property
    def structure(self):
        return trees.structure_of(self.diagonal)

    def mv(self, v):
        return jax.tree.map(lambda a, d: a / d, v, self.diagonal)


def inverse(
    op: Operator,
    *,
    damping: ArrayLike = 0.0,
    tol: float = 1e-5,
    max_iters: int = 1000,
    preconditioner: Any = None,
) -> Inverse:
    r"""$(A + \lambda I)^{-1}$ for a positive definite $A + \lambda I$, by conjugate gradients.

    ``inverse(op).solve(v)`` returns the solution with its residual, the number of iterations and
    whether they converged; ``inverse(op) @ v``, and so every estimator, has the solution alone: the
    last iterate where ``max_iters`` ends the iteration. The residual is that of the solution itself
    (one product), not of the recursion, which drifts in float32. A direction of negative curvature
    ends the iteration: ``solve`` reports it, and the product is NaN, so an indefinite Hessian never
    passes for an inverted one: use the GGN, or damping above $-\lambda_{\min}$.

    A product costs one product of ``op`` an iteration, about $\sqrt{\kappa} \log(2/tol) / 2$
    of them for a condition number $\kappa$ (Hestenes and Stiefel 1952; Saad 2003, section 6.11),
    and the memory of four vectors. Eager, the iteration is driven from the host; traced, it is a
    loop on the device.

    Args:
      op: the operator A.
      damping: $\lambda$, in the units of an eigenvalue.
      tol: the relative residual to reach; below 1e-6 or so float32 does not get there, and
        ``converged`` says so.
      max_iters: the most iterations.
      preconditioner: a tree like the vectors with positive entries, an approximate diagonal of
        $A + \lambda I$; or an operator that approximates its inverse.

    Returns:
      An operator with a method ``solve``.

    Raises:
      TypeError: if ``op`` is no operator.
      ValueError: for a ``tol`` or ``max_iters`` that is not positive, or a preconditioner of
        another structure or with entries that are not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> H = flatjax.hessian(lambda w, _: w[0] ** 2 + 4 * w[1] ** 2, jnp.zeros(2), None)
      >>> solution = flatjax.inverse(H).solve(jnp.array([2.0, 8.0]))
      >>> solution.x.round(4).tolist(), int(solution.iterations), bool(solution.converged)
      ([1.0, 1.0], 2, True)
    """
    op = as_operator(op)
    checks.check_scalar("tol", tol, above=0)
    checks.check_count("max_iters", max_iters)
    if preconditioner is not None and not isinstance(preconditioner, Operator):
        trees.check(preconditioner, op.structure, "preconditioner")
        positive = jax.tree.map(lambda a: jnp.all(a > 0), preconditioner)
        if not loops.is_traced(positive) and not all(jax.tree.leaves(positive)):
            raise ValueError("preconditioner must be positive everywhere: a diagonal of A.")
        preconditioner = _Division(trees.cast(preconditioner, op.structure))
    elif preconditioner is not None:
        trees.check(preconditioner.structure, op.structure, "the preconditioner's structure")
    return Inverse(op, damping, tol, preconditioner, max_iters)
