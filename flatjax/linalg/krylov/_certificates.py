"""What is known about computed eigenpairs: residuals, the noise of a product, its floor."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.krylov import _ritz as ritz
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _probes as probes
from flatjax.linalg.vectors import _rotations as rotations
from flatjax.operators._base import Operator


def mixture(k: int) -> np.ndarray:
    """The weights with which `k` pairs are checked by one product, of magnitude 1 to 2.

    No pair's error is made smaller, and equal or opposite ones of several do not cancel.
    """
    i = np.arange(k)
    return (-1.0) ** i * (1 + (i * (5**0.5 - 1) / 2) % 1)


@jax.jit
def _gap(w, basis, image, coupling, vector, scale):
    known = trees.axpy(coupling, vector, bases.combine(basis, image))
    w = trees.scale(1 / scale, trees.cast(w, vector))
    return scale * trees.norm(bases.subtract(w, known))


def departure(
    op: Operator,
    basis: Tree,
    combination: ArrayLike,
    image: ArrayLike,
    coupling: ArrayLike,
    vector: Tree,
    scale: ArrayLike,
) -> jax.Array:
    r"""How far one product is from what a Krylov relation says of it.

    The relation $A Q = Q T + q h^\top$ tells the product with $u = Q c$ without
    multiplying: $A u = Q (T c) + (h^\top c) q$. What a product makes of u differs by the
    noise of this product and of all the ones before, by any asymmetry of the operator, and by the
    rounding of the vectors.

    Args:
      op: the operator.
      basis: the rows of Q.
      combination: c, one number per row.
      image: T c, in units of ``scale``.
      coupling: $h^\top c$, in units of ``scale``.
      vector: q.
      scale: the units.

    Returns:
      The norm of the difference. Costs one product.
    """
    numbers = (combination, image, coupling, scale)
    combination, image, coupling, scale = (
        jnp.asarray(a, trees.dtype(op.structure)) for a in numbers
    )
    w = loops.product(op)(ritz.combine(basis, combination))
    return _gap(w, basis, image, coupling, vector, scale)


@jax.jit
def _residual(w, value, vector):
    return trees.norm(trees.axpy(-value, vector, trees.cast(w, vector)))


def residual(op: Operator, value: ArrayLike, vector: Tree) -> jax.Array:
    r"""$\|A v - \lambda v\|$, for one product."""
    return _residual(loops.product(op)(vector), value, vector)


@jax.jit
def _gaps(w, value, vector, probe, probe_product):
    # A symmetric matrix has no gap; the noise e(v) of a product shows in it as probe . e(v), whose
    # mean square over standard normal probes is |e(v)|^2.
    gap = trees.vdot(probe, w) - trees.vdot(vector, probe_product)
    return _residual(w, value, vector), jnp.abs(gap)


def certify(
    op: Operator, value: jax.Array, vector: Tree, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""The residual of a pair that no Krylov relation stands behind, and the noise of a product.

    The noise is the symmetry gap $|u^\top A v - v^\top A u|$ with a random vector u.

    Args:
      op: the operator.
      value: a scalar.
      vector: a unit vector.
      key: a PRNG key for the random vector.

    Returns:
      The norm of the residual and the noise. Costs two products.
    """
    product = loops.product(op)
    probe = probes.probe(key, op.structure, "normal")
    return _gaps(product(vector), value, vector, probe, product(probe))


@functools.partial(jax.jit, donate_argnums=0)
def _put(images, i, w):
    return bases.set_row(images, i, w)


@jax.jit
def _projected(vectors, images, probe, probe_product):
    """Gram matrix, projected operator and, for every vector, the symmetry gap with a probe."""
    gap = bases.coefficients(images, probe)[0] - bases.coefficients(vectors, probe_product)[0]
    return bases.gram(vectors, vectors), bases.gram(vectors, images), gap


@functools.partial(jax.jit, donate_argnums=0)
def _turned(vectors, c):
    return rotations.rotated(vectors, c, jnp.int32(0))


def refined(
    op: Operator, vectors: Tree, key: jax.Array
) -> tuple[np.ndarray, Tree, np.ndarray, float]:
    r"""The pairs of the operator on the span of some vectors, by Rayleigh and Ritz.

    For vectors that no Krylov relation stands behind, or only one with roundings of its own.

    Args:
      op: the operator.
      vectors: k independent vectors, a tree with a leading axis, which is consumed.
      key: a PRNG key for the vector with which the noise of a product is measured.

    Returns:
      The values, descending, orthonormal vectors, the norms of their residuals and the noise of a
      product. Costs ``k + 1`` products and k vectors of memory.
    """
    product, k = loops.product(op), bases.size(vectors)
    images = trees.zeros(op.structure, (k,))
    for i in range(k):
        images = _put(images, np.int32(i), product(ritz.row(vectors, np.int32(i))))
    probe = probes.probe(key, op.structure, "normal")
    numbers = jax.device_get(_projected(vectors, images, probe, product(probe)))
    gram, projected, gaps = (np.asarray(a, np.float64) for a in numbers)
    noise = float(np.sqrt(np.square(gaps).mean()))
    if not all(np.isfinite(a).all() for a in (gram, projected, gaps)):
        return np.full(k, np.nan), vectors, np.full(k, np.nan), np.nan
    inverse = np.linalg.inv(np.linalg.cholesky(gram))
    values, inner = ritz.eigh(inverse @ ((projected + projected.T) / 2) @ inverse.T)
    c = (inverse.T @ inner)[:, ::-1].astype(trees.dtype(op.structure))
    values, vectors, images = values[::-1], _turned(vectors, c), _turned(images, c)
    residuals = [
        _residual(ritz.row(images, i), np.asarray(value, c.dtype), ritz.row(vectors, i))
        for i, value in zip(np.arange(k, dtype=np.int32), values, strict=True)
    ]
    # A product is taken for exact by the residual that it gives.
    residuals = np.hypot(np.asarray(jax.device_get(residuals), np.float64), noise)
    return values, vectors, residuals, noise


