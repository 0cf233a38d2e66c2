"""The gradient of the mean loss over a curve, and the training of its control points."""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _convolutions as convolutions
from flatjax import _functions as functions
from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax import _watching as watching
from flatjax._trees import Tree
from flatjax.measures import _objective as objective
from flatjax.paths._curves import Curve

_NONE = object()  # where batches or weights have come to an end


@reading.readable
class CurveSamples(NamedTuple):
    """Where on a curve a loss was evaluated.

    Attributes:
      positions: the positions drawn, shape ``(num_samples,)``; of a simplex its weights, one row a
        sample.
      losses: the mean loss at each, shape ``(num_samples,)``.
    """

    positions: jax.Array
    losses: jax.Array


@reading.readable
class CurveFit(NamedTuple):
    """A curve after training.

    Attributes:
      curve: the curve, of the kind that was given.
      losses: the mean loss over the sampled positions before every step, shape ``(num_steps,)``,
        shorter after a stop.
      state: the optimiser's state, to go on with.
      stopped: why it was stopped early, ``"callback"``, ``"max_seconds"`` or ``"interrupt"``;
        ``None`` otherwise.
    """

    curve: Curve
    losses: jax.Array
    state: Any
    stopped: str | None = None


def curve_value_and_grad(
    loss_fn: Callable[..., Any],
    *,
    num_samples: int = 1,
    stratified: bool = True,
    axis_name: collectives.AxisName = None,
) -> Callable[..., tuple[tuple[jax.Array, CurveSamples], Tree]]:
    r"""An oracle of $\mathbb{E}_{t} L(\phi(t))$ and its gradient by the moving control points.

    $t$ is uniform in [0, 1] (Garipov et al. 2018, equation 2), or a point of a simplex uniform in
    it. A point of the curve is $\phi(t) = \sum_j c_j(t)\, \theta_j$, so the gradient by
    $\theta_j$ is the mean of $c_j(t) \nabla L(\phi(t))$.

    Cost: ``num_samples`` gradients, one after the other, and some passes over the control points.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the mean loss (a scalar), the per-example losses,
        shape ``(n,)``, or a [`Mean`][]. A network with batch norm is trained along a curve in
        training mode: its running statistics belong to no one point.
      num_samples: positions per call.
      stratified: draw one position from each of ``num_samples`` equal parts of [0, 1], which has
        the same mean and less variance; ``False`` for independent ones.
      axis_name: inside ``shard_map`` or ``pmap``: the batch (and its weights) are this device's
        shard, the key the same on all; value and gradient are the means over all devices.

    Returns:
      A function ``oracle(curve, batch, *args, key=, weights=None)`` that returns
      ``((value, samples), gradient)``: the mean loss, a [`CurveSamples`][], and the gradient, a
      tree like ``curve.free``. New numbers go back with ``curve.with_free``.

    Raises:
      TypeError: for a ``loss_fn`` that is no function, or a ``curve`` that is none.
      ValueError: for a count below 1, a curve of which nothing moves, or data that do not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> loss = lambda w, x: ((w - x) ** 2).sum(axis=1)
      >>> oracle = flatjax.curve_value_and_grad(loss, num_samples=4)
      >>> curve = flatjax.bezier([jnp.array([-1.0]), None, jnp.array([1.0])])
      >>> (value, _), gradient = oracle(curve, jnp.zeros((3, 1)), key=jax.random.key(0))
      >>> gradient.shape  # one control point moves
      (1, 1)

    References:
      Garipov, Izmailov, Podoprikhin, Vetrov and Wilson, "Loss surfaces, mode connectivity, and fast
      ensembling of DNNs", NeurIPS 2018, arXiv:1802.10026.
    """
    checks.check_count("num_samples", num_samples)

    def oracle(curve, batch, *args, key, weights=None):
        op = objective.mean_loss(
            loss_fn, _moving(curve), batch, args, weights=weights, axis_name=axis_name,
            precision=None,
        )  # fmt: skip
        positions = curve.sample(checks.check_key(key), num_samples, stratified)
        losses, gradient = _over_samples(op, curve, positions)
        return (losses.mean(), CurveSamples(positions, losses)), gradient

    return oracle


