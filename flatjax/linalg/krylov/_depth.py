"""A Krylov space to deflate with: how deep it pays to go."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax._watching import SILENT, Watch
from flatjax.linalg.krylov import _ritz as ritz
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _probes as probes
from flatjax.operators._base import Operator


class Deflation(NamedTuple):
    """An orthonormal basis and the operator on its span.

    Attributes:
      basis: orthonormal vectors, the rows after them zero.
      values: the Ritz values on the span.
      num_products: the products spent.
      rank: the dimension of the span.
    """

    basis: Tree
    values: Any
    num_products: int
    rank: int

    @property
    def trace(self) -> Any:
        """The trace on the span."""
        return self.values.sum()

    @property
    def absolute(self) -> Any:
        """The sum of the Ritz values' magnitudes: the size of what `trace` adds up."""
        return abs(self.values).sum()


def deflate(
    op: Operator, key: jax.Array, depth: int, total: int, watch: Watch = SILENT
) -> Deflation:
    r"""A Krylov space of at most ``depth`` vectors, cut short where it does not pay.

    Of ``total`` products p build the space and the rest are probes, whose variance is proportional
    to $(\|A\|_F^2 - \|Q^\top A Q\|_F^2)/(\mathrm{total} - p)$. The host looks every 8
    steps, later after an eighth of those done, and stops where the last of them raised that.
    $\|A\|_F^2$ comes from the quadrature of the start vector, with its weight on converged
    pairs replaced by one.

    Args:
      op: the operator.
      key: a PRNG key.
      depth: the most vectors.
      total: the products to share out.
      watch: what may stop it; told the trace on the span.

    Returns:
      A `Deflation`.
    """
    depth = min(depth, op.size)
    start_key, key = jax.random.split(key)
    v0 = trees.normalized(probes.probe(start_key, op.structure, "normal"))[0]
    w = arguments.first_product(op, v0)
    state = krylov.start(v0, krylov.first_rows(op.size, depth), key)
    done, inside, shares = 0, 0.0, total

    def report(state, more):
        trace = np.sum(np.asarray(state.alphas, np.float64)) * float(state.scale)
        watch.report(done + more, trace, np.inf, left=total - done - more)

    while True:
        state = krylov.with_room(state, depth)
        room = min(depth, state.alphas.shape[0]) - done
        step = min(max(krylov.CHECK_EVERY, done // 8), room)
        state, step = krylov.watched(op, state, step, watch, report, w)
        w, done = None, done + step
        alphas, betas, scale = ritz.to_host((state.alphas, state.betas, state.scale))
        values, coefficients = ritz.eigh(ritz.tridiagonal(alphas[:done], betas[:done]))
        whole = max(_square(values, coefficients, betas[done - 1], op.size), np.sum(values**2))
        # The last look's variance by the norm as it is known now: the two then differ by what these
        # steps found, and not by the noise of the norm.
        last = (whole - inside) / shares
        inside, shares = np.sum(values**2), total - done
        if watch.stopped is not None:
            break
        if done == depth or shares <= krylov.CHECK_EVERY or (whole - inside) / shares >= last:
            break
    # Row ``done`` holds the vector to be multiplied next, which is not part of the span.
    basis = _clear(state.basis, state.vector, jnp.int32(done))
    return Deflation(basis, values * scale, done, done)


def _square(values, coefficients, beta, size: int) -> float:
    """The squared Frobenius norm by the quadrature of the start vector."""
    converged = np.abs(beta * coefficients[-1]) <= 0.1 * np.abs(values)
    rest = size * np.sum(coefficients[0, ~converged] ** 2 * values[~converged] ** 2)
    return rest + np.sum(values[converged] ** 2)


@functools.partial(jax.jit, donate_argnums=0)
def _clear(basis: Tree, like: Tree, index: Any) -> Tree:
    return bases.set_row(basis, index, trees.zeros(like))
