"""Drop-in replacements for ``jax.value_and_grad``, for any trainer.

An oracle hands out the gradient of SAM or of a gradient penalty where the caller asked for that of
the loss: nothing else in the training loop changes, and no extra arguments have to reach the
optimiser (flax's ``TrainState`` does not forward them).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.transforms import _base as base
from flatjax.transforms._ascent import EUCLIDEAN, Ascent, Mask, check_ascent
from flatjax.transforms._hessian_product import HessianProduct, Mode
from flatjax.transforms._parts import LossOverParts
from flatjax.transforms._perturbed import perturbed_gradient


def sam_value_and_grad(
    loss_fn: Callable[..., Any],
    *,
    rho: base.Number = 0.05,
    ascent: Ascent = EUCLIDEAN,
    ascent_steps: int = 1,
    second_order: bool = False,
    alpha: base.Number = 1.0,
    has_aux: bool = False,
    groups: int = 1,
    accumulate: int = 1,
    axis_name: collectives.AxisName = None,
    check: bool = True,
) -> Callable[..., tuple[Any, Tree]]:
    r"""``jax.value_and_grad`` with the gradient of sharpness-aware minimisation.

    The gradient is $(1 - \alpha) \nabla L(w) + \alpha \nabla L(w + \epsilon)$ with the $\epsilon$
    of [`sam`][]; $\alpha = 1$ is SAM, $\alpha < 1$ that of [`gradient_norm_penalty`][].

    Value and auxiliary output are those of the clean pass: batch-norm statistics of both passes
    would count every batch twice. Both passes see the same arguments, hence the same dropout.

    Cost: ``ascent_steps`` + 1 gradients. With ``groups`` the memory of one group at a time on a
    single CPU device, else of all at once; with ``accumulate=k`` that of a k-th of the batch.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``: the mean over the examples, per-example losses or
        a [`Mean`][]; with ``has_aux`` a pair of that and anything. Groups, micro-batches and
        devices count by the weights of their ``Mean``, else equally; one of weight zero does not
        count.
      rho: the radius. A traced scalar is welcome: build the oracle inside the step and evaluate the
        schedule there.
      ascent: the ball, and what of the params moves in it: see [`Ascent`][].
      ascent_steps: gradient steps to the worst point.
      second_order: the exact gradient of $w \mapsto L(w + \epsilon(w))$.
      alpha: the weight of the perturbed gradient.
      has_aux: whether ``loss_fn`` returns ``(loss, aux)``. Of groups, micro-batches and devices the
        floating leaves of ``aux`` are averaged; integers and booleans are expected to agree (the
        parts of an eager call are compared): return means of metrics, not counts.
      groups: m-sharpness: every group of the *global* batch has a perturbation of its own, whatever
        the number of devices. Typed keys among the arguments are folded with the group's index.
      accumulate: take every gradient as the mean over this many micro-batches, one after another:
        the perturbation is still that of the whole batch (of the group). ``optax.MultiSteps``
        around a SAM transform is no substitute, it keeps the last micro-batch only.
      axis_name: inside ``shard_map`` or ``pmap``: the batch is this device's shard; value and
        gradient are the means over all devices, the perturbation is global unless ``groups`` > 1.
      check: with ``accumulate``, at the first call, if it is eager: evaluate a scalar loss on a few
        examples and on their halves, and raise unless it is the mean over them. ``False`` for a
        loss that is stochastic (dropout: the halves draw other numbers) or uses batch statistics.
        A jitted call is not looked at.

    Returns:
      A function with the arguments of ``loss_fn``, the params and the batch by position, that
      returns ``(value, grads)``, or ``((value, aux), grads)`` with ``has_aux``.

    Raises:
      ValueError: for ``rho`` < 0, a batch that is not divisible, or an accumulated scalar that is
        no mean over the examples.

    Example:
      >>> import flatjax, jax.numpy as jnp
      >>> loss = lambda w, batch: jnp.mean((batch @ w) ** 2) / 2
      >>> step = flatjax.sam_value_and_grad(loss, rho=0.5)
      >>> value, grads = step(jnp.array([1.0, 0.0]), jnp.eye(2))
      >>> float(value), grads.tolist()
      (0.25, [0.75, 0.0])

    References:
      Foret, Kleiner, Mobahi and Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving
      Generalization", ICLR 2021.
    """
    check_ascent(ascent)
    checks.check_scalar("rho", rho, minimum=0.0)
    checks.check_scalar("alpha", alpha)
    steps = base.static_int("ascent_steps", ascent_steps)
    plain = not isinstance(alpha, jax.core.Tracer) and float(alpha) == 1.0
    oracle = LossOverParts(loss_fn, has_aux, groups, accumulate, axis_name, check)

    def group(params, evaluate, within):
        def gradient_fn(w):
            (_, g), weight, _ = evaluate(w)
            return within(g, weight)

        (loss, g), weight, extra = evaluate(params)
        loss, g = within(loss, weight), within(g, weight)
        result = perturbed_gradient(
            ascent, gradient_fn, g, params, rho, steps=steps, second_order=second_order
        )
        out = result.gradient if plain else base.combine(1 - alpha, g, alpha, result.gradient)
        return (loss, out), weight, extra

    return oracle.wrap(group)


def penalty_value_and_grad(
    loss_fn: Callable[..., Any],
    *,
    coef: base.Number,
    penalty_fn: Callable[..., jax.Array] | None = None,
    mode: Mode = "linearize",
    step: base.Number = 1e-2,
    mask: Mask | None = None,
    has_aux: bool = False,
    groups: int = 1,
    accumulate: int = 1,
    axis_name: collectives.AxisName = None,
    check: bool = True,
) -> Callable[..., tuple[Any, Tree]]:
    r"""``jax.value_and_grad`` of $L + \lambda \lVert \nabla L \rVert^2$, $\lambda$ = ``coef``.

    The gradient is $g + 2 \lambda H g$, with $g$ the *mean* gradient of the batch (for the sum of
    per-example squared norms set ``groups`` to the batch size). With ``groups`` = m the penalty is
    $(\lambda / m) \sum_k \lVert \nabla L_k \rVert^2$ (for a [`Mean`][] the weighted mean): with
    $\lambda = h / 4$ the implicit regulariser of SGD with step $h$ over m micro-batches, and with
    ``groups=1`` that of gradient descent; see [`stochastic_implicit_gradient_regularization`][].

    Cost: 3 gradients and the memory of the residuals (``"linearize"``), 2 (``"forward"``), 3
    (``"central"``); with ``penalty_fn`` one gradient more.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, as of [`sam_value_and_grad`][].
      coef: the coefficient of the *squared* norm.
      penalty_fn: a loss of the same arguments whose gradient is penalised in place of ``loss_fn``'s
        (other labels, for instance).
      mode: ``"linearize"`` (exact), ``"forward"`` or ``"central"`` finite differences.
      step: the Euclidean length of a finite-difference step in parameter space.
      mask: the leaves that count in the norm.
      has_aux: whether ``loss_fn`` returns ``(loss, aux)``; see [`sam_value_and_grad`][].
      groups: cut the global batch into this many, each with a penalty of its own.
      accumulate: take every gradient as the mean over this many micro-batches.
      axis_name: inside ``shard_map`` or ``pmap``, the axes of the batch.
      check: look once that an accumulated scalar loss is a mean over examples.

    Returns:
      A function with the arguments of ``loss_fn``, the params and the batch by position, that
      returns ``(value, grads)``, or ``((value, aux), grads)`` with ``has_aux``.

    Raises:
      ValueError: for a ``coef`` that is not finite, an unknown option, a batch that is not
        divisible, or an accumulated scalar that is no mean over the examples.

    Example:
      >>> import flatjax, jax.numpy as jnp
      >>> loss = lambda w, batch: jnp.sum(batch * w**2) / 2
      >>> oracle = flatjax.penalty_value_and_grad(loss, coef=0.5)
      >>> value, grads = oracle(jnp.array([1.0, 1.0]), jnp.array([1.0, 2.0]))
      >>> float(value), grads.tolist()
      (1.5, [2.0, 6.0])
    """
    checks.check_scalar("coef", coef)
    product = HessianProduct(mode, step, mask)
    oracle = LossOverParts(loss_fn, has_aux, groups, accumulate, axis_name, check)
    other = None if penalty_fn is None else oracle.replace(penalty_fn)

    def group(params, evaluate, within):
        def gradient_fn(w):
            (loss, g), weight, extra = evaluate(w)
            return within(g, weight), (within(loss, weight), weight, extra)

        def other_gradient_fn(w):
            (_, g), weight, _ = evaluate(w, other)
            return within(g, weight), None

        if other is None:
            found = product.of_squared_norm(gradient_fn, params)
            (loss, weight, extra), g = found.extra, found.gradient
        else:
            g, (loss, weight, extra) = gradient_fn(params)
            found = product.of_squared_norm(other_gradient_fn, params)
        grads = base.combine(1.0, g, 2 * jnp.asarray(coef), trees.cast(found.product, g))
        return (loss, grads), weight, extra

    return oracle.wrap(group)
