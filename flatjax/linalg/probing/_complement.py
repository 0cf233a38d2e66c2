"""What a finished Lanczos run gives the estimators that come after it.

A run leaves an orthonormal basis Q with a known projection ``T = Q^T A Q`` and one vector beyond.
Random probes then only have to account for the complement of Q, where a network's curvature matrix
has lost its outliers: the variance of a trace falls by orders of magnitude, for no product more.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _flat as packing
from flatjax.linalg.vectors import _probes as probes
from flatjax.operators._base import Operator


class Known(NamedTuple):
    r"""A Lanczos run of ``steps`` steps, :math:`A Q = Q T + \beta_m q_{m+1} e_m^\top`.

    Attributes:
      basis: the rows of Q, leading axis of at least ``steps``; further rows are not looked at.
      alphas: the diagonal of T, zero beyond ``steps``.
      betas: the off-diagonals of T; at ``steps - 1`` the norm of the residual.
      residual: the vector :math:`q_{m+1}`.
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

    def within(self, unit: jax.Array) -> "Known":
        """The same run with T in these units."""
        return self._replace(alphas=self.alphas / unit, betas=self.betas / unit)

    @property
    def squares(self) -> jax.Array:
        """``|A Q|_F^2``: that of T and of the residual."""
        inner = jnp.arange(self.betas.shape[0], dtype=jnp.int32) < self.steps - 1
        last = jnp.square(self.betas[self.steps - 1])
        crossed = jnp.where(inner, jnp.square(self.betas), 0).sum()
        return jnp.square(self.alphas).sum() + 2 * crossed + last


class Moments(NamedTuple):
    """What each of p probes says of the complement of a Krylov basis.

    Attributes:
      trace: ``(p,)``, the quadratic form ``x^T A x`` of the probe's part x in the complement; its
        mean over probes is the trace of A there.
      square: ``(p,)``, ``|A x|^2``, A in units of ``unit``; its mean is the trace of ``A^2`` there.
      image: ``A x``, a tree with leading axis p; see `rest`.
    """

    trace: jax.Array
    square: jax.Array
    image: Tree


def known(state: krylov.Krylov) -> Known:
    """The run in the operator's own units."""
    filled = jnp.arange(state.alphas.shape[0], dtype=jnp.int32) < state.step
    alphas = jnp.where(filled, state.alphas * state.scale, 0)
    betas = jnp.where(filled, state.betas * state.scale, 0)
    return Known(state.basis, alphas, betas, state.vector, state.step)


def coefficients(run: Known, block: Tree) -> jax.Array:
    """The inner products with the rows of a run's basis, zero beyond its steps."""
    filled = jnp.arange(run.alphas.shape[0], dtype=jnp.int32) < run.steps
    return jnp.where(filled[:, None], bases.gram(run.basis, block), 0)


@jax.jit
def rest(run: Known | None, images: Tree) -> Tree:
    """The part of ``Moments.image`` in the complement, for the traces of blocks and the diagonal.

    Args:
      run: the run, or ``None`` for nothing known.
      images: the images, with a leading axis.

    Returns:
      Vectors with that axis.
    """
    if run is None:
        return images
    return bases.subtract(images, bases.combine(run.basis, coefficients(run, images)))


@jax.jit
def moments(run: Known | None, y: Tree, images: Tree, unit: Any = 1.0) -> Moments:
    r"""The moments of probes in the complement of a Lanczos basis, in shared passes over it.

    The image of a probe's part :math:`x = y - Q c`, :math:`c = Q^\top y`, needs no product beyond
    that of the probe: :math:`A x = A y - Q T c - \beta_m c_m q_{m+1}`. Both are formed, because the
    same from inner products alone is a small difference of numbers as large as the outliers.

    Args:
      run: the run, or ``None`` for nothing known.
      y: the probes, or the probes less their parts along some vectors of the span of Q; a tree with
        a leading axis.
      images: ``A y`` of each.
      unit: a power of two near the size of A, where squares of the images would vanish or overflow.

    Returns:
      The moments.
    """
    vdots = jax.vmap(trees.vdot)

    def square(image):
        image = trees.scale(1 / unit, image)
        return vdots(image, image)

    if run is None:
        return Moments(vdots(y, images), square(images), images)
    c, count = coefficients(run, y), bases.size(y)
    inner = jnp.where(jnp.arange(c.shape[0], dtype=jnp.int32) < run.steps - 1, run.betas, 0)[
        :-1, None
    ]
    tc = run.alphas[:, None] * c
    tc = tc.at[:-1].add(inner * c[1:]).at[1:].add(inner * c[:-1])
    # All combinations in one pass over the basis.
    known = bases.combine(run.basis, jnp.concatenate([c, tc], axis=1))
    x = jax.tree.map(lambda a, k: a - k[:count], y, known)
    last = run.betas[run.steps - 1] * c[run.steps - 1]
    ax = jax.tree.map(
        lambda a, k, q: a - k[count:] - jnp.tensordot(last.astype(q.dtype), q, axes=0),
        images,
        known,
        run.residual,
    )
    return Moments(vdots(x, ax), square(ax), ax)