def check_curve(curve: Any) -> None:
    """Raise unless this is a curve."""
    if not isinstance(curve, Curve):
        raise TypeError(
            "curve must be one of flatjax.bezier, flatjax.chain or flatjax.simplex, got "
            f"{type(curve).__name__}: the order is (loss_fn, curve, batch)."
        )


def _moving(curve):
    """One of the control points that move, checked."""
    check_curve(curve)
    if curve.free is None:
        raise ValueError(
            "no control point of the curve moves: give one as None, or name it in free=."
        )
    return jax.tree.map(lambda a: a[0], curve.free)


def _over_samples(op, curve, positions):
    num = positions.shape[0]

    def body(i, carry):
        return _add(op, curve, positions, i, carry)

    start = jnp.zeros((num,), trees.dtype(curve.free)), jax.tree.map(jnp.zeros_like, curve.free)
    return objective.repeat(num, body, start)


@convolutions.compiled
def _add(op, curve, positions, i, carry):
    losses, gradient = carry
    t = positions[i]
    loss, g = objective.value_and_gradient(op, curve(t))
    share = curve.free_coefficients(t) / positions.shape[0]
    gradient = jax.tree.map(lambda s, a: s + trees.per_row(share, s) * a[None], gradient, g)
    return losses.at[i].set(loss), gradient


