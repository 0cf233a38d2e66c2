"""The Lanczos run of a spectrum: driven until the wanted pairs converge, and read out."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.krylov import _ritz as ritz
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.krylov._certificates import Eigenpairs
from flatjax.linalg.krylov._ritz import masses
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _flat as packing
from flatjax.linalg.vectors import _probes as probes
from flatjax.operators._base import Operator

# The relative residual up to which a Ritz value is taken for one eigenvalue. A looser one stands
# for its neighbours too: with 0.1 the distance of a density to the truth was 7 times as large on a
# transformer, and twice on an MLP. From 0.03 down it stays the same.
EXACT = 1e-2
NOT_TRACED = (
    "spectrum is driven from the host and cannot be traced: call it outside jit, or use "
    "flatjax.eigsh, flatjax.trace and flatjax.spectral_density inside."
)


def converged(
    op: Operator,
    key: jax.Array,
    k: int,
    num_bottom: int,
    tol: float,
    num_steps: int | None,
    max_steps: int,
    resume: Any,
) -> tuple[krylov.Krylov, int]:
    """A Lanczos run long enough for the wanted pairs, and the products it has cost.

    Args:
      op: the operator.
      key: a PRNG key.
      k: how many of the largest pairs.
      num_bottom: how many of the smallest.
      tol: the relative residual to reach.
      num_steps: exactly so many steps, or ``None``.
      max_steps: the most steps otherwise.
      resume: the state of an earlier run, or ``None``.

    Returns:
      The run and the products.

    Raises:
      ValueError: if the earlier run has another structure, or more steps than asked for.
    """
    last = min(op.size, max_steps if num_steps is None else num_steps)
    if resume is None:
        start_key, key = jax.random.split(key)
        v0 = probes.probe(start_key, op.structure, "normal")
        image = arguments.first_product(op, v0)
        if loops.is_traced(image):
            raise TypeError(NOT_TRACED)
        _, (v0, image) = normalized((v0, image))
        first = krylov.first_rows(op.size, last)
        # The product that asked whether we are traced is the first of the run.
        state, spent = krylov.run(op, krylov.start(v0, first, key), 1, image), 1
    else:
        trees.check(resume.run.vector, op.structure, "resume")
        # A copy: the run consumes its buffers, and these are the caller's.
        state, spent = _copy(resume.run), int(resume.num_products)
        if int(state.step) > last:
            raise ValueError(
                f"resume has {int(state.step)} Lanczos steps already, more than the {last} asked "
                "for: raise num_steps or max_steps."
            )
    while (step := int(state.step)) < last:
        if num_steps is None and step >= k + num_bottom and _done(state, k, num_bottom, tol):
            break
        state = krylov.with_room(state, last)
        chunk = min(state.alphas.shape[0], last) - step
        if num_steps is None:
            chunk = min(chunk, krylov.CHECK_EVERY - step % krylov.CHECK_EVERY)
        state = krylov.run(op, state, chunk)
        spent += chunk
    return state, spent


_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


@jax.jit
def normalized(trees_: tuple) -> tuple[jax.Array, tuple]:
    """The norm of the first tree, and all of them divided by it."""
    length = trees.norm(trees_[0])
    return length, tuple(
        jax.tree.map(lambda a: a / length.astype(a.dtype), tree) for tree in trees_
    )


def _done(state, k, num_bottom, tol):
    values, residuals, _ = _solved(state)
    index = _wanted(len(values), k, num_bottom)
    norm = np.max(np.abs(values))
    rounding = 16 * float(jnp.finfo(state.alphas.dtype).eps) * norm
    return bool(np.all(residuals[index] <= np.maximum(tol * np.abs(values[index]), rounding)))


def _wanted(n, k, num_bottom):
    return np.concatenate([np.arange(n - 1, n - 1 - k, -1), np.arange(num_bottom)[::-1]])


def _solved(state):
    """Ascending Ritz values, residual estimates and coefficients, in float64 on the host."""
    m = int(state.step)
    alphas, betas = (np.asarray(a, np.float64)[:m] for a in (state.alphas, state.betas))
    scale = float(state.scale)
    values, s = ritz.eigh(ritz.tridiagonal(alphas, betas))
    return values * scale, np.abs(betas[-1] * s[-1]) * scale, s


_combine = jax.jit(bases.combine)


@functools.partial(jax.jit, static_argnums=2)
def _shares(op, vectors, groups):
    out: dict = {}
    for name, leaf in zip(groups, jax.tree.leaves(packing.unpack(op, vectors)), strict=True):
        part = jnp.square(leaf.astype(trees.compute_dtype(leaf.dtype)))
        part = part.reshape(leaf.shape[0], -1).sum(axis=1)
        out[name] = out[name] + part if name in out else part
    return out


def _start(values, weights, exact, size):
    """The quadrature of the start vector without the converged pairs.

    A random start vector is a probe like any other, as deep as the run. But of a multiple
    eigenvalue its run sees one vector, which takes the weight of all copies with it: where the
    converged pairs weigh more than single ones would, by the law of chi squares, it is left out.
    """
    count, inside = len(exact), np.delete(np.arange(len(values)), exact)
    mass = weights[inside].sum()
    single = size * weights[exact].sum() <= count + 4 * np.sqrt(2 * count)
    if not (mass > 0 and single and size > count):
        return None
    return values[inside], weights[inside] / mass


def with_start(
    start: tuple | None, nodes: np.ndarray, weights: np.ndarray, left: float
) -> tuple[list, list]:
    """The quadratures of probes and that of the start vector.

    Args:
      start: its nodes and weights, or ``None``.
      nodes: ``(p, s)``, those of the probes.
      weights: ``(p, s)``, of sum 1 in every row.
      left: the share of the eigenvalues that they stand for.

    Returns:
      Lists of nodes and of weights of sum ``left``, an array a probe.
    """
    rows = [*zip(nodes, weights, strict=True), *([] if start is None else [start])]
    return [row for row, _ in rows], [left * mass for _, mass in rows]


class Ritz:
    """The Ritz pairs of a finished run.

    Attributes:
      values: those wanted, the ``k`` largest and then the ``num_bottom`` smallest, each descending.
      residuals: the estimates of their residual norms.
      vectors: theirs, a tree with leading axis ``k + num_bottom``.
      coefficients: theirs over the rows of the basis, in columns.
      matrix: the projected matrix, in float64 on the host.
      relation: numbers a and b of each, of the Lanczos relation ``A v = a v + b q`` with the next
        vector q of the run.
      norm: the largest Ritz value in magnitude.
      num_deflated: how many pairs have converged to ``tol`` and to 1 %, wanted or not.
      deflated_values: their values.
      start: nodes and weights (of sum 1) of the quadrature of the start vector in the complement of
        the converged pairs, or ``None`` where it says nothing of it.
    """

    def __init__(self, state: krylov.Krylov, k: int, num_bottom: int, tol: float, size: int):
        self.k, self.num_bottom = k, num_bottom
        self.dtype = state.alphas.dtype
        values, residuals, s = _solved(state)
        index = _wanted(len(values), k, num_bottom)
        self.values, self.residuals = values[index], residuals[index]
        self.matrix, self.coefficients = (s * values) @ s.T, s[:, index]
        self._replaced = False
        self.norm = float(np.max(np.abs(values)))
        rounding = 16 * float(jnp.finfo(self.dtype).eps) * self.norm
        known = np.maximum(min(tol, EXACT) * np.abs(values), rounding)
        exact = np.flatnonzero(residuals <= known)
        self.num_deflated = len(exact)
        self.deflated_values = values[exact]
        self._exact = s[:, exact]
        broken = np.asarray(state.breakdown)[: len(values)].any()
        self.start = None if broken else _start(values, masses(s, self.dtype), exact, size)
        m = int(state.step)
        last = float(np.asarray(state.betas)[m - 1]) * float(state.scale)
        self.relation = tuple(a.astype(self.dtype) for a in (self.values, last * s[-1, index]))
        self._rows = state.alphas.shape[0]
        self.vectors = _combine(state.basis, self.padded(s[:, index], len(index)))
        self._deflating: Tree = None

    def padded(self, coefficients: np.ndarray, columns: int) -> np.ndarray:
        """Coefficients for the whole buffer, and as many columns as few programs will serve."""
        rows = self._rows - coefficients.shape[0]
        missing = columns - coefficients.shape[1]
        return np.pad(coefficients, ((0, rows), (0, missing))).astype(self.dtype)

    def deflating(self, state: krylov.Krylov) -> Tree | None:
        """The vectors of the converged pairs; zero rows fill up to a multiple of 16."""
        if not self.num_deflated:
            return None
        columns = -(-self.num_deflated // 16) * 16
        self._deflating = _combine(state.basis, self.padded(self._exact, columns))
        return self._deflating

    def wanted(self, n: int) -> np.ndarray:
        """The indices of the wanted among n ascending values."""
        return _wanted(n, self.k, self.num_bottom)

    def replace(self, values: np.ndarray, residuals: np.ndarray, vectors: Tree) -> None:
        """Better pairs in the place of the wanted ones."""
        self.values, self.residuals, self.vectors = values, residuals, vectors
        self._replaced = True

    def shares(self, op: Operator, groups: tuple) -> dict:
        """Per group of leaves, the squared norm of every converged vector there."""
        if self._deflating is None:
            return dict.fromkeys(groups, np.zeros(0))
        found = _shares(op, self._deflating, groups)
        return {name: a[: self.num_deflated] for name, a in found.items()}

    def pairs(
        self, floor: float, noise: np.ndarray, tol: float, spent: int, complete: tuple
    ) -> tuple:
        """The wanted pairs at the top and at the bottom, with their certificates.

        Args:
          floor: the noise floor, a number.
          noise: the measured noise of the product with every vector, a NumPy array.
          tol: the relative residual that counts as converged.
          spent: the products spent.
          complete: whether the list at the top is complete, and that at the bottom.

        Returns:
          Two `Eigenpairs`.
        """
        # The Lanczos estimate of the residual does not know the noise of the products.
        # It was measured for the run's own vectors; for others the largest stands.
        noise = noise.max() if self._replaced else noise
        residuals = np.hypot(self.residuals, noise)
        good = residuals <= np.maximum(tol * np.abs(self.values), floor)
        resolved = np.abs(self.values) > floor

        def part(start, stop, whole):
            rows = slice(start, stop)
            return Eigenpairs(
                values=jnp.asarray(self.values[rows], self.dtype),
                vectors=_rows(self.vectors, start, stop),
                residual_norms=jnp.asarray(residuals[rows], self.dtype),
                converged=jnp.asarray(good[rows] & (whole is not False)),
                resolved=jnp.asarray(resolved[rows]),
                num_products=spent,
                noise_floor=jnp.asarray(floor, self.dtype),
                complete=whole,
            )

        ends = (0, self.k, self.k + self.num_bottom)
        return part(*ends[:2], complete[0]), part(*ends[1:], complete[1])


@functools.partial(jax.jit, static_argnums=(1, 2))
def _rows(vectors, start, stop):
    return jax.tree.map(lambda a: a[start:stop], vectors)
