"""The implicit regularisers of gradient descent and of SGD, made explicit."""

import typing
from collections.abc import Callable
from typing import Literal

import jax
import optax

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax.transforms import _base as base
from flatjax.transforms import _callables as callables
from flatjax.transforms import _means as means
from flatjax.transforms import _prng as prng
from flatjax.transforms._ascent import Mask
from flatjax.transforms._gradient_penalty import training_penalty
from flatjax.transforms._groups import GroupMode, mean_over_groups, split
from flatjax.transforms._hessian_product import HessianProduct, Mode
from flatjax.transforms._penalty_transform import penalty


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

    Gradient descent with step $h$ follows the gradient flow of this loss to second order in $h$;
    the update is $g + \frac h2 H g$.

    On a mini-batch $\mathbb E \lVert g_B \rVert^2 = \lVert \mathbb E g \rVert^2 +
    \mathrm{tr}\,\Sigma / B$. ``estimator="halves"`` penalises
    $\langle g_A, g_B \rangle$ over the two halves of the batch instead, an unbiased estimate of
    $\lVert \mathbb E g \rVert^2$ (it may be negative), with gradient $H_A g_B + H_B g_A$. With
    ``axis_name`` the halves are those of every device's shard: another pair of halves, equally
    unbiased.

    The cost is that of [`gradient_penalty`][], for ``"halves"`` over two half batches, and so are
    the arguments that have one line here.

    Args:
      learning_rate: $h$, a number or a schedule: the learning rate whose regulariser is added.
      loss_fn: ``loss_fn(params, batch, *args)``, for ``"halves"``: mean or per-example losses, or a
        [`Mean`][]; ``update`` then takes ``batch`` (and ``args``).
      estimator: ``"batch"`` or ``"halves"``.
      every: steps between evaluations.
      mode: ``"linearize"``, ``"forward"`` or ``"central"``.
      step: the length of a finite-difference step.
      mask: the leaves that count in the norm.
      axis_name: the axes of the batch.
      diagnostics: keep the squared norm, or its estimate, in the state.
      check: look at the incoming updates at the first eager call, for ``"batch"``.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`PenaltyState`][].

    Raises:
      ValueError: for ``learning_rate`` < 0, an unknown ``estimator``, ``"halves"`` without
        ``loss_fn`` or with a batch of odd size, and wherever [`gradient_penalty`][] raises it.

    Example:
      >>> import flatjax, jax, jax.numpy as jnp
      >>> loss = lambda w: jnp.sum(jnp.array([1.0, 2.0]) * w**2) / 2
      >>> w = jnp.array([1.0, 1.0])
      >>> tx = flatjax.implicit_gradient_regularization(0.4)
      >>> out, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, grad_fn=jax.grad(loss))
      >>> out.round(2).tolist()
      [1.20, 2.80]

    References:
      Barrett and Dherin, "Implicit Gradient Regularization", ICLR 2021.
    """
    name = "implicit_gradient_regularization"
    checks.check_choice("estimator", estimator, ("batch", "halves"))
    product, coef = HessianProduct(mode, step, mask), _quarter(learning_rate)
    if estimator == "batch":
        return training_penalty(
            name, product, axis_name, check, coef=coef, every=every, diagnostics=diagnostics
        )
    if loss_fn is None:
        raise ValueError(f'{name}(estimator="halves") needs loss_fn=, and batch= in update.')
    mean = callables.mean_loss(loss_fn)

    def term(at):
        base.require_batch(name, at.batch, at.params, at.args, axis_name)
        halves = split(at.batch, 2, "halves")

        def of_half(index):
            part, args = jax.tree.map(lambda a: a[index], halves), prng.fold(at.args, index)

            def gradient(w):
                w = collectives.varying(w, axis_name)
                g, weight = jax.grad(mean, has_aux=True)(w, part, *args)
                g = means.average(g, axis_name, weight)
                if weight is None:
                    return g, None
                empty = collectives.total(weight, axis_name) == 0  # a half with nothing to penalise
                return base.where(empty, base.zeros_like(g), g), None

            g, apply, _ = product.linear_part(gradient, at.params)
            return product.counted(g, at.params), apply

        (v_a, apply_a), (v_b, apply_b) = of_half(0), of_half(1)
        # coef <g_A, g_B> has the gradient coef (H_A g_B + H_B g_A); a factor 2 comes later.
        return base.combine(0.5, apply_a(v_b), 0.5, apply_b(v_a)), trees.vdot(v_a, v_b)

    return penalty(name, term, coef=coef, every=every, axis_name=axis_name, diagnostics=diagnostics)


def _quarter(learning_rate: base.Scalar) -> base.Scalar:
    checks.check_scalar("learning_rate", learning_rate, minimum=0.0, schedule=True)
    if callable(learning_rate):
        return lambda count: learning_rate(count) / 4
    return learning_rate / 4


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
    loss. The update is $g + \frac{h}{2 m} \sum_k H_k g_k$. ``micro_batches=1`` is
    [`implicit_gradient_regularization`][].

    Cost: 3 gradients over the batch (``"linearize"``), with ``group_mode="vmap"`` in the memory of
    ``micro_batches`` of them; 2 more than the training gradient (``"forward"``). The arguments that
    have one line here are those of [`gradient_penalty`][].

    Args:
      learning_rate: $h$, a number or a schedule.
      loss_fn: ``loss_fn(params, batch, *args)``: mean or per-example losses, or a [`Mean`][], by
        whose weights the micro-batches then count.
      micro_batches: m, the number of contiguous, equal parts of the *global* batch.
      every: steps between evaluations.
      mode: ``"linearize"``, ``"forward"`` or ``"central"``.
      step: the length of a finite-difference step.
      mask: the leaves that count in the norms.
      group_mode: ``"vmap"``: all at once; ``"loop"``: the memory of one micro-batch at a time;
        ``"auto"``: a loop on a single CPU device, else all at once.
      axis_name: the axes of the batch.
      diagnostics: keep the mean squared norm in the state.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`PenaltyState`][]; ``update`` takes
      ``batch`` (and ``args``).

    Raises:
      ValueError: for ``learning_rate`` < 0, an unknown ``group_mode``, a batch that is not
        divisible, and wherever [`gradient_penalty`][] raises it.

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

    References:
      Smith, Dherin, Barrett and De, "On the Origin of Implicit Regularization in Stochastic
      Gradient Descent", ICLR 2021; Geiping et al., "Stochastic Training is Not Necessary for
      Generalization", ICLR 2022 (training with full batches).
    """
    name = "stochastic_implicit_gradient_regularization"
    checks.check_choice("group_mode", group_mode, typing.get_args(GroupMode))
    product, coef = HessianProduct(mode, step, mask), _quarter(learning_rate)
    parts, mean = base.static_int("micro_batches", micro_batches), callables.mean_loss(loss_fn)

    def term(at):
        base.require_batch(name, at.batch, at.params, at.args, axis_name)

        def one(index, part, within):
            args = at.args if parts == 1 else prng.fold(at.args, index)

            def gradient(w):
                w = collectives.varying(w, axis_name)
                g, weight = jax.grad(mean, has_aux=True)(w, part, *args)
                return within(g, weight), weight

            point = at.params if parts == 1 else collectives.varying(at.params, axis_name)
            found = product.of_squared_norm(gradient, point)
            return (found.product, found.value), found.extra, None

        return mean_over_groups(one, at.batch, parts, axis_name, group_mode)[0]

    return penalty(name, term, coef=coef, every=every, axis_name=axis_name, diagnostics=diagnostics)