@functools.partial(jax.jit, static_argnums=2)
def noise_floor(norm: Any, noise: Any, lost: float) -> jax.Array:
    """The size below which an eigenvalue is noise: twice a product's, at least 8 rounding errors.

    Args:
      norm: the largest eigenvalue in magnitude, as far as known.
      noise: the noise of a product.
      lost: `underflow` of the operator.

    Returns:
      The floor; NaN where underflow has left nothing that is known.
    """
    floor = jnp.maximum(8 * jnp.finfo(jnp.result_type(norm)).eps * norm, 2 * noise)
    return jnp.where((norm > 0) & (norm < lost), jnp.nan, floor)


def underflow(size: int, dtype: Any) -> float:
    """The norm of an operator below which underflow may have taken a part of its products.

    Every term of a product, of which a dense matrix has ``size`` an entry, is lost below the least
    normal number. All terms together must be far less than a tolerance.
    """
    info = jnp.finfo(dtype)
    return float(size) ** 1.5 * float(info.tiny) / float(info.eps) ** 0.5


@reading.readable
class Eigenpairs(NamedTuple):
    r"""Eigenpairs and what is known about them.

    Attributes:
      values: ``(k,)``, descending; finite, or NaN throughout (not converged, not resolved) where a
        product was not finite.
      vectors: unit vectors, a tree with leading axis k.
      residual_norms: ``(k,)``, $\|A v - \lambda v\|$: an eigenvalue of A lies within this distance
        of the value. By the Lanczos relation, and added to it in quadrature what one more product,
        of a combination of all vectors, has shown that relation to be wrong by; of a pair that the
        search for missed ones has found, and of `power_iteration`, by a product of its own.
      converged: ``(k,)`` booleans: the residual is at most ``tol`` times the value's magnitude, or
        no more products can make it so: it is below the noise floor, and so is the value, or below
        a tenth of the value.
      resolved: ``(k,)`` booleans: the value's magnitude is above the noise floor. Print the others
        as "< floor": their sign means nothing.
      num_products: the number of products spent, those of the certificate included.
      noise_floor: the noise of a product, measured by what one product and the Lanczos relation
        say of the same vector (of `power_iteration`, from the symmetry gap
        $|u^\top A v - v^\top A u|$); twice that, at least 8 units of rounding.
      complete: whether these are the wanted pairs, none of them skipped. ``True`` where a search
        from random vectors found no other one, and in 99 of 100 cases would have seen any single
        one that moves a value of the list by more than its tolerance. ``False`` where a wanted pair
        is known to be missing (none counts as converged then): products were spent before a random
        start vector weighed, on the list, no more than k eigenvectors do in 99 of 100 cases.
        ``None`` where nobody looked to the end: traced, without ``verify``, of a single pair, in
        blocks, where values lie so close that no single pair would move one by more than its
        tolerance, where a look would have taken long, or when the products were spent before.
      state: the run, for ``resume=`` of [`eigsh`][], where it was asked for with ``keep_state``.
      stopped: why it was stopped early, ``"callback"``, ``"max_seconds"`` or ``"interrupt"``: then
        no pair counts as converged, and the residuals say how far each is. ``None`` otherwise.
    """

    values: jax.Array
    vectors: Tree
    residual_norms: jax.Array
    converged: jax.Array
    resolved: jax.Array
    num_products: int
    noise_floor: jax.Array
    complete: bool | None = None
    state: Any = None
    stopped: str | None = None


def allowed(size: Any, floor: Any, tol: Any, xp: Any = np) -> Any:
    """The residuals of pairs that have converged: by the tolerance, or by the noise.

    Where the noise is beyond a tenth of a value that is above it, nothing has: the noise of a
    product is that of derivatives that are no derivatives, or of data that change.

    Args:
      size: the magnitudes of the values.
      floor: their noise floor.
      tol: the tolerance.
      xp: NumPy, or ``jax.numpy``.
    """
    noise = xp.where(size > floor, xp.minimum(floor, size / 10), floor)
    return xp.maximum(tol * size, noise)


@jax.jit
def _judge(values, residuals, floor, tol, whole):
    size = jnp.abs(values)
    return whole & (residuals <= allowed(size, floor, tol, jnp)), size > floor


def judged(
    values: jax.Array,
    vectors: Tree,
    residual_norms: jax.Array,
    floor: jax.Array,
    tol: float,
    num_products: int,
    complete: bool | None = None,
) -> Eigenpairs:
    """The pairs with the verdicts that follow from residuals, floor and tolerance."""
    scalar, whole = np.asarray(tol, values.dtype), np.bool_(complete is not False)
    converged, resolved = _judge(values, residual_norms, floor, scalar, whole)
    return Eigenpairs(
        values, vectors, residual_norms, converged, resolved, num_products, floor, complete
    )
