"""Probes in the complement of a Lanczos basis.

A run leaves an orthonormal basis Q with a known projection ``T = Q^T A Q`` and one vector beyond.
Random probes then only have to account for the complement of Q, where a network's curvature matrix
has lost its outliers: the variance of a trace falls by orders of magnitude, for no product more.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.krylov import _relations as relations
from flatjax.linalg.krylov._relations import Relation
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _span as spans
from flatjax.linalg.vectors._span import Span
from flatjax.operators._base import Operator


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


@jax.jit
def rest(run: Relation | None, images: Tree) -> Tree:
    """The part of ``Moments.image`` in the complement, for the traces of blocks and the diagonal.

    Args:
      run: the run, or ``None`` for nothing known.
      images: the images, with a leading axis.

    Returns:
      Vectors with that axis.
    """
    if run is None:
        return images
    return bases.subtract(images, bases.combine(run.basis, relations.coefficients(run, images)))


@jax.jit
def moments(run: Relation | None, y: Tree, images: Tree, unit: Any = 1.0) -> Moments:
    r"""The moments of probes in the complement of a Lanczos basis, in shared passes over it.

    The image of a probe's part $x = y - Q c$, $c = Q^\top y$, needs no product beyond
    that of the probe: $A x = A y - Q T c - \beta_m c_m q_{m+1}$. Both are formed, because the
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
    c, count = relations.coefficients(run, y), bases.size(y)
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
def squares(run: Relation, y: list[Tree], images: list[Tree]) -> jax.Array:
    """``Moments.square`` of lists of probes and their products, in units of the run."""
    return moments(run, bases.stack(y), bases.stack(images), run.unit).square


@jax.jit
def rest_of_one(run: Relation | None, y: Tree, image: Tree) -> Tree:
    """The part of ``A x`` in the complement, of a single probe."""
    block, images = (jax.tree.map(lambda a: a[None], v) for v in (y, image))
    return bases.row(rest(run, moments(run, block, images).image), 0)


@jax.jit
def _moved(vectors: Span | None, middle: jax.Array, v: Tree, image: Tree) -> Tree:
    if vectors is None:
        return image
    inner = spans.gram(vectors, bases.stack([image, v]))
    return bases.subtract(image, spans.combine(vectors, inner[:, 0] - middle * inner[:, 1]))


class Deflated(Operator):
    """``v -> (I - C C^T) A v + m C C^T v``: some exact eigenvectors C moved to the eigenvalue m.

    A run that starts orthogonal to C has none of them but by rounding. That grows as the run finds
    the ends of the spectrum: m must lie inside. With m = 0 a semi-definite operator got 0.4 of C
    back in 30 steps, and nodes of -5e-5 where it has zeros.

    Driven from the host over two compiled programs, so that the model is not compiled once more.
    """

    def __init__(self, op: Operator, vectors: Span | None, middle: float):
        self._op, self.vectors, self._product = op, vectors, loops.product(op)
        self._middle = np.asarray(middle, trees.dtype(op.structure))

    @property
    def host_driven(self):
        return True

    @property
    def structure(self):
        return self._op.structure

    def mv(self, v):
        """The product, less and plus what belongs to C."""
        return _moved(self.vectors, self._middle, v, self._product(v))
