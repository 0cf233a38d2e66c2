"""The diagonal of an operator, entry by entry with its standard error."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.krylov import _relations as relations
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.probing import _complement as complement
from flatjax.linalg.probing import _exact as exact
from flatjax.linalg.probing import _probe_products as probe_products
from flatjax.linalg.probing._estimate import DEFAULT_RTOL, Estimate, lost, student
from flatjax.linalg.probing._range import random_range
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _probes as probes
from flatjax.operators._base import as_operator

METHODS = ("hutchinson", "deflated", "xdiag")
_LEAST = {"hutchinson": 2, "deflated": 4, "xdiag": 4}


def diagonal(
    op: Any,
    *,
    key: jax.Array,
    method: str = "hutchinson",
    num_products: int = 40,
    rtol: float | None = None,
    structure: Tree = None,
) -> Estimate:
    r"""The diagonal of a symmetric operator, as a vector with a standard error for every entry.

    Where the dimension is at most ``num_products`` the diagonal is read from the products with all
    unit vectors, whatever the method: exact, at as many products as dimensions.

    - ``"hutchinson"``: the mean of $z \odot A z$ over Rademacher probes; entry i has the variance
      $\sum_{j \ne i} A_{ij}^2$ per probe. Four vectors of memory.
    - ``"deflated"``: half of the products are a Lanczos run, whose part of the diagonal is known,
      and the others are probes of its complement. Best where a few eigenvalues dominate.
    - ``"xdiag"``: every probe serves as a sketch for all the others. Five vectors of memory for
      every two products.

    Args:
      op: a flatjax operator, or a traceable callable ``v -> A v``, symmetric.
      key: a PRNG key.
      method: one of the above.
      num_products: the products, deflation included.
      rtol: the standard error that counts as converged, the norm of all errors relative to that
        of the diagonal; default 5 %.
      structure: for a callable, a tree of arrays or ``jax.ShapeDtypeStruct`` like its vectors.

    Returns:
      An [`Estimate`][] whose value and standard error are trees of the operator's structure, the
      interval with a leading axis of 2 in every leaf; ``converged`` is a scalar.

    Raises:
      TypeError: if ``op`` is not callable or ``key`` is no key, and inside ``jit`` for all methods
        but ``"hutchinson"``.
      ValueError: on an unknown method, too few products, or a callable without structure.

    Example:
      >>> import jax, jax.numpy as jnp, flatjax
      >>> A = jnp.array([[2.0, 1.0], [1.0, 3.0]])
      >>> found = flatjax.diagonal(lambda v: A @ v, key=jax.random.key(0), structure=jnp.zeros(2))
      >>> found.value.tolist(), found.num_products  # in two dimensions two products tell all
      ([2.0, 3.0], 2)

    References:
      Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", Appl. Numer. Math.
      2007; Epperly, Tropp and Webber, "XTrace", 2024, arXiv:2301.07825.
    """
    op = as_operator(op, structure)
    key = checks.check_key(key)
    checks.check_choice("method", method, METHODS)
    checks.check_count("num_products", num_products)
    if rtol is not None:
        checks.check_tolerance(rtol, "rtol")
    if method != "hutchinson":
        arguments.check_outside_jit(f"diagonal(method={method!r})", op, key)
    if (dense := exact.matrix(op, num_products)) is not None:
        return _exact(op, dense, rtol)
    checks.check_count("num_products", num_products, _LEAST[method])
    run = {"hutchinson": _hutchinson, "deflated": _deflated, "xdiag": _xdiag}[method]
    mean, spread, count, spent = run(op, key, num_products)
    found = _estimate(mean, spread, count, spent, rtol)
    norm = trees.norm(mean)
    sound = ~lost(op.size**0.5 * norm, op.size) & jnp.isfinite(norm)
    return found._replace(converged=found.converged & sound)


def _exact(op, dense, rtol):
    value = exact.vector(dense.diagonal(), op.structure)
    each = exact.noise(dense, trees.dtype(op.structure))

    def error(a):
        return jnp.where(jnp.isfinite(a), jnp.full_like(a, each), jnp.full_like(a, jnp.inf))

    errors = jax.tree.map(error, value)
    interval = jax.tree.map(lambda a: jnp.stack([a - 2 * each, a + 2 * each]), value)
    size = trees.norm(value)
    good = trees.norm(errors) <= (DEFAULT_RTOL if rtol is None else rtol) * size
    return Estimate(value, errors, interval, op.size, jnp.isfinite(size) & good)


@functools.partial(jax.jit, static_argnums=3)
def _estimate_arrays(mean, spread, size, count, rtol):
    # Rounding of a mean: a few units of its terms, of which the spread is a measure too.
    def error(s, m):
        return jnp.hypot(s, 4 * jnp.finfo(m.dtype).eps * jnp.abs(m))

    errors = jax.tree.map(error, spread, mean)
    half = trees.scale(student(count - 1), errors)
    interval = jax.tree.map(lambda m, h: jnp.stack([m - h, m + h]), mean, half)
    converged = trees.norm(errors) <= rtol * size
    return errors, interval, converged


def _estimate(mean, spread, count, spent, rtol):
    rtol = DEFAULT_RTOL if rtol is None else rtol
    size = trees.norm(mean)
    errors, interval, converged = _estimate_arrays(mean, spread, size, count, rtol)
    return Estimate(mean, errors, interval, spent, converged)


@jax.jit
def _running(carry, sample, count, unit):
    """Welford's update of a mean and, in squared units, of the sum of squared deviations."""
    mean, squares = carry
    delta = jax.tree.map(jnp.subtract, sample, mean)
    mean = trees.axpy(1 / count, delta, mean)
    after = jax.tree.map(jnp.subtract, sample, mean)
    delta, after = (trees.scale(1 / unit, a) for a in (delta, after))
    return mean, jax.tree.map(lambda s, a, b: s + a * b, squares, delta, after)


