"""The pairs at both ends of a spectrum: a Lanczos run until they converge, and what it shows."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from flatjax import _trees as trees
from flatjax._watching import SILENT, Watch
from flatjax.linalg.krylov import _certificates as certificates
from flatjax.linalg.krylov import _ritz as ritz
from flatjax.linalg.krylov import _saved as saved
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.krylov._certificates import Eigenpairs
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _flat as flat
from flatjax.linalg.vectors import _probes as probes
from flatjax.linalg.vectors import _rotations as rotations
from flatjax.linalg.vectors._span import Span
from flatjax.operators._base import Operator

# The relative residual up to which a Ritz value is taken for one eigenvalue. A looser one stands
# for its neighbours too: with 0.1 the distance of a density to the truth was 7 times as large on a
# transformer, and twice on an MLP. From 0.03 down it stays the same.
EXACT = 1e-2


class Extremes(NamedTuple):
    """The Ritz pairs of a finished run; numbers are NumPy float64.

    Attributes:
      num_top: how many of the largest are wanted.
      values: those wanted, the largest and then the smallest, each descending.
      residuals: the estimates of their residual norms.
      vectors: theirs, in memory of their own or as combinations of the run's basis: see `found`.
      coefficients: theirs over the steps of the run, in columns.
      matrix: the projected matrix.
      norm: the largest Ritz value in magnitude.
      exact_values: all values that have converged to ``tol`` and to 1 %, wanted or not.
      exact_vectors: their vectors, alike; zero ones fill them up to a multiple of 16. ``None``
        without any.
      start: nodes and weights (of sum 1) of the quadrature of the start vector in the complement of
        the converged pairs, or ``None`` where it says nothing of it.
    """

    num_top: int
    values: np.ndarray
    residuals: np.ndarray
    vectors: Span
    coefficients: np.ndarray
    matrix: np.ndarray
    norm: float
    exact_values: np.ndarray
    exact_vectors: Span | None
    start: tuple[np.ndarray, np.ndarray] | None

    @property
    def middle(self) -> float:
        """The mean of the Ritz values that have not converged: inside what is left to find."""
        left = len(self.matrix) - len(self.exact_values)
        return (np.trace(self.matrix) - self.exact_values.sum()) / left if left else 0.0

    @property
    def ends(self) -> tuple[slice, slice]:
        """Where those at the top and those at the bottom are among the wanted."""
        return slice(0, self.num_top), slice(self.num_top, None)


def converged(
    op: Operator,
    key: jax.Array,
    k: int,
    num_bottom: int,
    tol: float,
    num_steps: int | None,
    max_steps: int,
    resume: Any,
    watch: Watch = SILENT,
    to_come: int = 0,
) -> tuple[krylov.Krylov, int]:
    """A Lanczos run long enough for the wanted pairs, and the products it has cost.

    It goes on from ``resume``, the state of an earlier run, for exactly ``num_steps`` in all, or
    until the ``k`` largest and ``num_bottom`` smallest pairs have the relative residual ``tol``, or
    until its watch stops it, which is told these, and that after so many steps others are to come.

    Raises:
      ValueError: if the earlier run has another structure, is one of another operator by a product
        with its last row, or has more steps than asked for.
    """
    last = min(op.size, max_steps if num_steps is None else num_steps)
    if resume is None:
        state, spent = _begun(op, key, last), 1
    else:
        saved.check_run(resume.run, op.structure)
        saved.check_operator(2 * _departure(op, resume.run), float(resume.noise_floor))
        state, spent = krylov.copied(resume.run), int(resume.num_products) + 1
        if int(state.step) > last:
            raise ValueError(
                f"resume has {int(state.step)} Lanczos steps already, more than the {last} asked "
                "for: raise num_steps, max_steps or basis_bytes."
            )

    def report(state, more):
        values, residuals, _ = ritz_values(state)
        top = min(k, len(values))
        index = wanted(len(values), top, min(num_bottom, len(values) - top))
        left = last - int(state.step) + to_come if num_steps is not None else None
        distance = None
        if num_steps is None and np.isfinite(values).all():
            with np.errstate(divide="ignore"):
                distance = np.log(np.max(residuals[index] / (tol * np.abs(values[index]))))
        ready = len(values) >= k + num_bottom
        watch.report(
            spent + more, values[index], residuals[index], left=left, distance=distance, ready=ready
        )

    while (step := int(state.step)) < last and watch.stopped is None:
        if num_steps is None and step >= k + num_bottom and _done(state, k, num_bottom, tol):
            break
        state = krylov.with_room(state, last)
        chunk = min(state.alphas.shape[0], last) - step
        if num_steps is None:
            chunk = min(chunk, krylov.CHECK_EVERY - step % krylov.CHECK_EVERY)
        state, chunk = krylov.watched(op, state, chunk, watch, report)
        spent += chunk
    return state, spent


def _begun(op: Operator, key: jax.Array, last: int) -> krylov.Krylov:
    """A run after its first step. In a frame of its own, with which its vectors go."""
    v0 = probes.probe(key, op.structure, "normal")
    image = arguments.first_product(op, v0)
    state, image, _ = krylov.begin(v0, image, krylov.first_rows(op.size, last), key)
    return krylov.run(op, state, 1, image)


def _departure(op: Operator, run: krylov.Krylov) -> float:
    """How far the product with the last row of a run is from what the run says of it."""
    rows, last = len(run.alphas), int(run.step) - 1
    alphas, betas = np.asarray(run.alphas), np.asarray(run.betas)
    row, image = np.zeros((2, rows))
    row[last], image[last] = 1, alphas[last]
    if last:
        image[last - 1] = betas[last - 1]
    found = certificates.departure(
        op, run.basis, row, image, betas[last], run.vector, float(run.scale)
    )
    return float(found)


def _done(state, k, num_bottom, tol):
    values, residuals, _ = ritz_values(state)
    index = wanted(len(values), k, num_bottom)
    small = ritz.rounding(np.max(np.abs(values)), state.alphas.dtype)
    return bool(np.all(residuals[index] <= np.maximum(tol * np.abs(values[index]), small)))


def wanted(n: int, k: int, num_bottom: int) -> np.ndarray:
    """The indices of the wanted among n ascending values."""
    return np.concatenate([np.arange(n - 1, n - 1 - k, -1), np.arange(num_bottom)[::-1]])


def ritz_values(state):
    """Ascending Ritz values, residual estimates and coefficients, in float64 on the host."""
    m = int(state.step)
    alphas, betas, scale = ritz.to_host((state.alphas, state.betas, state.scale))
    values, s = ritz.eigh(ritz.tridiagonal(alphas[:m], betas[:m]))
    return values * scale, np.abs(betas[m - 1] * s[-1]) * scale, s


def found(
    state: krylov.Krylov, k: int, num_bottom: int, tol: float, size: int, *, form: bool = True
) -> Extremes:
    """What a finished run shows; a relative residual of ``tol``, at most `EXACT`, is exact.

    Its vectors are formed, or else stay combinations of the basis, in no memory of their own.
    """
    dtype = state.alphas.dtype
    values, residuals, s = ritz_values(state)
    index = wanted(len(values), k, num_bottom)
    norm = float(np.max(np.abs(values)))
    known = np.maximum(min(tol, EXACT) * np.abs(values), ritz.rounding(norm, dtype))
    exact = np.flatnonzero(residuals <= known)
    broken = np.asarray(state.breakdown)[: len(values)].any()
    columns = np.zeros(
        (bases.size(state.basis), len(index) + -(-len(exact) // 16) * 16)
    )  # few programs
    columns[: len(s), : len(index)] = s[:, index]
    columns[: len(s), len(index) : len(index) + len(exact)] = s[:, exact]
    columns = columns.astype(dtype)
    placed = jax.device_put  # a conversion on the device would be a program to compile
    if form:
        sizes = (len(index), columns.shape[1] - len(index))
        vectors, exact_vectors = map(Span, _formed(state.basis, columns, sizes))
    else:
        vectors, exact_vectors = (
            Span(state.basis, placed(c)) for c in np.split(columns, [len(index)], axis=1)
        )
    return Extremes(
        num_top=k,
        values=values[index],
        residuals=residuals[index],
        vectors=vectors,
        coefficients=s[:, index],
        matrix=(s * values) @ s.T,
        norm=norm,
        exact_values=values[exact],
        exact_vectors=exact_vectors if len(exact) else None,
        start=None if broken else _start(values, ritz.masses(s, dtype), exact, size),
    )


def _formed(basis, columns, sizes):
    """The first combinations and the others."""
    whole = rotations.is_shared(basis)
    return rotations.compiled_combine_in_parts(basis, columns, sizes, whole=whole)


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
    """Nodes of probes and of the start vector, an array each, and weights, now of sum ``left``."""
    rows = [*zip(nodes, weights, strict=True), *([] if start is None else [start])]
    return [row for row, _ in rows], [left * mass for _, mass in rows]


def certified(
    found: Extremes,
    floor: float,
    noise: np.ndarray,
    tol: float,
    spent: int,
    complete: tuple,
    layout: flat.Packed | None = None,
) -> tuple[Eigenpairs, Eigenpairs]:
    """The wanted pairs at the top and at the bottom, with their certificates.

    ``noise`` is that of the product with every vector; ``complete``, whether the list at the top
    is, and that at the bottom; ``layout``, how the vectors are packed: those of the result are not.
    """
    # The Lanczos estimate of the residual does not know the noise of the products.
    residuals = np.hypot(found.residuals, noise)
    good = residuals <= certificates.allowed(np.abs(found.values), floor, tol)
    resolved, dtype = np.abs(found.values) > floor, trees.dtype(found.vectors.basis)
    placed = jax.device_put  # a conversion on the device would be a program to compile

    def part(rows, vectors, whole):
        whole = whole if np.isfinite(found.values[rows]).all() else None
        return Eigenpairs(
            values=placed(found.values[rows].astype(dtype)),
            vectors=vectors,
            residual_norms=placed(residuals[rows].astype(dtype)),
            converged=placed(good[rows] & (whole is not False)),
            resolved=placed(resolved[rows]),
            num_products=spent,
            noise_floor=placed(np.asarray(floor, dtype)),
            complete=whole,
        )

    vectors = _ends(layout, found.vectors, found.num_top)
    ends = zip(found.ends, vectors, complete, strict=True)
    top, bottom = (part(*end) for end in ends)
    return top, bottom


def _ends(layout, span, k):
    """The first k vectors and the others, as the caller knows them."""
    if span.columns is None:
        return _halves(layout, span.basis, k)
    formed = _formed(span.basis, span.columns, (k, span.columns.shape[1] - k))
    return [flat.unpack(layout, vectors) for vectors in formed]


@functools.partial(jax.jit, static_argnums=2)
def _halves(layout, vectors, k):
    vectors = flat.unpack(layout, vectors)
    return jax.tree.map(lambda a: a[:k], vectors), jax.tree.map(lambda a: a[k:], vectors)
