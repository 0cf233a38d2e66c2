"""The gradient at the worst point nearby."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _balls as balls
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.transforms import _base as base
from flatjax.transforms import _callables as callables
from flatjax.transforms._ascent import Ascent


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
    cannot leave the ball, for ``steps - 1`` more gradients. With ``second_order`` the exact
    gradient of $w \mapsto L(w + \epsilon(w))$, for ``steps`` Hessian products more: the Hessian is
    symmetric, so its transposed products are the forward ones (jvp of the gradient).

    ``gradient`` is the value of ``gradient_fn`` at ``params``. The gap needs ``value_fn``, the
    loss, for two forward passes more.
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
    # No number, made on the host: under jax_debug_nans one that is computed is an error.
    gap = jax.device_put(np.asarray(np.nan, dtype))
    if value_fn is not None:
        gap = (value_fn(point) - value_fn(params)).astype(dtype)
    return Perturbed(out, trees.norm(epsilon).astype(dtype), gap)


def rejection(a: Tree, b: Tree) -> tuple[Tree, Tree]:
    """``a`` without its component along ``b``, and that component; no component along zero."""
    wide = trees.cast(b, trees.structure_of(b))
    unit = balls.dual_direction(wide)
    along = base.scaled(trees.vdot(a, unit), trees.cast(unit, trees.structure_of(a)))
    return base.combine(1.0, trees.cast(a, trees.structure_of(a)), -1.0, along), along