_entrywise = jax.jit(lambda z, image: jax.tree.map(jnp.multiply, z, image))


def _sampled(op, sample, count):
    """Mean and standard error of vector samples."""
    first = sample(0)
    scalar = trees.dtype(op.structure)
    unit = _unit(first)
    carry = (first, jax.tree.map(jnp.zeros_like, first))

    def body(i, carry):
        number = jnp.asarray(i + 2, scalar)
        return _running(carry, sample(i + 1), number, unit)

    mean, squares = loops.fori(count - 1, body, carry, like=first)
    return mean, _rooted(squares, unit, jnp.asarray(count * (count - 1), scalar))


@jax.jit
def _unit(v):
    """A power of two near the size of a vector, in which squares neither vanish nor overflow."""
    return krylov.power_of_two(trees.norm(v))


@jax.jit
def _rooted(squares, unit, count):
    return jax.tree.map(
        lambda s: unit.astype(s.dtype) * jnp.sqrt(s / count.astype(s.dtype)), squares
    )


def _hutchinson(op, key, num_products):
    product = loops.product(op)

    def sample(i):
        z = probes.probe(key, op.structure, number=i)
        return _entrywise(z, product(z))

    return *_sampled(op, sample, num_products), num_products, num_products


def _deflated(op, key, num_products):
    run, spent = relations.of_run(op, key, num_products // 2)
    product = loops.product(op)
    count = max(num_products - spent, 2)

    def sample(i):
        z = probes.probe(key, op.structure, number=i + 1)
        return _entrywise(z, complement.rest_of_one(run, z, product(z)))

    mean, spread = _sampled(op, sample, count)
    known = relations.diagonal(run)
    return jax.tree.map(jnp.add, known, mean), spread, count, spent + count


def _xdiag(op, key, num_products):
    count = min(num_products // 2, op.size)
    span = random_range(op, key, count, "rademacher")
    product = loops.product(op)
    rows = (probe_products.row(span.basis, jnp.int32(i)) for i in range(count))
    images = bases.stack([product(q) for q in rows])
    signs = probe_products.drawn(key, op.structure, 0, count)
    mean, spread = _leave_one_out(span.basis, images, signs, jnp.asarray(span.triangle))
    return mean, spread, count, 2 * count


@jax.jit
def _leave_one_out(basis, images, signs, triangle):
    r"""XDiag: probe i on what the products of all others leave.

    With $s_i \propto R^{-\top} e_i$ the sample of probe i is $\mathrm{diag}(Q Q^\top A)
    - Q s_i \odot A Q s_i + \omega_i \odot Q s_i (s_i^\top R e_i)$.
    """
    scalar = trees.dtype(basis)
    triangle = triangle.astype(scalar)
    count = triangle.shape[0]
    # Only its direction matters, and inverses and squares stay in range.
    unit = krylov.power_of_two(jnp.abs(triangle).max())
    triangle = triangle / unit
    inverse = jnp.linalg.pinv(triangle, rtol=8 * jnp.finfo(scalar).eps).T
    # A probe whose product lies in the span of the others' leaves nothing: the projector's
    # diagonal tells it apart.
    own = jnp.sum(inverse * triangle, axis=0) > 0.5
    norms = jnp.sqrt(jnp.square(inverse).sum(axis=0))
    normals = jnp.where(own[None, :], inverse / jnp.where(norms > 0, norms, 1)[None, :], 0)
    factors = jnp.sum(normals * triangle, axis=0)
    inside, outside = bases.combine(basis, normals), bases.combine(images, normals)

    def leaf(q, z, a, b, sign):
        known = (q * z).sum(axis=0)
        shape = (count, *(1,) * (q.ndim - 1))
        b = b / unit.astype(b.dtype)
        samples = sign * a * factors.reshape(shape).astype(a.dtype) - a * b
        mean = samples.mean(axis=0)
        # Every pair of probes enters two samples: their spread is too small by up to this factor.
        squares = 2 * jnp.square(samples - mean[None]).sum(axis=0) / (count * (count - 1))
        return known + unit.astype(a.dtype) * mean, unit.astype(a.dtype) * jnp.sqrt(squares)

    both = [
        leaf(*leaves)
        for leaves in zip(
            *(jax.tree.leaves(t) for t in (basis, images, inside, outside, signs)), strict=True
        )
    ]
    treedef = jax.tree.structure(basis)
    mean, error = (jax.tree.unflatten(treedef, part) for part in zip(*both, strict=True))
    return mean, error
