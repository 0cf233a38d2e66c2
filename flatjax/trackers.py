"""Curvature along a training run: the extreme eigenpairs, warm-started from step to step.

Between two training steps the Hessian changes little, so the eigenvectors of the last step are an
excellent start: one to three products a step follow them, where a cold Lanczos run needs tens.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from flatjax import loops, trees
from flatjax.operators.base import Operator, as_operator

Which = Literal["LA", "SA", "LM"]


class TrackState(NamedTuple):
    """The tracked pairs after a step; all arrays, so that it lives in a train state.

    Attributes:
      values: the Ritz values, shape ``(k,)``, in the order of ``which``; NaN before the first step.
      vectors: orthonormal Ritz vectors, a pytree with a leading axis ``k``.
      directions: the last change of the vectors, the third block of the search space.
      residual_norms: ``|A v - value v|`` for every pair, shape ``(k,)``: some eigenvalue lies
        within this distance of the value.
      drift: how far every vector has turned out of the span of the vectors before the step, the
        sine of the angle, shape ``(k,)``.
      step: the number of steps taken.
      num_products: the number of products spent.
    """

    values: jax.Array
    vectors: Any
    directions: Any
    residual_norms: jax.Array
    drift: jax.Array
    step: jax.Array
    num_products: jax.Array


@dataclasses.dataclass(frozen=True)
class Tracker:
    """Follows the extreme eigenpairs of a changing operator; made by [`track`][]."""

    k: int
    which: Which
    products: int

    def init(self, structure: Any, key: chex.PRNGKey) -> TrackState:
        """A state with random orthonormal vectors.

        Args:
          structure: an operator, or a pytree of arrays or ``ShapeDtypeStruct`` like the params.
          key: a PRNG key.

        Returns:
          The state; its values are NaN until the first ``update``.

        Raises:
          ValueError: if ``k`` exceeds the dimension.
        """
        if isinstance(structure, Operator):
            structure = structure.structure
        structure = trees.structure_of(structure)
        if self.k > trees.size(structure):
            raise ValueError(
                f"k={self.k} pairs exceed the dimension {trees.size(structure)}: lower k."
            )
        leaves, treedef = jax.tree.flatten(structure)
        keys = jax.random.split(key, len(leaves))
        draws = [
            jax.random.normal(k, (self.k, *a.shape), a.dtype)
            for k, a in zip(keys, leaves, strict=True)
        ]
        # Spread over devices as the params are.
        draws = trees.placed(jax.tree.unflatten(treedef, draws), structure)
        vectors, _ = _orthonormal(None, draws)
        scalar = trees.dtype(structure)
        empty = jnp.full((self.k,), jnp.nan, scalar)
        zero = jnp.zeros((), jnp.int32)
        return TrackState(
            empty, vectors, jax.tree.map(jnp.zeros_like, vectors), empty, empty, zero, zero
        )

    def update(
        self, op: Operator | Callable[[Any], Any], state: TrackState, *, structure: Any = None
    ) -> TrackState:
        """One step: ``k * products`` products with the operator at the present params.

        Args:
          op: the operator at the present params, or a callable ``v -> A v``.
          state: the state of the last step.
          structure: for a callable, the vectors it acts on; default that of the state.

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
        self, make_operator: Callable[..., Operator], *, key: chex.PRNGKey, every: int = 1
    ) -> "TrackCallback":
        """A callback for a training loop on the host.

        Args:
          make_operator: ``make_operator(params, *context) -> operator`` at the present params.
          key: the PRNG key of the first vectors.
          every: the number of steps between updates.

        Returns:
          ``callback(step, params, *context)``, which records and returns the state.

        Raises:
          ValueError: if ``every`` is below 1.
        """
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}.")
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
        """Update at every ``every``-th step; the last state is returned in any case."""
        if step % self.every:
            return self.state
        op = self.make_operator(params, *context)
        if self.state is None:
            self.state = self.tracker.init(op, self.key)
        self.state = self.tracker.update(op, self.state)
        kept = (self.state.values, self.state.residual_norms, self.state.drift)
        self._records.append((step, kept))
        return self.state

    @property
    def history(self) -> dict[str, np.ndarray]:
        """``steps``, and ``values``, ``residual_norms``, ``drift`` of shape ``(steps, k)``."""
        steps = np.array([step for step, _ in self._records], int)
        columns = zip(*(record for _, record in self._records), strict=True)
        names = ("values", "residual_norms", "drift")
        empty = np.zeros((0, self.tracker.k))
        arrays = [np.stack([np.asarray(a) for a in column]) for column in columns] or [empty] * 3
        return {"steps": steps, **dict(zip(names, arrays, strict=True))}


