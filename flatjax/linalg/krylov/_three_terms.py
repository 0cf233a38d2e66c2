"""Lanczos runs without a basis: the three-term recurrence alone, for quadratures.

Rounding makes the vectors lose their orthogonality as Ritz values converge, and copies of these
appear. The Gauss quadrature stays one of a measure close to the start vector's (Greenbaum 1989): a
copy shares the weight of its value. But it takes a node that would have resolved something else.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.krylov import _step as krylov
from flatjax.operators._base import Operator


class ThreeTerms(NamedTuple):
    """A Lanczos run without a basis, in units of ``scale``; fields as of `krylov.Krylov`.

    Attributes:
      previous: the unit vector that was multiplied last.
      vector: the unit vector to be multiplied next; zero where the Krylov space is exhausted.
      alphas: ``(m,)``.
      betas: ``(m,)``.
      step: the number of steps done.
      norm: a lower bound of the operator's norm.
      scale: a power of two.
    """

    previous: Tree
    vector: Tree
    alphas: jax.Array
    betas: jax.Array
    step: jax.Array
    norm: jax.Array
    scale: jax.Array


@functools.partial(jax.jit, static_argnums=1)
def start(v0: Tree, capacity: int) -> ThreeTerms:
    """The state before the first step, from a unit vector."""
    scalar = trees.dtype(v0)
    return ThreeTerms(
        previous=trees.zeros(v0),
        vector=jax.tree.map(jnp.copy, v0),
        alphas=jnp.zeros(capacity, scalar),
        betas=jnp.zeros(capacity, scalar),
        step=jnp.zeros((), jnp.int32),
        norm=jnp.zeros((), scalar),
        scale=jnp.ones((), scalar),
    )


# The next vector takes the place of the one before the last: three are held, and a temporary one.
@functools.partial(jax.jit, donate_argnums=(0, 3))
def _step(previous: Tree, q: Tree, w: Tree, state: ThreeTerms) -> ThreeTerms:
    """The state after a step, less ``previous``, given the product ``w`` with ``q``."""
    j, eps = state.step, jnp.finfo(state.alphas.dtype).eps
    scale = lax.cond(
        state.norm > 0, lambda: state.scale, lambda: krylov.power_of_two(trees.norm(w))
    )
    w = trees.scale(1 / scale, trees.cast(w, q))
    before = jnp.where(j > 0, state.betas[jnp.maximum(j - 1, 0)], 0)
    w = trees.axpy(-before, previous, w)
    alpha = trees.vdot(q, w)
    w = trees.axpy(-alpha, q, w)
    # Once more: of a large multiple of the vector rounding has left a part.
    rest = trees.vdot(q, w)
    w = trees.axpy(-rest, q, w)
    beta = jnp.sqrt(trees.vdot(w, w))
    alpha = alpha + rest
    norm = jnp.maximum(state.norm, jnp.sqrt(alpha**2 + before**2 + beta**2))
    # Nothing but rounding is left: what follows has no weight.
    goes_on = beta > krylov.BREAKDOWN * eps * norm
    beta = jnp.where(goes_on, beta, 0)
    return ThreeTerms(
        previous=None,
        vector=trees.scale(jnp.where(goes_on, 1 / jnp.where(goes_on, beta, 1), 0), w),
        alphas=lax.dynamic_update_index_in_dim(state.alphas, alpha, j, 0),
        betas=lax.dynamic_update_index_in_dim(state.betas, beta, j, 0),
        step=j + 1,
        norm=norm,
        scale=scale,
    )


def run(op: Operator, state: ThreeTerms, num_steps: int, w: Tree = None) -> ThreeTerms:
    """Advance a run by ``num_steps`` steps from the host; its buffers are consumed."""
    product = loops.product(op)
    for _ in range(num_steps):
        vector = state.vector
        w = product(vector) if w is None else w
        after = _step(state.previous, vector, w, state._replace(previous=None, vector=None))
        state, w = after._replace(previous=vector), None
    return state
