"""Curvature along a training run: the extreme eigenpairs, warm-started from step to step.

Between two training steps the Hessian changes little, so the eigenvectors of the last step are an
excellent start: one to three products per step follow them, where a cold Lanczos run needs tens.
From random vectors the values rise for ten steps and more even where the true ones are constant: so
a tracker is started by one Lanczos run, or says that its pairs have not converged.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax.linalg import eigsh
from flatjax.linalg.krylov import _lobpcg as lobpcg
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _probes as probes
from flatjax.operators._base import Operator, as_operator

Which = Literal["LA", "SA", "LM"]
_RECORDED = ("values", "residual_norms", "converged", "drift")


@reading.readable
class TrackState(NamedTuple):
    """The tracked pairs after a step; all arrays, so that it lives in a train state.

    Attributes:
      values: the Ritz values, shape ``(k,)``, in the order of ``which``; NaN before the first step
        of a tracker that started at random vectors.
      vectors: orthonormal Ritz vectors, a pytree with a leading axis ``k``.
      directions: the last change of the vectors, the third block of the search space.
      residual_norms: ``|A v - value v|`` for every pair, shape ``(k,)``: some eigenvalue lies
        within this distance of the value.
      converged: ``(k,)`` booleans: the residual is at most ``tol`` times the value's magnitude, or
        rounding beside the largest value. Leave out the values where it is false: the start has not
        settled, or the operator moved too far in one step. It cannot show that another eigenvalue
        has overtaken the tracked ones: for that start again now and then.
      drift: how far every vector has turned out of the span of the vectors before the step, the
        sine of the angle, shape ``(k,)``.
      step: the number of steps taken.
      num_products: the number of products spent, those of the start included.
    """

    values: jax.Array
    vectors: Any
    directions: Any
    residual_norms: jax.Array
    converged: jax.Array
    drift: jax.Array
    step: jax.Array
    num_products: jax.Array


@dataclasses.dataclass(frozen=True)
class Tracker:
    """Follows the extreme eigenpairs of a changing operator; made by [`track`][]."""

    k: int
    which: Which
    num_blocks: int
    tol: float

    def init(
        self,
        at: Any,
        *,
        key: jax.Array | None = None,
        pairs: Any = None,
        max_products: int | None = None,
    ) -> TrackState:
        """The first state: pairs of the operator, given pairs, or random vectors.

        Of an operator it is what [`eigsh`][] finds, until the residuals meet the tracker's ``tol``:
        about 20 products for one pair and 50 for two. Under ``jit`` it takes a fixed number of
        them, 33 plus ``k`` at most by default.

        A tree like the params has no eigenpairs: the state then has random vectors and NaN for
        values, and some ten updates pass before its pairs are ``converged``.

        Args:
          at: the operator at the first params, or a pytree of arrays or ``ShapeDtypeStruct`` like
            the params.
          key: a PRNG key of the random start. Give either ``key`` or ``pairs``.
          pairs: pairs to start from, at no cost: an [`Eigenpairs`][] of at least ``k`` pairs, a
            [`TrackState`][], or ``k`` vectors as a tree with a leading axis. Of pairs the values
            are reported as they are, so let them be of the operator at the first params.
          max_products: the most products to spend on the start; under ``jit`` the number spent.

        Returns:
          The state, with vectors like the params and a leading axis ``k``.

        Raises:
          TypeError: if ``pairs`` has another tree structure than the params.
          ValueError: if ``k`` exceeds the dimension, for both or neither of ``key`` and ``pairs``,
            for pairs of other shapes or fewer than ``k``, or for linearly dependent vectors.
        """
        structure = at.structure if isinstance(at, Operator) else trees.structure_of(at)
        if self.k > trees.size(structure):
            raise ValueError(
                f"k={self.k} pairs exceed the dimension {trees.size(structure)}: lower k."
            )
        if (key is None) == (pairs is None):
            raise ValueError(
                "a tracker starts from key=jax.random.key(0) or from pairs=, not both."
            )
        if key is None:
            return self._from_pairs(structure, pairs, 0)
        if isinstance(at, Operator):
            found = eigsh(
                at, self.k, which=self.which, key=key, tol=self.tol, max_products=max_products
            )
            return self._from_pairs(structure, found, found.num_products)
        drawn = probes.block(jax.random.split(key, self.k), structure, "normal")
        return self._from_vectors(lobpcg.orthonormal(None, drawn)[0])

    def _from_pairs(self, structure: Any, pairs: Any, num_products: int) -> TrackState:
        """The state of given pairs, or of bare vectors."""
        bare = not (hasattr(pairs, "values") and hasattr(pairs, "residual_norms"))
        vectors = pairs if bare else pairs.vectors
        counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(vectors)}
        count = min((c[0] if c else 0 for c in counts), default=0)
        if len(counts) != 1 or count < self.k or (bare and count > self.k):
            raise ValueError(
                f"pairs must hold {'' if bare else 'at least '}{self.k} vectors along one leading "
                f"axis, as eigsh(op, {self.k}) gives them; got leading axes {sorted(counts)}."
            )
        trees.check(jax.tree.map(lambda a: a[0], vectors), structure, "a vector of pairs")
        vectors = trees.cast(vectors, structure)
        if bare:
            vectors, kept = lobpcg.orthonormal(None, vectors)
            if not loops.is_traced(kept) and not bool(kept.all()):
                raise ValueError("pairs must hold linearly independent vectors.")
            return self._from_vectors(vectors)
        order = lobpcg.order(pairs.values, self.which)[: self.k]
        scalar = trees.dtype(structure)
        values, residuals = (a[order].astype(scalar) for a in (pairs.values, pairs.residual_norms))
        converged = self._converged(values, residuals)
        complete = getattr(pairs, "complete", None)
        if complete is not None:  # a list known to lack a pair is not right in its order
            converged = converged & jnp.asarray(complete)
        state = self._from_vectors(jax.tree.map(lambda a: a[order], vectors))
        spent = jnp.asarray(num_products, jnp.int32)
        return state._replace(
            values=values, residual_norms=residuals, converged=converged, num_products=spent
        )

    def _from_vectors(self, vectors: Any) -> TrackState:
        """The state of orthonormal vectors of which nothing is known."""
        empty = jnp.full((self.k,), jnp.nan, trees.dtype(vectors))
        zero = jnp.zeros((), jnp.int32)
        return TrackState(
            values=empty,
            vectors=vectors,
            directions=jax.tree.map(jnp.zeros_like, vectors),
            residual_norms=empty,
            converged=jnp.zeros((self.k,), bool),
            drift=empty,
            step=zero,
            num_products=zero,
        )

    def _converged(self, values: jax.Array, residual_norms: jax.Array) -> jax.Array:
        size = jnp.abs(values)
        rounding = 8 * jnp.finfo(values.dtype).eps * size.max()
        small = residual_norms <= jnp.maximum(self.tol * size, rounding)
        if self.num_blocks == 1 and self.which == "LA":
            # Orthogonal iteration follows |value|: below a negative one others may lie outside.
            return small & (values >= 0)
        return small

    def update(
        self, op: Operator | Callable[[Any], Any], state: TrackState, *, structure: Any = None
    ) -> TrackState:
        """One step: ``k * num_blocks`` products with the operator at the present params.

        Args:
          op: the operator at the present params, or a callable ``v -> A v``.
          state: the state of the last step.
          structure: for a callable, the vectors it acts on; by default those of the state.

        Returns:
          The state of this step.

        Raises:
          TypeError: if the operator acts on another tree structure.
          ValueError: if it acts on other shapes.
        """
        row = jax.tree.map(lambda a: a[0], state.vectors)
        if not isinstance(op, Operator):
            op = as_operator(op, row if structure is None else structure)
        trees.check(row, op.structure, "the tracked vectors")
        if op.host_driven:
            return _advance(self, op.mv, state)
        return _update(self, op, state)

    def callback(
        self, make_operator: Callable[..., Operator], *, key: jax.Array, every: int = 1
    ) -> "TrackCallback":
        """A callback for a training loop on the host, started at the first operator's pairs.

        Args:
          make_operator: ``make_operator(params, *context) -> operator`` at the present params.
          key: the PRNG key of the start. For another start set ``state`` before the first call.
          every: the number of steps between updates.

        Returns:
          ``callback(step, params, *context)``, which records and returns the state.

        Raises:
          TypeError: for an operator in place of a function that makes one.
          ValueError: if ``every`` is below 1.
        """
        checks.check_count("every", every)
        if isinstance(make_operator, Operator):
            raise TypeError(
                "make_operator must be a function of the params that makes an operator, got an "
                "operator: lambda params: flatjax.hessian(loss_fn, params, batch)."
            )
        return TrackCallback(self, make_operator, key, every)


class TrackCallback:
    """Records the tracked pairs of a training loop; made by ``Tracker.callback``.

    Values stay on the device until they are read, so that recording does not stall the loop.

    Attributes:
      state: the last [`TrackState`][], or ``None``; put it into a checkpoint to resume.
    """

    def __init__(self, tracker, make_operator, key, every):
        self.tracker, self.make_operator, self.key, self.every = tracker, make_operator, key, every
        self.state: TrackState | None = None
        self._records: list[tuple[int, Any]] = []

    def __call__(self, step: int, params: Any, *context: Any) -> TrackState | None:
        """Update at every ``every``-th step; the last state is returned in any case.

        Raises:
          TypeError: if ``step`` is not an integer.
        """
        if not hasattr(step, "__index__"):
            raise TypeError(
                f"step must be an integer, got {type(step).__name__}: call callback(step, params)."
            )
        if step % self.every:
            return self.state
        op = self.make_operator(params, *context)
        if self.state is None:
            self.state = self.tracker.init(op, key=self.key)
        self.state = self.tracker.update(op, self.state)
        self._records.append((step, tuple(getattr(self.state, name) for name in _RECORDED)))
        return self.state

    @property
    def history(self) -> dict[str, np.ndarray]:
        """``steps``, and ``values``, ``residual_norms``, ``converged``, ``drift``: (steps, k)."""
        steps = np.array([step for step, _ in self._records], int)
        columns = zip(*(record for _, record in self._records), strict=True)
        empty = [np.zeros((0, self.tracker.k))] * len(_RECORDED)
        arrays = [np.stack([np.asarray(a) for a in column]) for column in columns] or empty
        return {"steps": steps, **dict(zip(_RECORDED, arrays, strict=True))}


def track(k: int = 1, *, which: Which = "LA", num_blocks: int = 2, tol: float = 0.05) -> Tracker:
    r"""A tracker of the top-``k`` eigenpairs along a training run.

    Every step searches for the best Ritz pairs of the *present* operator in a small space: the
    vectors $V$ of the last step, their residuals $R = AV - V\Theta$ (``num_blocks >= 2``) and the
    last change of the vectors (``num_blocks = 3``). That is one step of locally optimal block
    conjugate gradients (Knyazev 2001), with the products recomputed because the operator has moved.
    With ``num_blocks = 1`` it is one step of orthogonal iteration, which follows the largest
    $|\lambda|$ and reports the Ritz pairs of the vectors it was given.

    Cost: ``k * num_blocks`` products per step and ``2 k`` vectors of memory
    (``2 k * num_blocks`` while it runs), and the start, see ``init``. ``update`` works inside a
    jitted train step, where products are batched over ``k``; where the operator moves fast
    (``converged`` says so), call it twice.

    Args:
      k: the number of pairs.
      which: ``"LA"``: the largest, ``"SA"``: the smallest, ``"LM"``: the largest in magnitude.
      num_blocks: the blocks of ``k`` vectors that span the search space, 1 to 3; each takes ``k``
        products per step. Take 2 unless a step is very cheap (3) or the spectrum is positive and
        well separated (1).
      tol: the residual relative to the value at which a pair counts as converged. The error is
        about the square of it over the relative gap to the next value: 1 per cent at the default.

    Returns:
      A tracker with ``init``, ``update`` and ``callback``.

    Raises:
      ValueError: for ``k < 1``, an unknown ``which``, ``num_blocks`` outside 1 to 3, one block with
        ``"SA"``, or a ``tol`` that is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> def loss_fn(w, x):
      ...     return 0.5 * (x @ w) ** 2
      >>> def hessian(scale):
      ...     x = jnp.array([[1.0, 0.0], [0.0, scale]])
      ...     return flatjax.hessian(loss_fn, jnp.zeros(2), x)
      >>> tracker = flatjax.track(k=1)
      >>> state = tracker.init(hessian(2.0), key=jax.random.key(0))
      >>> print(f"{state.values[0]:.2f}")  # 2^2 / 2
      2.00
      >>> for scale in (2.1, 2.2):
      ...     state = tracker.update(hessian(scale), state)
      >>> print(f"{state.values[0]:.2f}", state.converged.tolist())  # 2.2^2 / 2
      2.42 [True]

    References:
      Knyazev, "Toward the optimal preconditioned eigensolver: locally optimal block preconditioned
      conjugate gradient method", SIAM J. Sci. Comput. 23(2), 2001.
    """
    checks.check_count("k", k)
    checks.check_choice("which", which, ("LA", "SA", "LM"))
    checks.check_choice("num_blocks", num_blocks, (1, 2, 3))
    checks.check_scalar("tol", tol, above=0.0, below=1.0)
    if num_blocks == 1 and which == "SA":
        raise ValueError('one block follows the largest |value|: use num_blocks=2 for "SA".')
    return Tracker(k, which, num_blocks, float(tol))


@functools.partial(jax.jit, static_argnums=0)
def _update(tracker, op, state):
    return _advance(tracker, op.mv, state)


def _advance(tracker, mv, state):
    start = lobpcg.polished(state.vectors)
    if tracker.num_blocks == 1:
        found = lobpcg.orthogonal_iteration(mv, start, tracker.which)
    else:
        candidates = (state.directions,) if tracker.num_blocks == 3 else ()
        found = lobpcg.step(mv, start, tracker.which, candidates)
    # |(I - V V^T) x| directly: sqrt(1 - |V^T x|^2) would not resolve angles below sqrt(eps).
    overlaps = bases.gram(state.vectors, found.vectors)
    outside = bases.subtract(found.vectors, bases.combine(state.vectors, overlaps))
    return TrackState(
        values=found.values,
        vectors=found.vectors,
        directions=found.change,
        residual_norms=found.residual_norms,
        converged=tracker._converged(found.values, found.residual_norms),
        drift=bases.row_norms(outside),
        step=state.step + jnp.ones((), jnp.int32),
        num_products=state.num_products + jnp.asarray(tracker.k * tracker.num_blocks, jnp.int32),
    )
