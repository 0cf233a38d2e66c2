"""Extreme eigenpairs with certificates."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.krylov import _block as block_lanczos
from flatjax.linalg.krylov import _power as power
from flatjax.linalg.krylov import _ritz as ritz
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.krylov import _thick_restart as thick_restart
from flatjax.linalg.krylov._certificates import Certificate, Eigenpairs, certify
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _flat as packing
from flatjax.operators._base import Operator, as_operator

_CYCLES = 10  # restarts' worth of products spent by default before giving up


def eigsh(
    op: Any,
    k: int,
    *,
    which: str = "LA",
    key: jax.Array | None = None,
    v0: Tree = None,
    tol: float = 1e-3,
    max_products: int | None = None,
    max_basis: int | None = None,
    verify: bool = True,
    block_size: int = 1,
    structure: Tree = None,
) -> Eigenpairs:
    r"""A few extreme eigenpairs of a symmetric operator.

    Thick-restart Lanczos with full reorthogonalisation. Called eagerly, it stops when the residual
    estimates :math:`|\beta_m s_{mi}|` of all wanted pairs at both ends are below
    :math:`\mathrm{tol}\,|\theta_i|`; the projected problem is solved in float64 on the host. It
    then locks the pairs and looks for eigenvalues that one start vector cannot see, further copies
    of a multiple eigenvalue, with fresh random vectors (``verify``). Traced, it runs a fixed number
    of Lanczos steps in the working dtype, and sees further copies only where the Krylov space is
    exhausted.

    With ``block_size`` b above 1 a block Lanczos run multiplies b vectors at once: it sees b copies
    of an eigenvalue, and one wide product may be faster than b narrow ones, at b times the
    intermediate values in memory. It converges in fewer blocks, but takes more products in all, and
    looks for further copies only where the Krylov space is exhausted.

    An eigenvalue's error is at most the residual norm and, with a gap to its neighbours, about its
    square over the gap: far better than the bound.

    Costs products (well separated eigenvalues: some 10 for one, 30 to 80 for ten), ``max_basis``
    vectors of memory, and a read of those twice a step.

    Args:
      op: a flatjax operator, or a traceable callable ``v -> A v``, symmetric.
      k: the number of pairs.
      which: ``"LA"`` the largest (algebraic), ``"SA"`` the smallest, ``"LM"`` the largest in
        magnitude, ``"BE"`` both ends, ceil(k/2) from the top.
      key: a PRNG key for the start vector. Give either ``key`` or ``v0``.
      v0: a start vector.
      tol: the tolerance on the residual norm relative to the value's magnitude.
      max_products: the most products to spend, certificate included. Traced, the number spent.
        Default: 10 times the basis; traced, the basis and the certificate.
      max_basis: the most vectors to hold, at least k + 2; with blocks of b at least k + 2 b + 2.
        Default: 2k + 16 and at least 32, rounded up to a multiple of 8; with blocks 4 b more.
      verify: whether to look for missed copies, and with ``v0`` for any value that it may have been
        blind to. Doubles the products at most.
      block_size: how many vectors to multiply at once.
      structure: for a callable, a tree of arrays or ``jax.ShapeDtypeStruct`` like its vectors.

    Returns:
      `Eigenpairs`.

    Raises:
      TypeError: if ``op`` is not callable or ``v0`` has another tree structure.
      ValueError: on arguments out of range, both or neither of ``key`` and ``v0``, or a callable
        without structure.

    Example:
      >>> import jax, jax.numpy as jnp, flatjax.linalg
      >>> d = jnp.arange(100.0)
      >>> pairs = flatjax.linalg.eigsh(lambda v: d * v, 2, key=jax.random.key(0), structure=d)
      >>> [round(float(x), 2) for x in pairs.values], bool(pairs.converged.all())
      ([99.0, 98.0], True)

    References:
      Wu and Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems", SIAM J.
      Matrix Anal. Appl. 2000; Lehoucq, Sorensen and Yang, *ARPACK Users' Guide*, 1998.
    """
    op = as_operator(op, structure)
    checks.check_choice("which", which, ritz.WHICH)
    checks.check_count("k", k)
    if k > op.size:
        raise ValueError(f"k={k} exceeds the dimension {op.size}; lower it.")
    checks.check_tolerance(tol)
    checks.check_count("block_size", block_size)
    capacity = _capacity(op.size, k, max_basis, block_size)
    plain, op, given = op, packing.packed(op), v0 is not None
    if v0 is None:
        v0, key = arguments.start(op, key, v0)
    else:
        v0, key = arguments.start(plain, key, v0)
        v0 = packing.pack(op, v0)
    v0 = trees.normalized(v0)[0]
    w = arguments.first_product(op, v0)
    traced = loops.is_traced(w)
    spare = k + 1  # the certificate
    if max_products is None:
        budget = capacity if traced else _CYCLES * capacity
    else:
        checks.check_count("max_products", max_products)
        budget = max_products - spare
        least = min(op.size, k + 1)
        if budget < least:
            raise ValueError(
                f"max_products={max_products} is too small: {k} pairs need at least "
                f"{least} products and {spare} for their certificate, {least + spare} in all."
            )
    scalar, complete = trees.dtype(op.structure), None
    if block_size > 1:
        bounds = (max_basis, capacity, budget)
        found = _in_blocks(op, k, which, v0, key, block_size, tol, bounds, traced)
        values, vectors, estimates, norm, spent = found
    elif traced:
        steps = min(op.size, budget if max_basis is None else capacity)
        restarts = jax.random.fold_in(key, 3)
        values, vectors, estimates, norm = _traced(op, k, which, v0, steps, restarts)
        spent = steps
    else:
        state = krylov.start(v0, capacity, jax.random.fold_in(key, 3))
        found = thick_restart.solve(op, k, which, state, w, tol, budget, verify, given)
        del state
        vectors, spent, complete = found.vectors, found.num_products, found.complete
        numbers = (found.values, found.residuals, found.norm)
        values, estimates, norm = (jnp.asarray(a, scalar) for a in numbers)
    certificate = certify(op, values, vectors, norm, jax.random.fold_in(key, 1), estimates)
    return _result(values, packing.unpack(op, vectors), certificate, tol, spent, complete)


def _capacity(size: int, k: int, max_basis: int | None, block_size: int) -> int:
    # With blocks rows beyond the dimension stay empty: whole blocks are simpler than parts.
    blocks = block_size > 1
    if max_basis is None:
        # A multiple of 8, so that few values of k share their compiled programs.
        default = -(-max(2 * k + 16, 32) // 8) * 8
        return default + 4 * block_size if blocks else min(size, default)
    checks.check_count("max_basis", max_basis)
    least = k + 2 * block_size + 2 if blocks else min(size, k + 2)
    if max_basis < least:
        raise ValueError(f"max_basis={max_basis} is too small: {k} pairs need at least {least}.")
    return max_basis if blocks else min(size, max_basis)


def _in_blocks(op, k, which, v0, key, block_size, tol, bounds, traced):
    max_basis, capacity, budget = bounds
    scalar = trees.dtype(op.structure)
    key = jax.random.fold_in(key, 2)
    if traced:
        blocks = budget // block_size if max_basis is None else capacity // block_size - 1
        blocks = max(1, min(-(-op.size // block_size), blocks))
        if blocks * block_size < k:
            raise ValueError(
                f"{blocks} blocks of {block_size} vectors cannot hold k={k} pairs: raise max_basis."
            )
        found = block_lanczos.traced(op, k, which, v0, key, block_size, blocks)
        return *found, blocks * block_size
    found = block_lanczos.solve(op, k, which, v0, key, block_size, capacity, tol, budget - 1)
    numbers = (found.values, found.residuals, found.norm)
    values, estimates, norm = (jnp.asarray(a, scalar) for a in numbers)
    # One more product has asked whether we are traced.
    return values, found.vectors, estimates, norm, found.num_products + 1


def _traced(op: Operator, k: int, which: str, v0: Tree, steps: int, key: jax.Array):
    state = krylov.run(op, krylov.start(v0, steps, key), steps)
    values, coefficients = ritz.eigh(ritz.tridiagonal(state.alphas, state.betas))
    index = ritz.descending(values, ritz.wanted(values, k, which))
    vectors = bases.combine(state.basis, coefficients[:, index])
    estimates = jnp.abs(state.betas[-1] * coefficients[-1, index])
    norm = jnp.max(jnp.abs(values))
    return values[index] * state.scale, vectors, estimates * state.scale, norm * state.scale


@jax.jit
def _judge(values, residuals, floor, tol):
    size = jnp.abs(values)
    return residuals <= jnp.maximum(tol * size, floor), size > floor


def _result(
    values, vectors, certificate: Certificate, tol: float, spent: int, complete: bool | None = None
) -> Eigenpairs:
    residuals, floor = certificate.residual_norms, certificate.noise_floor
    converged, resolved = _judge(values, residuals, floor, np.asarray(tol, values.dtype))
    return Eigenpairs(
        values=values,
        vectors=vectors,
        residual_norms=residuals,
        converged=converged,
        resolved=resolved,
        num_products=spent + certificate.num_products,
        noise_floor=floor,
        complete=complete,
    )


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
    eigenvalues of opposite sign and equal magnitude, between which the plain iteration wanders
    for ever, are found as well. `eigsh` needs fewer products, three to ten times on networks; this
    one needs the least memory.

    Args:
      op: a flatjax operator, or a traceable callable ``v -> A v``, symmetric.
      key: a PRNG key for the start vector. Give either ``key`` or ``v0``.
      v0: a start vector.
      tol: the tolerance on the residual norm relative to the value's magnitude.
      max_products: the most products to spend, certificate included; traced, the number spent.
        Default: 100, traced 30.
      structure: for a callable, a tree of arrays or ``jax.ShapeDtypeStruct`` like its vectors.

    Returns:
      `Eigenpairs` of one pair.

    Raises:
      TypeError: if ``op`` is not callable or ``v0`` has another tree structure.
      ValueError: on arguments out of range, both or neither of ``key`` and ``v0``, or a callable
        without structure.

    Example:
      >>> import jax, jax.numpy as jnp, flatjax.linalg
      >>> d = jnp.array([1.0, 2.0, -4.0])
      >>> pair = flatjax.linalg.power_iteration(lambda v: d * v, key=jax.random.key(0), structure=d)
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
    values = pair.value[None]
    vectors = jax.tree.map(lambda x: x[None], pair.vector)
    certificate = certify(op, values, vectors, jnp.abs(pair.value), jax.random.fold_in(key, 1))
    return _result(values, vectors, certificate, tol, spent)
