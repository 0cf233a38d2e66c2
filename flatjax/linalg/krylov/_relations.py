"""The relation that a finished Lanczos run leaves: what is known of the operator without a probe.

An orthonormal basis Q, its projection T and one vector beyond: the operator's products with
everything in the span of Q.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax._watching import SILENT, Watch
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _probes as probes


class Relation(NamedTuple):
    r"""The Lanczos relation of ``steps`` steps, $A Q = Q T + \beta_m q_{m+1} e_m^\top$.

    Attributes:
      basis: the rows of Q, leading axis of at least ``steps``; further rows are not looked at.
      alphas: the diagonal of T, zero beyond ``steps``.
      betas: the off-diagonals of T; at ``steps - 1`` the norm of the residual.
      residual: the vector $q_{m+1}$.
      steps: the number of steps, an array.
    """

    basis: Tree
    alphas: jax.Array
    betas: jax.Array
    residual: Tree
    steps: jax.Array

    @property
    def trace(self) -> jax.Array:
        """The trace of T."""
        return self.alphas.sum()

    @property
    def unit(self) -> jax.Array:
        """A power of two near the size of T, in which squares neither vanish nor overflow."""
        return krylov.power_of_two(jnp.maximum(abs(self.alphas).max(), abs(self.betas).max()))

    def within(self, unit: jax.Array) -> "Relation":
        """The same run with T in these units."""
        return self._replace(alphas=self.alphas / unit, betas=self.betas / unit)

    @property
    def squares(self) -> jax.Array:
        """``|A Q|_F^2``: that of T and of the residual."""
        inner = jnp.arange(self.betas.shape[0], dtype=jnp.int32) < self.steps - 1
        last = jnp.square(self.betas[self.steps - 1])
        crossed = jnp.where(inner, jnp.square(self.betas), 0).sum()
        return jnp.square(self.alphas).sum() + 2 * crossed + last


def of_state(state: krylov.Krylov) -> Relation:
    """The relation of a run that is not traced, in the operator's own units.

    The coefficients are NumPy arrays: no program to compile.
    """
    alphas, betas, scale, steps = jax.device_get(
        (state.alphas, state.betas, state.scale, state.step)
    )
    filled = np.arange(len(alphas)) < steps
    alphas, betas = (np.where(filled, a, 0) * scale for a in (alphas, betas))
    return Relation(state.basis, alphas, betas, state.vector, steps)


def of_run(
    op: Any, key: jax.Array, depth: int, watch: Watch = SILENT, to_come: int = 0
) -> tuple[Relation, int]:
    """The relation of a new run of at most ``depth`` steps, and its products.

    A watch, which may stop it, is told the Frobenius norm of the operator on its span.
    """

    def report(state, done):
        run = of_state(state)
        norm = np.linalg.norm(np.append(run.alphas, 2**0.5 * run.betas[: done - 1]))
        norm = np.hypot(norm, run.betas[done - 1])
        watch.report(done, np.float64(norm), np.inf, left=depth - done + to_come)

    start_key, restart_key = jax.random.split(jax.random.fold_in(key, 0))
    v0 = trees.normalized(probes.probe(start_key, op.structure, "normal"))[0]
    image = arguments.first_product(op, v0)
    depth = min(depth, op.size)
    start = krylov.start(v0, depth, restart_key)
    state, depth = krylov.watched(op, start, depth, watch, report, image)
    return of_state(state), depth


def coefficients(run: Relation, block: Tree) -> jax.Array:
    """The inner products with the rows of a run's basis, zero beyond its steps."""
    filled = jnp.arange(run.alphas.shape[0], dtype=jnp.int32) < run.steps
    return jnp.where(filled[:, None], bases.gram(run.basis, block), 0)


@jax.jit
def diagonal(run: Relation) -> Tree:
    r"""The diagonal that is known: that of the operator less its part in the complement of Q.

    $A - P_\perp A P_\perp = Q T Q^\top + \beta_m (q_{m+1} q_m^\top + q_m q_{m+1}^\top)$.
    """
    parts = bases.parts_of(run.basis)
    # After row m - 1 comes the residual, whether or not it has been stored as row m.
    after = [*(bases.row(part, 0) for part in parts[1:]), run.residual]
    total = trees.zeros(run.residual)
    for part, alphas, betas, end in zip(
        parts, bases.cut(run.basis, run.alphas), bases.cut(run.basis, run.betas), after, strict=True
    ):

        def leaf(total, b, q, alphas=alphas, betas=betas):
            b = b.astype(run.alphas.dtype)
            following = jnp.concatenate([b[1:], q[None].astype(b.dtype)])
            by_row = (((0,), (0,)), ((), ()))
            known = jax.lax.dot_general(alphas, jnp.square(b), by_row, precision="highest")
            crossed = jax.lax.dot_general(betas, b * following, by_row, precision="highest")
            return total + known + 2 * crossed

        total = jax.tree.map(leaf, total, part, end)
    return total
