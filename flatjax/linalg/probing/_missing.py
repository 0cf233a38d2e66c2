r"""Pairs that a Lanczos run has missed, seen by the probes that come after it.

One start vector sees one copy of a multiple eigenvalue, and where its component along an
eigenvector is small the eigenvalue behind it converges first and is taken for it. Every probe has
run in the complement of the converged pairs: its extreme Ritz vectors y are drawn to what is
missing there. Joined to the run's basis Q they make a larger space, in which the projected matrix
is known without a product: with $c = Q^\top y$ and $w = y - Qc$,

$$
Q^\top A w = \beta_m (q_{m+1}^\top w) e_m, \qquad
(I - QQ^\top) A w = (I - QQ^\top)(A y - \beta_m c_m q_{m+1}).
$$

By Cauchy's interlacing its Ritz values are no larger, counted from the top, than the eigenvalues:
one above the list's own shows that the list is not complete, and is the missing pair as a rule.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax._watching import SILENT, Watch
from flatjax.linalg.krylov import _extremes as extremes
from flatjax.linalg.krylov import _relations as relations
from flatjax.linalg.krylov import _ritz as ritz
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.krylov._extremes import Extremes
from flatjax.linalg.krylov._relations import Relation
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _rotations as rotations
from flatjax.linalg.vectors._span import Span
from flatjax.operators._base import Operator

# A candidate of less than this outside the basis, or outside the candidates before, is rounding.
_OUTSIDE = 1e-2
MOST = 64  # products that fill in what is missing
FIRST_KEY = 1 << 20  # of the probes drawn for that; those before it are the others


class Candidates(NamedTuple):
    """Vectors w orthogonal to a run's basis, and the parts h of their products outside it.

    Attributes:
      vectors: w, a tree with leading axis p.
      images: h, alike.
    """

    vectors: Tree
    images: Tree


class Joined(NamedTuple):
    """The wanted pairs of the joint space, top ones first, values descending in each part.

    Attributes:
      values: ``(k,)``.
      inner: ``(m, k)``, their coefficients over the run's basis.
      outer: ``(p, k)``, those over the candidates.
    """

    values: np.ndarray
    inner: np.ndarray
    outer: np.ndarray


@jax.jit
def _extremes(start: krylov.Krylov, coefficients: jax.Array, values: jax.Array, last: jax.Array):
    """Ritz vectors of a probe's run, and their products by its recurrence."""
    y = bases.combine(start.basis, coefficients)

    def image(v, q):
        shape = (-1, *(1,) * q.ndim)
        return values.reshape(shape).astype(v.dtype) * v + jnp.tensordot(
            last.astype(q.dtype), q, axes=0
        )

    return y, jax.tree.map(image, y, start.vector)


def seen(start: krylov.Krylov, steps: int, bottom: bool) -> tuple[Tree, Tree]:
    """The largest Ritz pair of a probe's run, and the smallest, as vectors and products.

    Args:
      start: the finished run.
      steps: its steps.
      bottom: whether the smallest is wanted too.

    Returns:
      Two trees with a leading axis of 1 or 2.
    """
    alphas, betas, scale = ritz.to_host((start.alphas, start.betas, start.scale))
    values, s = ritz.eigh(ritz.tridiagonal(alphas[:steps], betas[:steps]))
    index = [steps - 1, 0] if bottom else [steps - 1]
    coefficients = np.zeros((len(alphas), len(index)))
    coefficients[:steps] = s[:, index]
    last = betas[steps - 1] * scale * s[-1, index]
    dtype = start.alphas.dtype
    numbers = (coefficients, values[index] * scale, last)
    return _extremes(start, *(a.astype(dtype) for a in numbers))


@functools.partial(jax.jit, donate_argnums=(1, 2))
def outside(run: Relation, y: Tree, images: Tree) -> Candidates:
    """The unit parts of vectors outside the basis, and those of their products; zero for none.

    Both take the places of what they are made of.
    """
    c = relations.coefficients(run, y)
    w = bases.subtract(y, bases.combine(run.basis, c))
    again = relations.coefficients(run, w)  # rounding, beside what is left of w
    w = bases.subtract(w, bases.combine(run.basis, again))
    last = run.betas[run.steps - 1] * (c + again)[run.steps - 1]
    h = bases.subtract(images, _outer(last, run.residual))
    h = bases.subtract(h, bases.combine(run.basis, relations.coefficients(run, h)))
    lengths = jax.vmap(trees.norm)(w)
    inverse = jnp.where(lengths > _OUTSIDE, 1 / jnp.where(lengths > 0, lengths, 1), 0)
    return Candidates(*(bases.combine(a, jnp.diag(inverse)) for a in (w, h)))


