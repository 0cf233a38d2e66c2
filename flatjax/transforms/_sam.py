"""Sharpness-aware minimisation: the gradient at the worst point nearby.

As a transform it stands at the *head* of a chain, so that clipping, weight decay and the optimiser
see the new gradient.
"""

import functools
import typing
from collections.abc import Callable
from typing import Any

import jax
import optax

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.transforms import _base as base
from flatjax.transforms import _callables as callables
from flatjax.transforms import _means as means
from flatjax.transforms import _prng as prng
from flatjax.transforms._ascent import EUCLIDEAN, Ascent
from flatjax.transforms._groups import GroupMode, mean_over_groups
from flatjax.transforms._perturbed import perturbed_gradient
from flatjax.transforms._sharpness_aware import gap_function, sharpness_aware, whole_problem


def sam(
    rho: base.Scalar = 0.05,
    *,
    ascent: Ascent = EUCLIDEAN,
    ascent_steps: int | None = None,
    second_order: bool = False,
    every: base.Number = 1,
    groups: int | None = None,
    loss_fn: Callable[..., jax.Array] | None = None,
    group_mode: GroupMode = "auto",
    axis_name: collectives.AxisName = None,
    diagnostics: bool = False,
    check: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Sharpness-aware minimisation, at the head of a chain.

    Minimises $\max_{\lVert \epsilon \rVert_p \le \rho} L(w + \epsilon)$: replaces the incoming
    gradient $g$ by $\nabla L(w + \epsilon)$ with the maximiser $\epsilon$ of $\langle g, \epsilon
    \rangle$ in a ball of radius $\rho$; for the Euclidean one $\epsilon = \rho\, g / \lVert g
    \rVert_2$. ``ascent=flatjax.Ascent(adaptive=True)`` is ASAM, in a ball that scales with the
    weights (its paper has ``rho`` 0.5 for CIFAR-10 and 1.0 for CIFAR-100);
    ``Ascent(normalize=False)`` is USAM, ``Ascent(p=...)`` takes another norm.

    ``update`` takes ``grad_fn(params)`` or ``value_fn(params)``. Norms are global, in at least
    float32; a zero gradient gives a zero perturbation. Keep float32 masters where you compute in
    bfloat16: in bfloat16 *storage* a perturbation of 0.05 over ten million weights changes less
    than a fifth of them.

    Cost: 2 gradients per step (``ascent_steps`` + 1; with ``every=k``, 1 + 1/k), one more copy of
    the params. ``second_order`` adds a Hessian product (about 3 gradients) per ascent step.

    Args:
      rho: the radius, a number or a schedule of the step count.
      ascent: the ball, and what of the params moves in it: see [`Ascent`][].
      ascent_steps: gradient steps to the worst point, each of length ``rho / ascent_steps``;
        default 1.
      second_order: add the derivative of the perturbation, which the paper drops: the update is
        then the exact gradient of $w \mapsto L(w + \epsilon(w))$.
      every: perturb on every k-th step only (a conditional: the other steps pay one gradient, and
        pass it on; under ``vmap`` a cond computes both).
      groups: m-sharpness: cut the global batch into this many groups, each with a perturbation of
        its own, whatever the number of devices. Needs ``loss_fn`` here and ``batch`` (and ``args``)
        in ``update``, unless ``groups`` is the number of devices of ``axis_name``.
      loss_fn: ``loss_fn(params, batch, *args)``, for ``groups``: the mean, per-example losses or a
        [`Mean`][], by whose weights the groups then count. Typed keys among ``args`` are folded
        with the group's index.
      group_mode: ``"vmap"``: all groups at once; ``"loop"``: the memory of one group at a time;
        ``"auto"``: a loop on a single CPU device, else all at once.
      axis_name: inside ``shard_map`` or ``pmap``: the incoming gradient, ``grad_fn`` and ``batch``
        are those of this device, the outgoing update is the mean over all. Gradients that you take
        (the incoming one, ``grad_fn``) are averaged over devices equally: where their losses have
        other weights, use ``groups`` with ``loss_fn``, or [`sam_value_and_grad`][].
      diagnostics: keep [`SharpnessMetrics`][] in the state; needs ``value_fn`` in ``update``, for
        two forward passes.
      check: at the first call, if it is eager, spend one more gradient to compare the incoming
        updates with ``grad_fn(params)``, up to rounding: clipping or weight decay before SAM would
        be lost. Under ``jit`` only trace it once more, to see that it reads its argument. ``False``
        for a ``grad_fn`` with a dropout key or a batch of its own.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`SAMState`][].

    Raises:
      TypeError: if ``ascent`` is no [`Ascent`][].
      ValueError: for ``rho`` < 0, ``every`` < 1 or an unknown mode; in ``update``,
        without params, without ``grad_fn`` and ``value_fn``, or where a first eager call shows that
        something stands before the transform that would be lost.

    Example:
      >>> import flatjax, jax, jax.numpy as jnp, optax
      >>> loss = lambda w: jnp.sum(jnp.array([1.0, 4.0]) * w**2) / 2
      >>> tx = optax.chain(flatjax.sam(rho=0.5), optax.sgd(0.1))
      >>> w = jnp.array([3.0, 1.0])
      >>> state = tx.init(w)
      >>> updates, state = tx.update(jax.grad(loss)(w), state, w, grad_fn=jax.grad(loss))
      >>> updates.round(2).tolist()
      [-0.33, -0.56]

    References:
      Foret, Kleiner, Mobahi and Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving
      Generalization", ICLR 2021. Those of the balls are with [`Ascent`][].
    """
    base.check_every(every)
    checks.check_choice("group_mode", group_mode, typing.get_args(GroupMode))
    steps = base.static_int("ascent_steps", ascent_steps)
    parts = base.static_int("groups", groups)

    options: dict[str, Any] = {"steps": steps, "second_order": second_order}
    if parts == 1:
        problem = whole_problem("sam", ascent, axis_name, diagnostics, **options)
    else:
        losses = functools.partial(_group_losses, parts, loss_fn, axis_name, diagnostics)

        def problem(params, radius, /, batch=None, args=(), grad_fn=None, value_fn=None, **extra):
            del extra
            if loss_fn is not None:
                base.require_batch("sam(groups=...)", batch, params, args, axis_name)
            value, local = losses(batch, args, grad_fn, value_fn)

            def perturbed(incoming):
                def group(index, part, within):
                    here = collectives.varying(params, axis_name)
                    here_gradient = lambda w: within(*local(w, part, index))  # noqa: E731
                    own, weight = local(here, part, index)
                    g = trees.cast(within(own, weight), incoming)
                    gap = (lambda w: within(*value(w, part, index))) if diagnostics else None
                    result = perturbed_gradient(
                        ascent, here_gradient, g, here, radius, value_fn=gap, **options
                    )
                    return result, weight, None

                return mean_over_groups(group, batch, parts, axis_name, group_mode)[0]

            return means.weighed(lambda w: local(w, batch, None), axis_name), perturbed

    def step(g, perturbed, state, params, extra):
        del params, extra

        def look():
            out, metrics = perturbed()
            return out, state._replace(metrics=metrics)

        return base.on_every(every, state.count, look, lambda: (g, state))

    return sharpness_aware("sam", step, rho, ascent, axis_name, diagnostics, check, problem=problem)


def _group_losses(
    parts, loss_fn, axis_name, diagnostics, batch, args, grad_fn, value_fn
) -> tuple[Any, Callable[..., tuple[Tree, Any]]]:
    """Loss and gradient on this device's part of a group, ``(params, part, index)``.

    Both come with the weight of that part.
    """
    if loss_fn is not None:
        mean = callables.mean_loss(loss_fn)

        def value(params, part, index):
            # Each group has a dropout of its own; `None` is the whole batch.
            a = args if index is None else prng.fold(args, index)
            return mean(params, part, *a)

        return value, jax.grad(value, has_aux=True)
    if axis_name is None or collectives.axis_size(axis_name) != parts:
        raise ValueError(
            f"sam(groups={parts}) evaluates the loss of each group: pass loss_fn= to sam and "
            "batch= to update. grad_fn alone serves where groups is the number of devices of "
            "axis_name."
        )
    gradient = callables.gradient_function("sam", grad_fn, value_fn, axis_name)
    gap_function("sam", diagnostics, value_fn, axis_name)  # raises where it is missing
    loss = diagnostics and callables.value_function("sam", value_fn, axis_name)
    return (
        loss and (lambda params, *_: (loss(params), None)),
        lambda params, *_: (gradient(params), None),
    )
