"""The implicit regularisers of gradient descent and of SGD, made explicit."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from flatjax import _balls as balls
from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax.transforms import _base as base
from flatjax.transforms import _callables as callables
from flatjax.transforms import _penalties as penalties
from flatjax.transforms import _prng as prng
from flatjax.transforms._ascent import Mask, expand_mask, select
from flatjax.transforms._groups import GroupMode, check_group_mode, mean_over_groups, split
from flatjax.transforms._penalty import Mode, check_mode, hessian_product


def implicit_gradient_regularization(
    learning_rate: base.Scalar,
    *,
    loss_fn: Callable[..., jax.Array] | None = None,
    estimator: Literal["batch", "halves"] = "batch",
    every: base.Number = 1,
    mode: Mode = "linearize",
    step: base.Number = 1e-2,
    mask: Mask | None = None,
    axis_name: collectives.AxisName = None,
    diagnostics: bool = False,
    check: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Implicit gradient regularisation (IGR): $L + \frac h4 \lVert \nabla L \rVert^2$.

    Gradient descent with step $h$ follows the gradient flow of this loss to second order in $h$
    (Barrett & Dherin 2021, "Implicit Gradient Regularization"); the update is $g + \frac h2 H g$.

    On a mini-batch $\mathbb E \lVert g_B \rVert^2 = \lVert \mathbb E g \rVert^2 +
    \mathrm{tr}\,\Sigma / B$. ``estimator="halves"`` penalises
    $\langle g_A, g_B \rangle$ over the two halves of the batch instead, an unbiased estimate of
    $\lVert \mathbb E g \rVert^2$ (it may be negative), with gradient $H_A g_B + H_B g_A$. With
    ``axis_name`` the halves are those of every device's shard: another pair of halves, equally
    unbiased.

    Cost: as [`gradient_penalty`][]; ``"halves"`` the same, over two half batches.

    Args:
      learning_rate: $h$, a number or a schedule: the learning rate whose regulariser is added.
      loss_fn: ``loss_fn(params, batch, *args)``, for ``"halves"``: mean or per-example losses, or a
        [`Mean`][]; ``update`` then takes ``batch`` (and ``args``).
      estimator: ``"batch"`` or ``"halves"``.
      every: evaluate every so many steps, as of [`gradient_penalty`][].
      mode: ``"linearize"``, ``"forward"`` or ``"central"``.
      step: the length of a finite-difference step.
      mask: the leaves that count in the norm.
      axis_name: inside ``shard_map`` or ``pmap``, the axes of the batch.
      diagnostics: keep the squared norm, or its estimate, in the state.
      check: look at the incoming updates at the first eager call, for ``"batch"``.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`PenaltyState`][].

    Raises:
      ValueError: for an unknown ``estimator``, ``"halves"`` without ``loss_fn`` or with a batch of
        odd size, and as in [`gradient_penalty`][].

    Example:
      >>> import flatjax, jax, jax.numpy as jnp
      >>> loss = lambda w: jnp.sum(jnp.array([1.0, 2.0]) * w**2) / 2
      >>> w = jnp.array([1.0, 1.0])
      >>> tx = flatjax.implicit_gradient_regularization(0.4)
      >>> out, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, grad_fn=jax.grad(loss))
      >>> out.round(2).tolist()
      [1.20, 2.80]
    """
    name = "implicit_gradient_regularization"
    coef = _fraction(learning_rate, 4)
    if estimator == "batch":
        return penalties.training_penalty(
            name, coef, every, mode, step, mask, axis_name, diagnostics, check
        )
    if estimator != "halves":
        raise ValueError(f'estimator must be "batch" or "halves", got {estimator!r}.')
    if loss_fn is None:
        raise ValueError(f'{name}(estimator="halves") needs loss_fn=, and batch= in update.')
    check_mode(mode, step)
    mean = callables.mean_loss(loss_fn)

    def evaluate(params, updates, incoming, key, count, extra):
        del updates, incoming, key, count
        batch, args = extra.get("batch"), extra.get("args", ())
        base.require_batch(name, batch)
        halves = split(batch, 2, "halves")
        parts = [jax.tree.map(lambda a, i=i: a[i], halves) for i in (0, 1)]

        def gradient(part, index):
            a = prng.fold(args, index)

            def global_gradient(w):
                w = collectives.varying(w, axis_name)
                g, weight = jax.grad(mean, has_aux=True)(w, part, *a)
                g = base.average(g, axis_name, weight)
                if weight is None:
                    return g
                empty = collectives.total(weight, axis_name) == 0  # a half with nothing to penalise
                return base.where(empty, base.zeros_like(g), g)

            return global_gradient

        expanded = expand_mask(mask, params)
        (g_a, apply_a), (g_b, apply_b) = (
            _product_along(gradient(part, i), params, mode, step) for i, part in enumerate(parts)
        )
        v_a, v_b = select(expanded, g_a), select(expanded, g_b)
        # coef <g_A, g_B> has the gradient coef (H_A g_B + H_B g_A); a factor 2 comes later.
        product = base.combine(0.5, apply_a(v_b), 0.5, apply_b(v_a))
        return product, trees.vdot(v_a, v_b)

    return penalties.penalty_transform(
        name, evaluate, coef=coef, every=every, seed=None, axis_name=axis_name,
        diagnostics=diagnostics,
    )  # fmt: skip