def fit_curve(
    loss_fn: Callable[..., Any],
    curve: Curve,
    batches: Iterable[Any],
    *args: Any,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    num_steps: int,
    num_samples: int = 1,
    stratified: bool = True,
    weights: Iterable[Any] | None = None,
    state: Any = None,
    callback: Callable[[int, Curve, jax.Array], Any] | None = None,
    progress: bool = False,
    max_seconds: float | None = None,
    on_interrupt: str = "raise",
) -> CurveFit:
    r"""Train the moving control points of a curve, so that the loss is low all along it.

    Stochastic descent of $\mathbb{E}_t L(\phi(t))$, see [`curve_value_and_grad`][], over passes of
    ``batches`` (Garipov et al. 2018). It is driven from the host over one compiled step, without
    waiting for the device. Batches that are split over a mesh, and control points replicated or
    sharded over it, train on all its devices; inside ``shard_map`` write the loop yourself, with
    the ``axis_name`` of [`curve_value_and_grad`][].

    Cost: ``num_steps * num_samples`` gradients. Memory of a gradient, the control points, and the
    optimiser's state of those that move.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, as for [`curve_value_and_grad`][].
      curve: the curve to begin with, as from [`bezier`][], [`chain`][] or [`simplex`][]; it is left
        as it is.
      batches: a re-iterable of batches, not a generator; passed over as often as it takes.
      *args: anything else the loss takes.
      optimizer: an optax optimiser, of the moving control points alone.
      key: a PRNG key, for the positions.
      num_steps: updates.
      num_samples: positions per step.
      stratified: whether one is drawn from each of so many equal parts.
      weights: the per-example weights or padding mask of every batch, a re-iterable beside
        ``batches``; the loss must then be that of each example.
      state: the ``state`` of an earlier fit, to go on from with its curve (and another key).
      callback: ``callback(step, curve, loss)``, called after every step, counted from 1; the loss
        is that before the step. If it returns ``True``, the training stops.
      progress: whether to show a bar on standard error (by rich, if it is installed; lines where
        that is no terminal): steps, loss, time left.
      max_seconds: stop after so many seconds.
      on_interrupt: ``"return"``: the first Ctrl-C stops after the steps in progress, the second
        raises; ``"raise"``: the first raises. After a stop, of whatever kind, the curve is that of
        the moment, and `CurveFit.stopped` has the reason.

    Returns:
      A [`CurveFit`][].

    Raises:
      TypeError: for one batch, a one-shot iterator, an optimiser or curve that is none, or when
        traced.
      ValueError: for a count below 1, no batch, more or fewer weights than batches, a curve of
        which nothing moves, or data that do not fit.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import flatjax
      >>> valley = lambda w, _: (jnp.sum(w**2) - 1) ** 2  # a circle of minima
      >>> a, b = jnp.array([-1.0, 0.0]), jnp.array([1.0, 0.0])
      >>> chord = flatjax.bezier([a, jnp.array([0.0, 0.1]), b])
      >>> fit = flatjax.fit_curve(
      ...     valley, chord, [None], optimizer=optax.adam(0.1), key=jax.random.key(0), num_steps=100
      ... )
      >>> float(valley(chord(0.5), None)) > 0.9 > 0.2 > float(valley(fit.curve(0.5), None))
      True

    References:
      Garipov, Izmailov, Podoprikhin, Vetrov and Wilson, "Loss surfaces, mode connectivity, and fast
      ensembling of DNNs", NeurIPS 2018, arXiv:1802.10026.
    """
    key = checks.check_key(key)
    checks.check_count("num_steps", num_steps)
    checks.check_count("num_samples", num_samples)
    like = _moving(curve)
    checks.check_batches(batches, "every epoch")
    if weights is not None and iter(weights) is weights:
        raise TypeError(
            "weights is a one-shot iterator, but training passes over them several times: pass a "
            "list or another object that can be iterated again."
        )
    if not hasattr(optimizer, "init") or not hasattr(optimizer, "update"):
        raise TypeError(f"optimizer must be one of optax, got {type(optimizer).__name__}.")
    if loops.is_traced((curve, args, key)):
        raise TypeError("fit_curve is driven from the host: call it outside jit, vmap and grad.")
    # Copies, since a step overwrites what it is given.
    free, state = jax.tree.map(
        jnp.array, (curve.free, optimizer.init(curve.free) if state is None else state)
    )
    update = functions.follow(lambda g, s, p: optimizer.update(g, s, p), (free, state, free))
    losses: list[jax.Array] = []
    memory: dict[Any, Any] = {}
    watch = watching.watch(
        "fit_curve", progress, callback, max_seconds, on_interrupt, unit="steps"
    )  # fmt: skip
    with watch:
        while len(losses) < num_steps and watch.stopped is None:
            before = len(losses)
            for batch, w in _weighted(batches, weights):
                with functions.one_moment(memory):  # the loss is traced once, not for every batch
                    op = objective.mean_loss(
                        loss_fn, like, batch, args, weights=w, axis_name=None, precision=None
                    )
                free, state, loss = _step(
                    op,
                    update,
                    free,
                    curve,
                    state,
                    key,
                    len(losses),
                    num=num_samples,
                    even=stratified,
                )
                losses.append(loss)
                if callback is not None:
                    kept = jax.tree.map(jnp.array, free)
                    watch.ask(callback, len(losses), curve.with_free(kept), loss)
                left = num_steps - len(losses)
                if watch.due(loss) or (watch.on and not left):
                    watch.report(len(losses), left=left, text=f"loss {float(loss):.4g}")
                if not left or watch.stopped is not None:
                    break
            if len(losses) == before:
                raise ValueError("batches is empty: fit_curve needs at least one batch.")
    history = jnp.asarray(np.stack(jax.device_get(losses)))
    stopped = watch.stopped if len(losses) < num_steps else None
    return CurveFit(curve.with_free(free), history, state, stopped)


def _weighted(batches, weights):
    """One pass over the batches, each with its weights."""
    if weights is None:
        yield from ((batch, None) for batch in batches)
        return
    for pair in itertools.zip_longest(batches, weights, fillvalue=_NONE):
        if any(part is _NONE for part in pair):
            raise ValueError("weights must hold one array for every batch, in the same order.")
        yield pair


@functools.partial(
    convolutions.compiled, donate_argnames=("free", "state"), static_argnames=("num", "even")
)
def _step(op, update, free, curve, state, key, number, num, even):
    curve = curve.with_free(free)
    positions = curve.sample(jax.random.fold_in(key, number), num, even)
    losses, gradient = _over_samples(op, curve, positions)
    updates, state = update(gradient, state, free)
    return optax.apply_updates(free, updates), state, losses.mean()
