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

import dataclasses
import typing
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
GradientAndExtra = Callable[[Tree], tuple[Tree, Any]]


class Penalty(NamedTuple):
    r"""A squared gradient norm and its derivative.

    Attributes:
      gradient: the gradient $g$ of the loss.
      value: $\lVert g \rVert^2$ over the unmasked leaves, in at least float32.
      product: $H g$, half the derivative of ``value``, in the dtypes of the params.
      extra: the auxiliary output of the gradient function.
    """

    gradient: Tree
    value: jax.Array
    product: Tree
    extra: Any


@dataclasses.dataclass(frozen=True)
class HessianProduct:
    """How a Hessian product is taken, and over which leaves the gradient norm is.

    Attributes:
      mode: see the module.
      step: the Euclidean length of a finite-difference step.
      mask: which leaves count in the norm.
    """

    mode: Mode
    step: Any
    mask: Mask | None = None

    def __post_init__(self):
        checks.check_choice("mode", self.mode, typing.get_args(Mode))
        checks.check_scalar("step", self.step, above=0.0)

    def of_squared_norm(
        self, gradient_fn: GradientAndExtra, params: Tree, gradient: Tree | None = None
    ) -> Penalty:
        """The squared norm of a gradient and the Hessian product that is half its derivative.

        ``gradient_fn`` is ``params -> (gradient, extra)``. Where the ``gradient`` at ``params`` is
        known, the finite differences spend one gradient less.
        """
        g, apply, extra = self.linear_part(gradient_fn, params, gradient)
        v = self.counted(g, params)
        return Penalty(g, trees.vdot(v, v), apply(v), extra)

    def counted(self, gradient: Tree, params: Tree) -> Tree:
        """The gradient, zero in the leaves that do not count."""
        return select(expand_mask(self.mask, params), gradient)

    def linear_part(
        self, gradient_fn: GradientAndExtra, params: Tree, gradient: Tree | None = None
    ) -> tuple[Tree, Callable[[Tree], Tree], Any]:
        """The gradient, its derivative as a map ``v -> H v``, and the auxiliary output."""
        if self.mode == "linearize":
            g, linear, extra = jax.linearize(gradient_fn, params, has_aux=True)
            return g, lambda v: linear(trees.cast(v, params)), extra
        g, extra = gradient_fn(params) if gradient is None else (gradient, None)
        return g, lambda v: self.derivative(lambda w: gradient_fn(w)[0], params, v, g), extra

    def derivative(
        self, fn: Callable[[Tree], Tree], point: Tree, v: Tree, value: Tree | None = None
    ) -> Tree:
        """The derivative of ``fn`` along ``v``; ``value`` is ``fn(point)`` if it is known."""
        if self.mode == "linearize":
            return jax.jvp(fn, (point,), (trees.cast(v, point),))[1]
        v = trees.cast(v, trees.structure_of(v))
        norm, direction = trees.norm(v), balls.dual_direction(v)
        length = jnp.asarray(self.step).astype(norm.dtype)

        def shifted(by):
            return fn(balls.moved(point, base.scaled(by, direction)))

        if self.mode == "central":
            other, width = shifted(-length), 2 * length
        else:
            other, width = fn(point) if value is None else value, length
        return base.scaled(norm / width, base.combine(1.0, shifted(length), -1.0, other))
