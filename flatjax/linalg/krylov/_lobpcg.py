"""One step towards the extreme eigenpairs of an operator from vectors that nearly are theirs.

A block of k vectors is a pytree with a leading axis. Nothing of an earlier step is used but
vectors, so that the operator may be another one at every step.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flatjax import _loops as loops
from flatjax._trees import Tree
from flatjax.linalg.vectors import _basis as bases


class Step(NamedTuple):
    """The best pairs of a search space.

    Attributes:
      values: the Ritz values, shape ``(k,)``, in the order of ``which``.
      vectors: their orthonormal vectors, with a leading axis ``k``.
      residual_norms: ``|A v - value v|``, shape ``(k,)``.
      change: what of the new vectors lies outside the span of the old ones.
    """

    values: jax.Array
    vectors: Tree
    residual_norms: jax.Array
    change: Tree


def step(mv: Callable[[Tree], Tree], start: Tree, which: str, candidates: tuple = ()) -> Step:
    """Rayleigh and Ritz in the span of the vectors, their residuals and further candidates.

    With the last change as a candidate it is a step of locally optimal block conjugate gradients
    (Knyazev 2001, SIAM J. Sci. Comput. 23(2)), with all products taken anew.

    Args:
      mv: the product with one vector.
      start: ``k`` orthonormal vectors.
      which: ``"LA"``, ``"SA"`` or ``"LM"``.
      candidates: further blocks of ``k`` vectors, of any length, zero or dependent ones included.

    Returns:
      The best ``k`` pairs, for ``k`` products with the start, the residuals and each candidate.
    """
    theta, blocks, block_images = _ritz(mv, start, which)
    k = theta.shape[0]
    keep = jnp.ones((k,), bool)
    for block in (_residuals(blocks, block_images, theta), *candidates):
        fresh, kept = orthonormal(blocks, block)
        blocks, keep = bases.join(blocks, fresh), jnp.concatenate([keep, kept])
        block_images = bases.join(block_images, _apply(mv, fresh))
    # Candidates without a component of their own are zero vectors with zero rows: moved to an
    # eigenvalue of their own, so that they neither mix with the others nor are taken for them.
    projected = _projected(blocks, block_images)
    total = jnp.abs(projected).sum()
    apart = 2 * jnp.where(total > 0, total, jnp.ones_like(total))
    theta, rotation = jnp.linalg.eigh(
        projected + jnp.diag(jnp.where(keep, jnp.zeros_like(apart), apart))
    )
    best = order(theta, which, theta < 0.75 * apart)[:k]
    theta, rotation = theta[best], rotation[:, best]
    new, new_images = bases.combine(blocks, rotation), bases.combine(block_images, rotation)
    change = bases.combine(jax.tree.map(lambda a: a[k:], blocks), rotation[k:])
    return Step(theta, new, bases.row_norms(_residuals(new, new_images, theta)), change)


def orthogonal_iteration(mv: Callable[[Tree], Tree], start: Tree, which: str) -> Step:
    """The Ritz pairs of the vectors, which are then replaced by their products.

    It follows the values that are largest in magnitude, whatever ``which`` says of their order.

    Args:
      mv: the product with one vector.
      start: ``k`` orthonormal vectors.
      which: the order of the values.

    Returns:
      The pairs of the start, for ``k`` products, but with the vectors to go on from.
    """
    theta, ritz, images = _ritz(mv, start, which)
    residual_norms = bases.row_norms(_residuals(ritz, images, theta))
    following, kept = orthonormal(None, images)
    # A zero image (the zero operator, a null vector) leaves the vectors where they are.
    following = jax.tree.map(lambda a, b: jnp.where(kept.all(), a, b), following, ritz)
    return Step(theta, following, residual_norms, following)


def order(theta: jax.Array, which: str, in_space: jax.Array | None = None) -> jax.Array:
    """The indices of values, the first wanted first; those outside the space come last."""
    rank = {"LA": -theta, "SA": theta, "LM": -jnp.abs(theta)}[which]
    if in_space is not None:
        rank = jnp.where(in_space, rank, jnp.full_like(rank, jnp.inf))
    return jnp.argsort(rank)


def orthonormal(basis: Tree | None, block: Tree) -> tuple[Tree, jax.Array]:
    """Orthonormalise a block against a basis; rows without a component of their own become zero.

    Projection and an orthogonalisation by the eigenvectors of the Gram matrix (Stathopoulos and Wu
    2002, SIAM J. Sci. Comput. 23(6)), twice: once leaves rounding of the size of the condition
    number, and the residual of a converged pair is mostly rounding.

    Args:
      basis: orthonormal or zero rows, or ``None``.
      block: vectors of any length.

    Returns:
      The block, and which of its rows are not zero.
    """
    lengths = bases.row_norms(block)
    block = bases.scale_rows(1 / jnp.where(lengths > 0, lengths, jnp.ones_like(lengths)), block)
    keep = jnp.ones(lengths.shape, bool)
    for _ in range(2):
        if basis is not None:
            block = bases.subtract(block, bases.combine(basis, bases.gram(basis, block)))
        squares, rotation = jnp.linalg.eigh(bases.gram(block, block))
        # Squared lengths below a few eps are rounding of the Gram matrix itself.
        keep = squares > 100 * jnp.finfo(squares.dtype).eps
        factors = jax.lax.rsqrt(jnp.where(keep, squares, jnp.ones_like(squares)))
        factors = jnp.where(keep, factors, jnp.zeros_like(squares))
        block = bases.combine(block, rotation * factors[None, :])
    return block, keep


def polished(block: Tree) -> Tree:
    """One Newton step to the nearest orthonormal block, lest rounding adds up over the steps."""
    gram = bases.gram(block, block)
    return bases.combine(block, (3 * jnp.eye(gram.shape[0], dtype=gram.dtype) - gram) / 2)


def _ritz(mv, block, which):
    """The Ritz values of a block, their vectors, and the products of these."""
    images = _apply(mv, block)
    theta, rotation = jnp.linalg.eigh(_projected(block, images))
    best = order(theta, which)
    theta, rotation = theta[best], rotation[:, best]
    return theta, bases.combine(block, rotation), bases.combine(images, rotation)


def _apply(mv, block):
    if loops.is_traced(block):
        return jax.vmap(mv)(block)
    return bases.stack([mv(v) for v in bases.unstack(block)])


def _projected(block, images):
    gram = bases.gram(block, images)
    return (gram + gram.T) / 2


def _residuals(vectors, images, theta):
    return bases.subtract(images, bases.scale_rows(theta, vectors))
