"""The gradient at the worst point nearby, and what it tells."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatjax import _balls as balls
from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.transforms import _base as base
from flatjax.transforms import _callables as callables
from flatjax.transforms._ascent import Ascent


class SharpnessMetrics(NamedTuple):
    r"""Diagnostics of the last perturbed gradient.

    Attributes:
      grad_norm: Euclidean norm of the gradient at the params.
      perturbation_norm: Euclidean norm of the perturbation.
      sharpness_gap: $L(w + \epsilon) - L(w)$.
      cosine: the cosine between the gradient and the perturbed gradient; 0 where one vanishes.
    """

    grad_norm: jax.Array
    perturbation_norm: jax.Array
    sharpness_gap: jax.Array
    cosine: jax.Array


class Perturbed(NamedTuple):
    """A perturbed gradient and how it came about.

    Attributes:
      gradient: the gradient at the perturbed params.
      norm: the Euclidean norm of the perturbation.
      gap: the rise of the loss, ``nan`` without a ``value_fn``.
    """

    gradient: Tree
    norm: jax.Array
    gap: jax.Array


def perturbed_gradient(
    ascent: Ascent,
    gradient_fn: callables.Gradient,
    gradient: Tree,
    params: Tree,
    rho: Any,
    *,
    steps: int = 1,
    second_order: bool = False,
    value_fn: Callable[[Tree], Any] | None = None,
) -> Perturbed:
    r"""The gradient at the perturbed params.

    With ``steps`` > 1, $\epsilon_{j+1} = \epsilon_j + (\rho / n)\,\hat g(w + \epsilon_j)$, which
    cannot leave the ball. With ``second_order`` the exact gradient of
    $w \mapsto L(w + \epsilon(w))$: the Hessian is symmetric, so its transposed products are the
    forward ones (jvp of the gradient).

    Args:
      ascent: how a gradient becomes a perturbation.
      gradient_fn: the gradient as a function of the params.
      gradient: its value at ``params``.
      params: the params.
      rho: the radius.
      steps: ascent steps; ``steps - 1`` more gradients.
      second_order: keep the derivative of the perturbation; ``steps`` Hessian products more.
      value_fn: the loss, for the gap; two forward passes more.

    Returns:
      A [`Perturbed`][].
    """
    share = jnp.asarray(rho) / steps if steps > 1 else rho
    epsilon = ascent.perturbation(gradient, params, share)
    tape = [(params, gradient)]
    for _ in range(steps - 1):
        point = balls.moved(params, epsilon)
        there = gradient_fn(point)
        tape.append((point, there))
        epsilon = jax.tree.map(jnp.add, epsilon, ascent.perturbation(there, params, share))
    point = balls.moved(params, epsilon)
    out = trees.cast(gradient_fn(point), gradient)

    if second_order:
        # Backwards through epsilon_n(w); `carry` is the cotangent of epsilon_{j+1} and `total` that
        # of w.
        total = carry = out
        for j, (at, there) in reversed(list(enumerate(tape))):
            _, pull = jax.vjp(lambda g, w: ascent.perturbation(g, w, share), there, params)
            cot_g, cot_w = pull(trees.cast(carry, epsilon))
            _, product = jax.jvp(gradient_fn, (at,), (trees.cast(cot_g, at),))
            total = base.combine(1.0, total, 1.0, cot_w)
            total = base.combine(1.0, total, 1.0, product)
            if j:
                carry = base.combine(1.0, carry, 1.0, product)
        out = total

    dtype = trees.dtype(params)
    gap = jnp.full((), jnp.nan, dtype)
    if value_fn is not None:
        gap = (value_fn(point) - value_fn(params)).astype(dtype)
    return Perturbed(out, trees.norm(epsilon).astype(dtype), gap)


def cosine(a: Tree, b: Tree) -> jax.Array:
    """The cosine between two trees, 0 where one is zero."""
    scale = trees.norm(a) * trees.norm(b)
    safe = jnp.where(scale == 0, jnp.ones_like(scale), scale)
    return trees.vdot(a, b) / safe


def measured(gradient: Tree, result: Perturbed, like: SharpnessMetrics) -> SharpnessMetrics:
    """The diagnostics of a perturbed gradient, in the dtypes of ``like``."""
    metrics = SharpnessMetrics(
        trees.norm(gradient), result.norm, result.gap, cosine(gradient, result.gradient)
    )
    return trees.cast(metrics, like)


def initial_metrics(params: Tree) -> SharpnessMetrics:
    """Zeros, in at least float32."""
    # Four arrays: one buffer cannot be donated four times.
    return SharpnessMetrics(*(jnp.zeros((), trees.dtype(params)) for _ in range(4)))


def head(
    name: str,
    updates: Tree,
    params: Tree,
    grad_fn: callables.Gradient | None,
    value_fn: Callable[[Tree], Any] | None,
    axis_name: collectives.AxisName,
) -> tuple[callables.Gradient, Tree]:
    """What a transform at the head of a chain starts from, checked.

    Returns:
      The global gradient as a function of the params, and the incoming gradient, averaged.
    """
    check_trees(name, updates, params)
    local = callables.gradient_function(name, grad_fn, value_fn, axis_name)
    gradient = base.averaged(local, axis_name)
    return gradient, base.average(updates, axis_name)


def check_trees(name: str, updates: Tree, params: Tree) -> None:
    """Raise unless the params are whole, floating arrays and the updates look like them."""
    base.require_params(name, params)
    callables.check_params(name, params)
    callables.check_gradient(f"{name}: the incoming updates are", updates, params)


def gap_function(
    name: str,
    diagnostics: bool,
    value_fn: Callable[[Tree], Any] | None,
    axis_name: collectives.AxisName,
) -> Callable[[Tree], Any] | None:
    """The global loss, where the sharpness gap is asked for."""
    if not diagnostics:
        return None
    if value_fn is None:
        raise ValueError(
            f"{name}(diagnostics=True) reports the sharpness gap, for which it needs the loss: "
            "call update(..., value_fn=lambda p: loss_fn(p, batch)), beside grad_fn or alone."
        )
    return base.averaged(callables.value_function(name, value_fn, axis_name), axis_name)


def rejection(a: Tree, b: Tree) -> tuple[Tree, Tree]:
    """``a`` without its component along ``b``, and that component; no component along zero."""
    wide = trees.cast(b, trees.structure_of(b))
    unit = balls.dual_direction(wide)
    along = base.scaled(trees.vdot(a, unit), trees.cast(unit, trees.structure_of(a)))
    return base.combine(1.0, trees.cast(a, trees.structure_of(a)), -1.0, along), along