def _outer(numbers, vector):
    return jax.tree.map(lambda q: jnp.tensordot(numbers.astype(q.dtype), q, axes=0), vector)


_rows_of_all = jax.jit(lambda blocks: jax.tree.map(lambda *a: jnp.concatenate(a), *blocks))


def _joint(found: list[Candidates]) -> Candidates:
    """All of them; each half by itself, so that only one is there twice. The list is emptied."""
    vectors = _rows_of_all([each.vectors for each in found])
    images = [each.images for each in found]
    found.clear()
    return Candidates(vectors, _rows_of_all(images))


@functools.partial(jax.jit, donate_argnums=0, static_argnames="whole")
def _transformed(found: Candidates, matrix: jax.Array, *, whole: bool) -> Candidates:
    first = jnp.zeros((), jnp.int32)
    return Candidates(*(rotations.rotated(a, matrix, first, whole=whole) for a in found))


@jax.jit
def _numbers(run: Relation, found: Candidates):
    """Gram matrix, projected operator, and inner products with the run's next vector."""
    w, h = found
    along = bases.gram(w, jax.tree.map(lambda a: a[None], run.residual))[:, 0]
    return bases.gram(w, w), bases.gram(w, h), along


def _inverse_root(gram: np.ndarray) -> np.ndarray:
    """M with ``M^T G M = I``, zero columns for directions that are none."""
    lengths, vectors = ritz.eigh((gram + gram.T) / 2)
    good = lengths > _OUTSIDE**2
    return vectors * np.where(good, 1 / np.sqrt(np.where(good, lengths, 1)), 0)


def _orthonormal(run: Relation, found: Candidates) -> tuple[Candidates, tuple]:
    """The candidates made orthonormal, and their numbers in float64 on the host."""
    gram, _, _ = ritz.to_host(_numbers(run, found))
    dtype = run.alphas.dtype
    # In blocks where vectors are dear: a loop, which takes longer to compile.
    small = trees.size(run.residual) <= krylov.LARGE
    whole = small or rotations.is_shared(found.vectors)
    found = _transformed(found, _inverse_root(gram).astype(dtype), whole=whole)
    return found, ritz.to_host(_numbers(run, found))


class Space:
    """A run's basis and the candidates, and the wanted pairs of the operator on both."""

    def __init__(self, run: Relation, pairs, found: Candidates):
        self.run, self.pairs, self.found = run, pairs, found
        steps = len(pairs.matrix)
        self.last = float(np.asarray(run.betas)[steps - 1])
        self.solve()

    def solve(self) -> None:
        """The wanted pairs, by Rayleigh and Ritz."""
        self.found, (gram, projected, along) = _orthonormal(self.run, self.found)
        root = _inverse_root(gram)
        root = root[:, np.abs(root).sum(axis=0) > 0]
        m, p = len(self.pairs.matrix), root.shape[1]
        joint = np.zeros((m + p, m + p))
        joint[:m, :m] = self.pairs.matrix
        joint[m:, m:] = root.T @ ((projected + projected.T) / 2) @ root
        joint[m - 1, m:] = joint[m:, m - 1] = self.last * (along @ root)
        values, vectors = ritz.eigh(joint)
        top = self.pairs.num_top
        index = extremes.wanted(len(values), top, len(self.pairs.values) - top)
        self.values = values[index]
        self.inner, self.outer = vectors[:m, index], root @ vectors[m:, index]

    def residual(self, i: int) -> tuple[Tree, jax.Array]:
        """The residual of a wanted pair, a block of one unit vector, and its norm."""
        numbers = (self.last * self.inner[-1, i], self.outer[:, i])
        numbers = (np.asarray(a, self.run.alphas.dtype) for a in numbers)
        return _residual(self.run, self.found, *numbers)

    def residuals(self) -> np.ndarray:
        """The residual norms of the wanted pairs, from the vectors themselves, one at a time."""
        norms = [self.residual(i)[1] for i in range(len(self.values))]
        return np.asarray(jax.device_get(norms), np.float64)

    def vectors(self) -> Span:
        """The wanted vectors."""
        missing = self.run.alphas.shape[0] - len(self.inner)
        columns = np.concatenate([np.pad(self.inner, ((0, missing), (0, 0))), self.outer])
        basis = bases.Basis((*bases.parts_of(self.run.basis), self.found.vectors))
        return Span(basis, jax.device_put(columns.astype(self.run.alphas.dtype)))

    def extend(self, more: Candidates | None) -> None:
        """More vectors and their products."""
        if more is None:
            return
        self.found = _joint([self.found, more])
        self.solve()


