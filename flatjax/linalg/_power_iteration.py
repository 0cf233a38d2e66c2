"""The dominant eigenvalue in four vectors of memory."""

from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax._trees import Tree
from flatjax.linalg.krylov import _certificates as certificates
from flatjax.linalg.krylov import _power as power
from flatjax.linalg.krylov._certificates import Eigenpairs
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.operators._base import as_operator


def power_iteration(
    op: Any,
    *,
    key: jax.Array | None = None,
    v0: Tree = None,
    tol: float = 1e-3,
    max_products: int | None = None,
    structure: Tree = None,
) -> Eigenpairs:
    r"""The eigenvalue largest in magnitude, by power iteration, in four vectors of memory.

    The pair is the best in the plane of the last two iterates (Rayleigh and Ritz), so that two
    eigenvalues of opposite sign and equal magnitude, between which the plain iteration does not
    converge, are found as well. [`eigsh`][] needs fewer products, three to ten times on networks;
    this one needs the least memory.

    Costs one product per iteration, and two for the certificate: the residual of the pair, and the
    noise of a product by the symmetry gap $|u^\top A v - v^\top A u|$ with a random vector u.

    Args:
      op: a flatjax operator, or a traceable callable ``v -> A v``, symmetric.
      key: a PRNG key for the start vector. Give either ``key`` or ``v0``.
      v0: a start vector.
      tol: the tolerance on the residual norm relative to the value's magnitude.
      max_products: the most products to spend, certificate included; traced, the number spent.
        Default: 100, traced 30.
      structure: for a callable, a tree of arrays or ``jax.ShapeDtypeStruct`` like its vectors.

    Returns:
      [`Eigenpairs`][] of one pair: arrays of shape ``(1,)``, and a vector with the structure of
      ``op`` and a leading axis of 1.

    Raises:
      TypeError: if ``op`` is not callable or ``v0`` has another tree structure.
      ValueError: on arguments out of range, both or neither of ``key`` and ``v0``, or a callable
        without structure.

    Example:
      >>> import jax, jax.numpy as jnp, flatjax
      >>> d = jnp.array([1.0, 2.0, -4.0])
      >>> pair = flatjax.power_iteration(lambda v: d * v, key=jax.random.key(0), structure=d)
      >>> round(float(pair.values[0]), 2)
      -4.0
    """
    op = as_operator(op, structure)
    checks.check_tolerance(tol)
    v0, key = arguments.start(op, key, v0)
    w = arguments.first_product(op, v0)
    traced = loops.is_traced(w)
    limit = (30 if traced else 100) if max_products is None else max_products
    checks.check_count("max_products", limit)
    if limit < 4:
        raise ValueError(f"max_products={limit} is too small: 2 steps and the certificate need 4.")
    pair, spent = power.iterate(op, v0, w, tol, limit - 2)
    key = jax.random.fold_in(key, 1)
    residual, noise = certificates.certify(op, pair.value, pair.vector, key)
    lost = certificates.underflow(op.size, pair.value.dtype)
    floor = certificates.noise_floor(jnp.abs(pair.value), noise, lost)
    values, vectors = pair.value[None], jax.tree.map(lambda x: x[None], pair.vector)
    return certificates.judged(values, vectors, residual[None], floor, tol, spent + 2)
