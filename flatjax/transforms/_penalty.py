r"""The gradient of a squared gradient norm: a Hessian-gradient product.

$\nabla \lVert \nabla L \rVert^2 = 2 H g$. Three ways to the product $H g$, none of which is the
reverse-over-reverse derivative of the naive ``grad(lambda w: norm(grad(L)(w))**2)`` (which costs up
to 4 gradients, and 10 times the time on convolutions on a CPU):

- ``"linearize"``: exact; one linearised gradient, then its linear part applied to $g$. 3 gradients
  in all, and the memory of the residuals (about 3 times that of a gradient).
- ``"forward"``: $(\nabla L(w + r\,u) - g)\,\lVert g \rVert / r$ with $u = g / \lVert g \rVert$; 2
  gradients. Not merely an approximation: Karakida et al. (2023, "Understanding Gradient
  Regularization in Deep Learning") find that it generalises better.
- ``"central"``: the same from both sides; 3 gradients, no residuals.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from flatjax import _balls as balls
from flatjax import _checks as checks
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.transforms import _base as base
from flatjax.transforms._ascent import Mask, expand_mask, select

Mode = Literal["linearize", "forward", "central"]


class Penalty(NamedTuple):
    r"""A squared gradient norm and its derivative.

    Attributes:
      gradient: the gradient $g$ of the loss.
      value: $\lVert g \rVert^2$ over the unmasked leaves.
      product: $H g$, half the derivative of ``value``.
      extra: the auxiliary output of the gradient function.
    """

    gradient: Tree
    value: jax.Array
    product: Tree
    extra: Any = None


def check_mode(mode: str, step: Any) -> None:
    """Raise ``ValueError`` on an unknown mode or a step that is not positive."""
    if mode not in ("linearize", "forward", "central"):
        raise ValueError(f'mode must be "linearize", "forward" or "central", got {mode!r}.')
    checks.check_scalar("step", step, above=0.0)


def squared_norm(tree: Tree) -> jax.Array:
    """The global squared Euclidean norm in at least float32."""
    return trees.vdot(tree, tree)


def hessian_product(
    gradient_fn: Callable[[Tree], tuple[Tree, Any]],
    params: Tree,
    *,
    mode: Mode = "linearize",
    step: Any = 1e-2,
    mask: Mask | None = None,
    gradient: Tree | None = None,
) -> Penalty:
    """The squared norm of a gradient and the Hessian product that is half its derivative.

    Args:
      gradient_fn: ``params -> (gradient, extra)``.
      params: the params.
      mode: how the product is taken, see the module.
      step: the Euclidean length of a finite-difference step in parameter space.
      mask: which leaves count in the norm.
      gradient: the gradient at ``params`` if it is known: the finite differences then spend one
        gradient less.

    Returns:
      A [`Penalty`][]; the product is in the dtypes of the params.
    """
    expanded = expand_mask(mask, params)
    if mode == "linearize":
        g, linear, extra = jax.linearize(gradient_fn, params, has_aux=True)
        v = select(expanded, g)
        return Penalty(g, squared_norm(v), linear(trees.cast(v, params)), extra)

    g, extra = gradient_fn(params) if gradient is None else (gradient, None)
    v = select(expanded, trees.cast(g, trees.structure_of(g)))
    norm = trees.norm(v)
    length = jnp.asarray(step).astype(norm.dtype)
    direction = balls.dual_direction(v)

    def shifted(by):
        point = jax.tree.map(lambda d: by.astype(d.dtype) * d, direction)
        return gradient_fn(balls.moved(params, point))[0]

    if mode == "forward":
        difference = base.combine(1.0, shifted(length), -1.0, g)
        product = base.scaled(norm / length, difference)
    else:
        difference = base.combine(1.0, shifted(length), -1.0, shifted(-length))
        product = base.scaled(norm / (2 * length), difference)
    return Penalty(g, squared_norm(v), product, extra)