def _product_along(gradient, params, mode, step):
    """The gradient and ``v -> H v``, exact or by finite differences."""
    if mode == "linearize":
        g, linear = jax.linearize(gradient, params)
        return g, lambda v: linear(trees.cast(v, params))
    g = gradient(params)

    def apply(v):
        v = trees.cast(v, trees.structure_of(v))
        norm, direction = trees.norm(v), balls.dual_direction(v)
        length = jnp.asarray(step).astype(norm.dtype)

        def shifted(by):
            return gradient(balls.moved(params, base.scaled(by, direction)))

        if mode == "forward":
            return base.scaled(norm / length, base.combine(1.0, shifted(length), -1.0, g))
        difference = base.combine(1.0, shifted(length), -1.0, shifted(-length))
        return base.scaled(norm / (2 * length), difference)

    return g, apply


def _fraction(learning_rate: base.Scalar, divisor: int) -> base.Scalar:
    checks.check_scalar("learning_rate", learning_rate, minimum=0.0, schedule=True)
    if callable(learning_rate):
        return lambda count: learning_rate(count) / divisor
    return learning_rate / divisor


def stochastic_implicit_gradient_regularization(
    learning_rate: base.Scalar,
    *,
    loss_fn: Callable[..., jax.Array],
    micro_batches: int,
    every: base.Number = 1,
    mode: Mode = "linearize",
    step: base.Number = 1e-2,
    mask: Mask | None = None,
    group_mode: GroupMode = "auto",
    axis_name: collectives.AxisName = None,
    diagnostics: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Implicit regulariser of SGD: $L + \frac{h}{4 m} \sum_k \lVert \nabla L_k \rVert^2$ (ISGR).

    SGD with step $h$ over m micro-batches follows, on average over their order, the flow of this
    loss (Smith et al. 2021, "On the Origin of Implicit Regularization in Stochastic Gradient
    Descent"; used to train with full batches by Geiping et al. 2022). The update is $g + \frac{h}{2
    m} \sum_k H_k g_k$. ``micro_batches=1`` is [`implicit_gradient_regularization`][].

    Cost: 3 gradients over the batch (``"linearize"``), with ``group_mode="vmap"`` in the memory of
    ``micro_batches`` of them; 2 more than the training gradient (``"forward"``).

    Args:
      learning_rate: $h$, a number or a schedule.
      loss_fn: ``loss_fn(params, batch, *args)``: mean or per-example losses, or a [`Mean`][], by
        whose weights the micro-batches then count.
      micro_batches: m, the number of contiguous, equal parts of the *global* batch.
      every: evaluate every so many steps, as of [`gradient_penalty`][].
      mode: ``"linearize"``, ``"forward"`` or ``"central"``.
      step: the length of a finite-difference step.
      mask: the leaves that count in the norms.
      group_mode: ``"vmap"``: all at once; ``"loop"``: the memory of one micro-batch at a time;
        ``"auto"``: a loop on a single CPU device, else all at once.
      axis_name: inside ``shard_map`` or ``pmap``, the axes of the batch.
      diagnostics: keep the mean squared norm in the state.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`PenaltyState`][]; ``update`` takes
      ``batch`` (and ``args``).

    Raises:
      ValueError: for a batch that is not divisible, and as in [`gradient_penalty`][].

    Example:
      >>> import flatjax, jax, jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean((x * w) ** 2) / 2
      >>> w, x = jnp.array(1.0), jnp.array([1.0, 2.0])
      >>> tx = flatjax.stochastic_implicit_gradient_regularization(
      ...     0.4, loss_fn=loss, micro_batches=2
      ... )
      >>> out, _ = tx.update(jax.grad(loss)(w, x), tx.init(w), w, batch=x)
      >>> round(float(out), 2)
      4.2
    """
    name = "stochastic_implicit_gradient_regularization"
    check_mode(mode, step)
    check_group_mode(group_mode)
    parts = base.static_int("micro_batches", micro_batches, 1)
    mean = callables.mean_loss(loss_fn)

    def evaluate(params, updates, incoming, key, count, extra):
        del updates, incoming, key, count
        batch, args = extra.get("batch"), extra.get("args", ())
        base.require_batch(name, batch)
        here = collectives.varying(params, axis_name)

        def one(index, part, within):
            a = args if parts == 1 else prng.fold(args, index)

            def gradient(w):
                w = collectives.varying(w, axis_name)
                g, weight = jax.grad(mean, has_aux=True)(w, part, *a)
                return within(g, weight), weight

            point = params if parts == 1 else here
            found = hessian_product(gradient, point, mode=mode, step=step, mask=mask)
            return (found.product, found.value), found.extra, None

        return mean_over_groups(one, batch, parts, axis_name, group_mode)[0]

    return penalties.penalty_transform(
        name, evaluate, coef=_fraction(learning_rate, 4), every=every, seed=None,
        axis_name=axis_name, diagnostics=diagnostics,
    )  # fmt: skip