@jax.jit
def squares(run: Known, y: list[Tree], images: list[Tree]) -> jax.Array:
    """``Moments.square`` of lists of probes and their products, in units of the run."""
    return moments(run, bases.stack(y), bases.stack(images), run.unit).square


@jax.jit
def rest_of_one(run: Known | None, y: Tree, image: Tree) -> Tree:
    """The part of ``A x`` in the complement, of a single probe."""
    block, images = (jax.tree.map(lambda a: a[None], v) for v in (y, image))
    return bases.row(rest(run, moments(run, block, images).image), 0)


@jax.jit
def project(vectors: Tree | None, v: Tree) -> Tree:
    """``v`` less its part along orthonormal vectors (a tree with a leading axis)."""
    return v if vectors is None else bases.project_out(vectors, v)[0]


class Deflated(Operator):
    """``v -> (I - C C^T) A v``: an operator with some exact eigenvectors C taken out.

    Driven from the host over two compiled programs, so that the model is not compiled once more.
    """

    def __init__(self, op: Operator, vectors: Tree | None):
        self._op, self.vectors, self._product = op, vectors, loops.product(op)

    @property
    def host_driven(self):
        return True

    @property
    def structure(self):
        return self._op.structure

    def mv(self, v):
        """The projected product."""
        return project(self.vectors, self._product(v))


@jax.jit
def known_diagonal(run: Known) -> Tree:
    r"""The diagonal that a Lanczos run knows without any probe.

    That of :math:`A - P_\perp A P_\perp = Q T Q^\top + \beta_m (q_{m+1} q_m^\top + q_m
    q_{m+1}^\top)`.
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


@functools.partial(jax.jit, static_argnums=4)
def block_moments(
    op: Operator, basis: Tree, z: Tree, rest: Tree, groups: tuple
) -> tuple[dict, dict]:
    """Per group of leaves: ``z^T rest``, and ``<z, v_j>`` for every vector of a basis.

    Args:
      op: the operator, by which packed vectors have leaves.
      basis: the basis of a quadrature run, leading axis p.
      z: the probe.
      rest: the part of the probe's image in the complement, of `rest`.
      groups: the name of the group of every leaf, in the order of the leaves.

    Returns:
      Two dictionaries by group: scalars, and arrays ``(p,)``.
    """
    quad: dict = {}
    rows: dict = {}
    leaves = (jax.tree.leaves(packing.unpack(op, t)) for t in (basis, z, rest))
    for name, b, x, r in zip(groups, *leaves, strict=True):
        q, h = trees.vdot(x, r), bases.coefficients(b, x)[0]
        quad[name] = quad[name] + q if name in quad else q
        rows[name] = rows[name] + h if name in rows else h
    return quad, rows


@functools.partial(jax.jit, static_argnums=2)
def block_known(op: Operator, run: Known, groups: tuple) -> dict:
    """Per group of leaves: the trace that a Lanczos run knows without any probe.

    Args:
      op: the operator, by which packed vectors have leaves.
      run: the run.
      groups: the name of the group of every leaf, in the order of the leaves.

    Returns:
      A dictionary of scalars by group.
    """
    total: dict = {}
    for name, leaf in zip(
        groups, jax.tree.leaves(packing.unpack(op, known_diagonal(run))), strict=True
    ):
        total[name] = total[name] + leaf.sum() if name in total else leaf.sum()
    return total


def known_run(op: Any, key: jax.Array, depth: int) -> tuple[Known, int]:
    """A Lanczos run of at most ``depth`` steps, and its products."""
    start_key, restart_key = jax.random.split(jax.random.fold_in(key, 0))
    v0 = krylov.unit(probes.probe(start_key, op.structure, "normal"))
    image = arguments.first_product(op, v0)
    depth = min(depth, op.size)
    state = krylov.run(op, krylov.start(v0, depth, restart_key), depth, image)
    return known(state), depth
