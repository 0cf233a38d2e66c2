"""What the transforms share that take the gradient at the worst point nearby."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.transforms import _base as base
from flatjax.transforms import _callables as callables
from flatjax.transforms import _means as means
from flatjax.transforms._ascent import Ascent, check_ascent
from flatjax.transforms._incoming import check_incoming, check_trees, global_gradient
from flatjax.transforms._perturbed import Perturbed, perturbed_gradient


@reading.readable
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


@reading.readable
class SAMState(NamedTuple):
    """State of [`sam`][], [`gsam`][], [`gradient_norm_penalty`][] and [`wsam`][].

    Attributes:
      count: the number of updates.
      metrics: [`SharpnessMetrics`][] with ``diagnostics=True``, else ``()``.
    """

    count: jax.Array
    metrics: Any


def sharpness_aware(
    name: str,
    step: Callable[..., tuple[Tree, Any]],
    rho: base.Scalar,
    ascent: Ascent,
    axis_name: collectives.AxisName,
    diagnostics: bool,
    check: bool,
    *,
    init: Callable[[Tree], Any] = lambda params: SAMState(base.start(), ()),
    problem: Callable[..., tuple[Any, Callable[[Tree], Perturbed]]] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A head-of-chain transform around the gradient at the perturbed params.

    It is ``step(g, perturbed, state, params, extra) -> (updates, state)`` with the incoming
    gradient ``g`` and ``perturbed(along=g) -> (gradient, metrics)``, on a state that ``init`` makes
    and whose ``count`` is kept here. A ``problem`` other than ``whole_problem`` says where the
    gradients come from. The other arguments are those of [`sam`][].
    """
    check_ascent(ascent)
    checks.check_scalar("rho", rho, minimum=0.0, schedule=True)
    pose = problem or whole_problem(name, ascent, axis_name, diagnostics)

    def start(params):
        state = init(params)
        return state._replace(metrics=initial_metrics(params)) if diagnostics else state

    def update(updates, state, params=None, **extra):
        check_trees(name, updates, params)
        g = means.average(updates, axis_name)
        gradient, at_worst = pose(params, base.at(rho, state.count, trees.dtype(params)), **extra)

        def perturbed(along=g):
            result = at_worst(along)
            metrics = measured(g, result, state.metrics) if diagnostics else ()
            return trees.cast(result.gradient, g), metrics

        out, new = step(g, perturbed, state, params, extra)
        if check:
            check_incoming(name, g, out, gradient, params, state.count)
        return out, new._replace(count=base.advance(state.count))

    return base.head_of_chain(start, update)


def whole_problem(
    name: str, ascent: Ascent, axis_name: collectives.AxisName, diagnostics: bool, **options
) -> Callable[..., tuple[callables.Gradient, Callable[[Tree], Perturbed]]]:
    """The global gradient, and that at its worst point, by the functions given to ``update``."""

    def problem(params, radius, /, grad_fn=None, value_fn=None, **extra):
        del extra
        gradient = global_gradient(name, grad_fn, value_fn, axis_name)
        gap = gap_function(name, diagnostics, value_fn, axis_name)

        def at_worst(along):
            return perturbed_gradient(
                ascent, gradient, along, params, radius, value_fn=gap, **options
            )

        return gradient, at_worst

    return problem


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
    return means.averaged(callables.value_function(name, value_fn, axis_name), axis_name)
