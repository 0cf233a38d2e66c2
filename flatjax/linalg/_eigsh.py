"""Extreme eigenpairs with certificates."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax import _watching as watching
from flatjax._trees import Tree
from flatjax.linalg.krylov import _block as block
from flatjax.linalg.krylov import _certificates as certificates
from flatjax.linalg.krylov import _ritz as ritz
from flatjax.linalg.krylov import _saved as saved
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.krylov import _thick_restart as thick_restart
from flatjax.linalg.krylov._certificates import Eigenpairs
from flatjax.linalg.krylov._restarts import Run
from flatjax.linalg.krylov._saved import EigshState
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _budget as budget
from flatjax.linalg.vectors import _flat as flat
from flatjax.linalg.vectors import _rotations as rotations
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
    basis_bytes: int | None = None,
    basis_dtype: Any = None,
    verify: bool = True,
    block_size: int = 1,
    resume: EigshState | None = None,
    keep_state: bool = False,
    progress: bool = False,
    callback: watching.Callback | None = None,
    max_seconds: float | None = None,
    on_interrupt: str = "raise",
    structure: Tree = None,
) -> Eigenpairs:
    r"""A few extreme eigenpairs of a symmetric operator.

    Thick-restart Lanczos with full reorthogonalisation. Called eagerly, it stops at the step at
    which the residual estimates $|\beta_m s_{mi}|$ of all wanted pairs are below
    $\mathrm{tol}\,|\theta_i|$ (it looks more often the closer that is); the projected problem is
    solved in float64 on the host. One more product, with a combination of all vectors, measures by
    how much products depart from the Lanczos relation: that noise is part of every residual norm.

    At a loose tolerance a list of small residuals may have skipped eigenvalues: those that lie
    close, and those of which the start vector has little. With ``verify`` and a random start it
    goes on until the start vector weighs no more on the list than that many eigenvectors do, and
    until an eigenvalue that belongs into the list could only be hidden from a start vector such as
    one of 100: 1 to 4 products. In a dense spectrum, where that would take more than half as many
    products again (or a dozen), it does not wait, and `Eigenpairs.complete` is ``None``.

    It then looks for what one start vector cannot see, further copies of a multiple eigenvalue (and
    with ``v0`` for any value), from fresh random vectors orthogonal to the whole basis: until a
    missed one that moves a value by more than its tolerance would have shown in 99 of 100 cases.
    Where the wanted values stand apart from the rest this takes 3 to 10 products. In a dense
    spectrum, where no single copy would move a value by its tolerance, or where a look would take
    more products than the run before it and 8 (k + 1), there is none: `Eigenpairs.complete` is
    ``None`` too, and a tighter tolerance makes the run long enough for both.

    Traced, it runs a fixed number of Lanczos steps in the working dtype, and sees further copies
    only where the Krylov space is exhausted.

    With ``block_size`` b above 1 a block Lanczos run multiplies b vectors at once: it sees b copies
    of an eigenvalue, and one wide product may be faster than b narrow ones, at b times the
    intermediate values in memory. It converges in fewer blocks, but takes more products in all, and
    looks for further copies only where the Krylov space is exhausted. Call it outside jit.

    An eigenvalue's error is at most the residual norm and, with a gap to its neighbours, about its
    square over the gap: far better than the bound.

    With ``keep_state`` the run can go on another time, with more products, a smaller tolerance,
    more pairs or other ones: pass the ``state`` of the pairs as ``resume``, in this process or,
    saved and loaded by orbax or pickle, in a later one. What was interrupted takes the very next
    step, in buffers of the same size: pairs that converge are bit for bit those of an uninterrupted
    run, for one product more an interruption (each result has its certificate). Other settings than
    before look at the projected problem at other steps, and so may stop at another one. Only the
    first run is kept, a look for missed pairs is taken anew. Another operator than before, such as
    that of other params, is told by the certificate, and an error.

    With ``basis_dtype="bfloat16"`` a vector of the basis takes half of its bytes. Every vector is
    rounded before it is multiplied, sums are float32, and the residuals are computed from the final
    vectors, by k + 1 products in place of one: 5e-4 to 2e-3 of the largest value (``"float16"``:
    6e-5 to 2e-4), and a ``tol`` that asks for less of a small one is not reached. The values, by
    Rayleigh and Ritz, are off by the square of that. There is no look for missed pairs.

    Costs products (well separated eigenvalues: some 10 for one, 20 to 35 for ten), ``max_basis``
    vectors of memory (of more than 2^23 parameters 16 until it needs more) and four beside, at the
    end k + 1 (of vectors sharded over devices those that a restart keeps, k + ``max_basis`` / 7),
    and a read of the basis twice per step.

    Args:
      op: a flatjax operator, or a traceable callable ``v -> A v``, symmetric.
      k: the number of pairs.
      which: ``"LA"`` the largest (algebraic), ``"SA"`` the smallest, ``"LM"`` the largest in
        magnitude, ``"BE"`` both ends, ceil(k/2) from the top.
      key: a PRNG key for the start vector. Give either ``key`` or ``v0``. With ``resume`` it has no
        effect, and may be left out.
      v0: a start vector. None with ``resume``.
      tol: the tolerance on the residual norm relative to the value's magnitude.
      max_products: the most products to spend, certificate included. Traced, the number spent.
        Default: 10 times the basis; traced, the basis and one for the certificate. With ``resume``
        those of before count, and the default is 10 times the basis more.
      max_basis: the most vectors to hold, at least k + 2; with blocks of b at least k + 2 b + 2.
        Default: 2k + 16 and at least 32, rounded up to a multiple of 8; with blocks 4 b more. With
        ``resume`` as many as before.
      basis_bytes: in place of ``max_basis``: the memory, of one device, for the basis and the
        vectors beside it. Where it holds fewer vectors than the default the run restarts more
        often, and takes more products. What ``keep_state`` keeps is not counted.
        `Plan.basis_bytes` is what a product leaves.
      basis_dtype: ``"bfloat16"`` or ``"float16"`` to hold the basis in; default: that of vectors.
        float16 has 8 times the resolution, and loses it in more than some 1e8 numbers, where those
        of a unit vector are below 6e-5. Not of sharded vectors, in blocks, traced, or with
        ``resume`` or ``keep_state``.
      verify: whether to look for skipped and missed eigenvalues. Without it the fifth of a ViT and
        of a ResNet was 15 % off at ``tol=1e-2``, where 10 to 14 products were enough. Every look
        takes at most as many products as the run before it, or 8 (k + 1) if that is more, and
        `Eigenpairs.complete` says what came of it.
      block_size: how many vectors to multiply at once.
      resume: the ``state`` of earlier pairs of the same operator, or the mapping of its fields that
        a checkpoint gives back when it is loaded without types.
      keep_state: whether to keep the run, ``max_basis`` vectors, in ``state``: for as long as the
        pairs are held, and during the look for missed pairs a second time.
      progress: whether to show a bar on standard error (by rich, if it is installed; lines where
        that is no terminal): products, worst relative residual, time left by the rate so far.
      callback: ``callback(step, values, residual_norms)`` after every few products, of slow ones
        after each: the products so far, the best k Ritz values, descending, and the estimates of
        their residual norms, both NumPy, ``(k,)`` (fewer before k products). If it returns
        ``True``, the run stops.
      max_seconds: stop after so many seconds.
      on_interrupt: ``"return"``: the first Ctrl-C stops after the product in progress, the second
        raises; ``"raise"``: the first raises. A stop, of whatever kind, waits for the first k
        products (interrupted before, it raises) and gives the pairs of that moment, with one
        product more for their certificate and the reason in `Eigenpairs.stopped`.
      structure: for a callable, a tree of arrays or ``jax.ShapeDtypeStruct`` like its vectors.

    Returns:
      [`Eigenpairs`][] of k pairs: arrays of shape ``(k,)`` in the dtype of the operator (float32
      at least), and vectors with the structure of ``op`` and leading axis k.

    Raises:
      TypeError: if ``op`` is not callable, ``v0`` has another tree structure, ``resume`` is no
        state of this operator, or blocks, ``basis_dtype``, ``resume``, ``keep_state`` or what is
        to be watched (``progress`` and the three after it) are traced.
      ValueError: on arguments out of range, both or neither of ``key`` and ``v0``, a callable
        without structure, or a ``resume`` of other shapes or dtypes, or of another operator
        (other params, another batch), which its products show.

    Example:
      >>> import jax, jax.numpy as jnp, flatjax
      >>> d = jnp.arange(100.0)
      >>> pairs = flatjax.eigsh(lambda v: d * v, 2, key=jax.random.key(0), structure=d)
      >>> [round(float(x), 2) for x in pairs.values], bool(pairs.converged.all())
      ([99.0, 98.0], True)
      >>> few = flatjax.eigsh(
      ...     lambda v: d * v,
      ...     2,
      ...     key=jax.random.key(0),
      ...     max_products=9,
      ...     keep_state=True,
      ...     structure=d,
      ... )
      >>> more = flatjax.eigsh(lambda v: d * v, 2, resume=few.state, structure=d)
      >>> bool(few.converged.all()), bool((more.values == pairs.values).all())
      (False, True)
      >>> more.num_products - pairs.num_products
      1

    References:
      Wu and Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems", SIAM J.
      Matrix Anal. Appl. 2000; Lehoucq, Sorensen and Yang, *ARPACK Users' Guide*, 1998; Nevai,
      "Geza Freud, orthogonal polynomials and Christoffel functions", J. Approx. Theory 1986.
    """
    op = as_operator(op, structure)
    checks.check_choice("which", which, ritz.WHICH)
    checks.check_count("k", k)
    if k > op.size:
        raise ValueError(f"k={k} exceeds the dimension {op.size}; lower it.")
    checks.check_tolerance(tol)
    checks.check_count("block_size", block_size)
    if block_size > 1 and (resume is not None or keep_state):
        raise ValueError("resume and keep_state know no blocks: leave block_size at 1.")
    low = arguments.basis_dtype(basis_dtype, op.structure)
    if low is not None and (block_size > 1 or resume is not None or keep_state):
        raise ValueError(
            "basis_dtype is for a run of single vectors from its beginning to its end: leave "
            "block_size at 1 and resume and keep_state out."
        )
    if max_products is not None:
        checks.check_count("max_products", max_products)
        certificate = 1 if low is None else k + 1
        least = min(op.size, k + 1) + certificate
        if max_products < least:
            raise ValueError(
                f"max_products={max_products} is too small: {k} pairs need at least "
                f"{least - certificate} products and {'one' if low is None else certificate} for "
                f"their certificate, {least} in all."
            )
    watch = watching.watch(
        "eigsh", progress, callback, max_seconds, on_interrupt, traced=(op, v0, resume)
    )  # fmt: skip
    if resume is not None:
        if basis_bytes is not None:
            raise ValueError("resume holds as many vectors as before: leave basis_bytes out.")
        with watch:
            found = _resumed(
                op, k, which, v0, tol, max_products, max_basis, verify, resume, keep_state, watch
            )
            return _result(flat.packed(op), found, tol, watch)
    capacity = _capacity(op.size, k, max_basis, block_size)
    if basis_bytes is not None:
        if max_basis is not None or block_size > 1:
            raise ValueError(
                "basis_bytes takes the place of max_basis, for single vectors: give one of the two "
                "and leave block_size at 1."
            )
        capacity = _within(basis_bytes, op, k, low, capacity)
    plain, op, given = op, flat.packed(op), v0 is not None
    if v0 is None:
        v0, key = arguments.start(op, key, v0, hint=_NO_STATE)
    else:
        v0, key = arguments.start(plain, key, v0)
        v0 = flat.pack(op, v0)
    v0 = bases.rounded_to(trees.normalized(v0)[0], low)
    with watch:
        w = arguments.first_product(op, v0)
        watch.check(w)
        restarts = jax.random.fold_in(key, 3)
        if keep_state and loops.is_traced(w):
            raise TypeError(_OUTSIDE)
        arguments.check_basis_dtype("eigsh", low, w)
        if loops.is_traced(w):
            if block_size > 1:
                raise TypeError(
                    f"block_size={block_size} is driven from the host and cannot be traced: call "
                    "it outside jit, or leave block_size at 1."
                )
            steps = min(op.size, capacity if max_basis or not max_products else max_products - 1)
            return _traced(op, k, which, krylov.start(v0, steps, restarts), tol)
        spend = _CYCLES * capacity + 1 if max_products is None else max_products
        if block_size > 1:
            # The product above has served to ask whether we are traced.
            key, spend = jax.random.fold_in(key, 2), spend - 1
            found = block.solve(op, k, which, v0, key, block_size, capacity, tol, spend, watch)
            found = found._replace(num_products=found.num_products + 1)
        else:
            grows = low is None and not (keep_state or rotations.is_shared(v0))
            rows, each = krylov.rows_at_first(op.size, capacity) if grows else (capacity, None)
            run = Run(op, krylov.start(v0, rows, restarts, low, each), w, k, capacity)
            del v0, w  # vectors that would be held to the end
            refine = None if low is None else jax.random.fold_in(key, 4)
            found = thick_restart.solve(
                run, k, which, tol, spend, verify and low is None, given, watch,
                keep_state=keep_state, refine=refine,
            )  # fmt: skip
        return _result(op, found, tol, watch)


_NO_STATE = " (Pairs have a state to resume from where they were computed with keep_state=True.)"
_OUTSIDE = (
    "resume and keep_state are for runs that are driven from the host: call eigsh outside jit, or "
    "use flatjax.lanczos inside, which goes on from its own result."
)


def _resumed(op, k, which, v0, tol, max_products, max_basis, verify, resume, keep_state, watch):
    """The pairs of a run that goes on."""
    if v0 is not None:
        raise ValueError("resume goes on from the start vector of that run: leave v0 out.")
    if loops.is_traced(op, resume, jnp.zeros(())):
        raise TypeError(_OUTSIDE)
    op = flat.packed(op)
    run, host, spent, floor = saved.opened(resume, op.structure)
    capacity = run.alphas.shape[0]
    least = min(op.size, k + 2)
    if capacity < least or max_basis not in (None, capacity):
        asked = f"{k} pairs need at least {least}" if capacity < least else f"max_basis={max_basis}"
        raise ValueError(
            f"resume holds max_basis={capacity} vectors and {asked}: begin anew without resume=."
        )
    if max_products is None:
        max_products = spent + _CYCLES * capacity + 1
    if max_products <= spent:
        raise ValueError(
            f"resume has spent {spent} products already, and max_products={max_products} counts "
            f"them: raise it by those to come, at least to {spent + 1}."
        )
    # A run consumes its buffers, and these are the caller's.
    return thick_restart.solve(
        Run(op, krylov.copied(run), None, k, capacity), k, which, tol, max_products, verify,
        watch=watch, resume=(host, spent, floor), keep_state=keep_state,
    )  # fmt: skip


def _result(op: Operator, found: ritz.RitzPairs, tol: float, watch: watching.Watch) -> Eigenpairs:
    """What is found of a packed operator, as the caller knows it."""
    dtype = trees.dtype(op.structure)
    numbers = (found.values, found.residual_norms, found.norm, found.noise)
    values, residuals, norm, noise = (np.asarray(a, dtype) for a in numbers)
    floor = certificates.noise_floor(norm, noise, certificates.underflow(op.size, dtype))
    vectors, values, residuals = (
        flat.unpack(op, found.vectors),
        *map(jnp.asarray, (values, residuals)),
    )
    spent, complete = found.num_products, found.complete
    pairs = certificates.judged(values, vectors, residuals, floor, tol, spent, complete)
    return watching.marked(pairs._replace(state=found.state), watch)


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


def _within(basis_bytes: int, op: Operator, k: int, low: Any, most: int) -> int:
    """At most so many rows, as fit into the bytes."""
    checks.check_scalar("basis_bytes", basis_bytes, above=0)
    # At the end the pairs' vectors are there beside the basis and its next vector.
    beside, least = max(budget.BESIDE, k + 1), min(op.size, k + 2)
    rows = budget.rows_within(basis_bytes, op.structure, beside, low)
    shared = rotations.is_shared(op.structure)
    if shared:  # a restart holds those that it keeps twice
        rows = int((rows - k) / 1.15)
    if rows < least:
        held = math.ceil(1.15 * least) + k if shared else least
        need = beside * budget.vector_bytes(op.structure)
        need += held * budget.vector_bytes(op.structure, low)
        half = ', set basis_dtype="bfloat16"' if low is None and not shared else ""
        raise ValueError(
            f"basis_bytes={basis_bytes:,} is too little: {k} pairs need a basis of at least "
            f"{least} vectors and {beside} vectors beside it, some {need:,} bytes. Raise it{half}, "
            "ask for fewer pairs, or shard the params over more devices."
        )
    return min(most, rows)


def _traced(op: Operator, k: int, which: str, state: krylov.Krylov, tol: float) -> Eigenpairs:
    """The pairs after as many steps as the state has room for, in the working dtype."""
    steps = state.alphas.shape[0]
    state = krylov.run(op, state, steps)
    ritz_values, coefficients = ritz.eigh(ritz.tridiagonal(state.alphas, state.betas))
    index = ritz.descending(ritz_values, ritz.wanted(ritz_values, k, which))
    values, chosen = ritz_values[index], coefficients[:, index]
    couplings, weights = state.betas[-1] * chosen[-1], certificates.mixture(k)
    weights = jnp.asarray(weights, values.dtype)
    noise = certificates.departure(
        op,
        state.basis,
        jnp.dot(chosen, weights, precision="highest"),
        jnp.dot(chosen, weights * values, precision="highest"),
        jnp.dot(couplings, weights, precision="highest"),
        state.vector,
        state.scale,
    )
    residuals = jnp.hypot(couplings * state.scale, noise)
    norm = jnp.max(jnp.abs(ritz_values)) * state.scale
    floor = certificates.noise_floor(norm, noise, certificates.underflow(op.size, values.dtype))
    vectors = bases.combine(state.basis, chosen)
    return certificates.judged(values * state.scale, vectors, residuals, floor, tol, steps + 1)