@jax.jit
def _residual(run, found, last, outer):
    # A u - mu u is orthogonal to the joint space, and all but these terms of A u lie in it.
    rest = trees.axpy(last, run.residual, bases.combine(found.images, outer))
    rest = bases.project_out(found.vectors, rest)
    norm = trees.norm(rest)
    unit = trees.scale(jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0), rest)
    return jax.tree.map(lambda a: a[None], unit), norm


def filled(
    op: Operator,
    run: Relation,
    pairs: Extremes,
    candidates: list[Candidates],
    tol: float,
    floor: float,
    budget: int,
    another: Callable[[int], tuple[Candidates | None, int]],
    watch: Watch = SILENT,
    report: Callable[[int, np.ndarray, np.ndarray], None] = lambda *_: None,
) -> tuple[Extremes, tuple[bool | None, bool | None], int]:
    """The wanted pairs, with those that the probes show to be missing.

    Args:
      op: the operator.
      run: the Lanczos relation.
      pairs: its pairs at both ends.
      candidates: what `outside` left of every probe's; the list is emptied.
      tol: the relative residual that counts as converged.
      floor: the noise floor.
      budget: the products that may be spent where something is missing.
      another: a function of 0, 1, ... for the candidates of a further probe, and its products.
      watch: what may stop it.
      report: what to tell a watch, of the products, the values and their residuals.

    Returns:
      The pairs, others in place of the wanted ones where something was missing; whether the list
      at the top and that at the bottom are complete; and the products spent.
    """
    if len(pairs.matrix) >= op.size or not candidates:
        return pairs, (True, True), 0
    if not np.isfinite(pairs.norm):
        return pairs, (None, None), 0
    looks = seen_by = len(candidates)
    space = Space(run, pairs, _joint(candidates))
    converged = pairs.residuals <= np.maximum(tol * np.abs(pairs.values), floor)
    missing = _missing(pairs, space, converged, floor)
    if not missing.any():
        return pairs, (True, True), 0
    product, spent = loops.product(op), 0
    budget = budget if converged.all() else 0
    while True:
        residuals = space.residuals()
        open_ = residuals > np.maximum(tol * np.abs(space.values), floor)
        if watch.wants():
            report(spent, space.values, residuals)
            budget = budget if watch.stopped is None else 0
        # Every probe sees one vector of an eigenspace: as many new ones as probes may not be all.
        full = _new(pairs, space) >= looks
        if open_.any() and spent < budget:
            worst = [space.residual(i)[0] for i in np.flatnonzero(open_)[:4]]
            images = [product(bases.row(y, 0)) for y in worst]
            spent += len(worst)
            space.extend(outside(run, _rows_of_all(worst), bases.stack(images)))
        elif full.any() and spent < budget and not open_.any():
            more, products = another(looks - seen_by)
            space.extend(more)
            looks, spent = looks + 1, spent + products
        else:
            break
    left = [open_[end].any() for end in pairs.ends]
    complete = ~full & ~(missing & left)
    pairs = pairs._replace(values=space.values, residuals=residuals, vectors=space.vectors())
    return pairs, (bool(complete[0]), bool(complete[1])), spent


def _new(pairs, space) -> np.ndarray:
    """How many of the wanted vectors at each end lie outside the list's own."""
    shares = np.square(pairs.coefficients.T @ space.inner)
    return np.array([round(shares[e].shape[0] - shares[e, e].sum()) for e in pairs.ends])


def _missing(pairs, space, converged, floor) -> np.ndarray:
    """Whether the list at the top, and that at the bottom, lacks a pair."""
    rounding = max(floor, ritz.rounding(pairs.norm, trees.dtype(pairs.vectors.basis)))
    gains, new, found = space.values - pairs.values, _new(pairs, space), []
    for end, gain, count in zip(pairs.ends, (gains, -gains), new, strict=True):
        moved = gain[end]
        # What has not converged moves by itself, and by no more than its residual.
        beyond = (moved > np.maximum(pairs.residuals[end], rounding)).any()
        displaced = count > 0 and converged[end].all() and (moved > rounding).any()
        found.append(beyond or displaced)
    return np.array(found)