def track(k: int = 1, *, which: Which = "LA", products: int = 2) -> Tracker:
    r"""A tracker of the top-``k`` eigenpairs along a training run.

    Every step searches for the best Ritz pairs of the *present* operator in a small space: the
    vectors $V$ of the last step, their residuals $R = AV - V\Theta$ (``products >= 2``) and the
    last change of the vectors (``products = 3``): one step of locally optimal block conjugate
    gradients (Knyazev 2001, SIAM J. Sci. Comput. 23(2)), with the products recomputed because the
    operator has moved. With ``products = 1`` it is one step of orthogonal iteration, which follows
    the largest $|\lambda|$ and reports the Ritz pairs of the vectors it was given.

    Costs ``k * products`` products a step and ``2 k`` vectors of memory (``2 k * products`` while
    it runs). ``update`` works inside a jitted train step, where products are batched over ``k``.

    Args:
      k: the number of pairs.
      which: ``"LA"``: the largest, ``"SA"``: the smallest, ``"LM"``: the largest in magnitude.
      products: blocks of products a step, 1 to 3. Take 2 unless a step is very cheap (3) or the
        spectrum is positive and well separated (1).

    Returns:
      A tracker with ``init``, ``update`` and ``callback``.

    Raises:
      ValueError: for ``k < 1``, an unknown ``which`` or ``products`` outside 1 to 3, or one product
        with anything but ``"LM"``/``"LA"``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> def loss_fn(w, x):
      ...     return 0.5 * (x @ w) ** 2
      >>> tracker = flatjax.track(k=1)
      >>> state = tracker.init(jnp.zeros(2), jax.random.key(0))
      >>> for scale in (2.0, 2.1, 2.2):
      ...     x = jnp.array([[1.0, 0.0], [0.0, scale]])
      ...     state = tracker.update(flatjax.hessian(loss_fn, jnp.zeros(2), x), state)
      >>> print(f"{state.values[0]:.2f}")  # 2.2^2 / 2
      2.42
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    if which not in ("LA", "SA", "LM"):
        raise ValueError(f'which must be "LA", "SA" or "LM", got {which!r}.')
    if products not in (1, 2, 3):
        raise ValueError(f"products must be 1, 2 or 3, got {products}.")
    if products == 1 and which == "SA":
        raise ValueError('one product a step follows the largest |value|: use products=2 for "SA".')
    return Tracker(k, which, products)


@functools.partial(jax.jit, static_argnums=0)
def _update(tracker, op, state):
    return _advance(tracker, op.mv, state)


def _advance(tracker, mv, state):
    k, old = tracker.k, _polished(state.vectors)
    images = _apply(mv, old)
    theta, rotation = jnp.linalg.eigh(_projected(old, images))
    order = _order(theta, tracker.which)
    theta, rotation = theta[order], rotation[:, order]
    ritz, ritz_images = _combine(rotation, old), _combine(rotation, images)
    if tracker.products == 1:
        residuals = _residual_norms(ritz, ritz_images, theta)
        following, kept = _orthonormal(None, ritz_images)
        # A zero image (the zero operator, a null vector) leaves the vectors where they are.
        following = jax.tree.map(lambda a, b: jnp.where(kept.all(), a, b), following, ritz)
        return _next(tracker, state, theta, residuals, following, following)

    blocks, block_images, keep = ritz, ritz_images, jnp.ones((k,), bool)
    search = _residuals(ritz, ritz_images, theta)
    for candidates in (search, state.directions)[: tracker.products - 1]:
        fresh, kept = _orthonormal(blocks, candidates)
        blocks, keep = _join(blocks, fresh), jnp.concatenate([keep, kept])
        block_images = _join(block_images, _apply(mv, fresh))
    # Candidates without a component of their own are zero vectors with zero rows: moved to an
    # eigenvalue of their own, so that they neither mix with the others nor are taken for them.
    projected = _projected(blocks, block_images)
    total = jnp.abs(projected).sum()
    apart = 2 * jnp.where(total > 0, total, jnp.ones_like(total))
    theta, rotation = jnp.linalg.eigh(
        projected + jnp.diag(jnp.where(keep, jnp.zeros_like(apart), apart))
    )
    order = _order(theta, tracker.which, theta < 0.75 * apart)[:k]
    theta, rotation = theta[order], rotation[:, order]
    new, new_images = _combine(rotation, blocks), _combine(rotation, block_images)
    # The change that conjugate gradients remember: what lies outside the span of the old vectors.
    change = _combine(rotation[k:], jax.tree.map(lambda a: a[k:], blocks))
    return _next(tracker, state, theta, _residual_norms(new, new_images, theta), new, change)


def _next(tracker, state, theta, residual_norms, vectors, change):
    # |(I - V V^T) x| directly: sqrt(1 - |V^T x|^2) would not resolve angles below sqrt(eps).
    outside = _axpy(-_gram(vectors, state.vectors), state.vectors, vectors)
    count = jnp.asarray(tracker.k * tracker.products, jnp.int32)
    return TrackState(
        theta, vectors, change, residual_norms, _row_norms(outside),
        state.step + jnp.ones((), jnp.int32), state.num_products + count,
    )  # fmt: skip


def _order(theta, which, in_space=None):
    rank = {"LA": -theta, "SA": theta, "LM": -jnp.abs(theta)}[which]
    if in_space is not None:
        rank = jnp.where(in_space, rank, jnp.full_like(rank, jnp.inf))
    return jnp.argsort(rank)


# Blocks of vectors: pytrees with a leading axis.


def _apply(mv, block):
    if loops.is_traced(block):
        return jax.vmap(mv)(block)
    count = jax.tree.leaves(block)[0].shape[0]
    rows = [mv(jax.tree.map(lambda a, i=i: a[i], block)) for i in range(count)]
    return jax.tree.map(lambda *a: jnp.stack(a), *rows)


def _orthonormal(basis, block):
    """Orthonormalise a block against a basis; rows without a component of their own become zero.

    Projection and an orthogonalisation by the eigenvectors of the Gram matrix (Stathopoulos and Wu
    2002, SIAM J. Sci. Comput. 23(6)), twice: once leaves rounding of the size of the condition
    number, and the residual of a converged pair is mostly rounding.
    """
    lengths = _row_norms(block)
    safe = jnp.where(lengths > 0, lengths, jnp.ones_like(lengths))
    block = _scale_rows(1 / safe, block)
    keep = jnp.ones(lengths.shape, bool)
    for _ in range(2):
        if basis is not None:
            block = _axpy(-_gram(block, basis), basis, block)
        squares, rotation = jnp.linalg.eigh(_gram(block, block))
        # Squared lengths below a few eps are rounding of the Gram matrix itself.
        keep = squares > 100 * jnp.finfo(squares.dtype).eps
        factors = jnp.where(
            keep, jax.lax.rsqrt(jnp.where(keep, squares, 1)), jnp.zeros_like(squares)
        )
        block = _combine(rotation * factors, block)
    return block, keep


def _polished(block):
    """One Newton step to the nearest orthonormal block, lest rounding adds up over the steps."""
    gram = _gram(block, block)
    return _combine((3 * jnp.eye(gram.shape[0], dtype=gram.dtype) - gram) / 2, block)


def _gram(a, b):
    scalar = trees.dtype((a, b))

    def leaf(x, y):
        x, y = (z.reshape(z.shape[0], -1).astype(scalar) for z in (x, y))
        return jnp.matmul(x, y.T, precision="highest")

    grams = jax.tree.leaves(jax.tree.map(leaf, a, b))
    return functools.reduce(jnp.add, grams)


def _projected(block, images):
    gram = _gram(block, images)
    return (gram + gram.T) / 2


def _combine(coefficients, block):
    """Row ``j`` is the combination of the rows of ``block`` by column ``j`` of the coefficients."""
    return jax.tree.map(
        lambda a: jnp.tensordot(coefficients.T.astype(a.dtype), a, axes=1, precision="highest"),
        block,
    )


def _axpy(coefficients, basis, block):
    return jax.tree.map(jnp.add, _combine(coefficients.T, basis), block)


def _scale_rows(factors, block):
    return jax.tree.map(
        lambda a: a * factors.astype(a.dtype).reshape(-1, *(1,) * (a.ndim - 1)), block
    )


def _row_norms(block):
    return jax.vmap(trees.norm)(block)


def _residuals(vectors, images, theta):
    return jax.tree.map(lambda a, b: b - a, _scale_rows(theta, vectors), images)


def _residual_norms(vectors, images, theta):
    return _row_norms(_residuals(vectors, images, theta))


def _join(a, b):
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), a, b)
