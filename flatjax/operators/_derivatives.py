"""Derivative products for models that lack a rule: what is tried, in which order.

A function with ``jax.custom_vjp`` (or a Pallas kernel, or a callback) has no forward-mode rule, so
``jvp`` through it raises when it is traced. Where that happens the next way is taken, at trace time
and at no cost for everybody else; the operator's ``method`` says which.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax.operators._base import operator, static
from flatjax.operators._differences import (
    CentralDifference,
    central_difference,
    coarsest,
    dependence,
    equations,
)

FORWARD_OVER_REVERSE = "forward-over-reverse"
REVERSE_OVER_REVERSE = "reverse-over-reverse"
CENTRAL_DIFFERENCE = "central-difference"
FORWARD, DOUBLE_VJP = "jvp", "double-vjp"


class Way(NamedTuple):
    """How a derivative is taken.

    Attributes:
      method: its name.
      noise: the relative error of a product to expect: rounding in the coarsest dtype of params
        and outputs, or the larger one of a central difference.
    """

    method: str
    noise: float


@operator
class Jvp:
    """``v -> J v`` by forward mode, its residuals kept."""

    linear: Any
    way: Any = static()

    def __call__(self, v):
        return self.linear(v)

    def transpose(self, v, cotangent):
        """``J^T u`` for a cotangent ``u``; of ``v``, a vector of the map, only the shapes."""
        return jax.linear_transpose(self.linear, v)(cotangent)[0]


@operator
class DoubleVjp:
    """``v -> J v`` out of reverse mode alone: the transpose of ``u -> J^T u`` (Townsend 2017).

    Attributes:
      vjp: ``u -> (J^T u,)``.
      outputs: an array like the outputs; the map is linear, so its value does not matter.
      way: how it is made.
    """

    vjp: Any
    outputs: Any
    way: Any = static()

    def __call__(self, v):
        return jax.vjp(lambda u: self.vjp(u)[0], self.outputs)[1](v)[0]

    def transpose(self, v, cotangent):
        """``J^T u``."""
        del v
        return self.vjp(cotangent)[0]


@operator
class DifferenceVjp:
    """``v -> J v`` by central differences of the forward pass, ``u -> J^T u`` by the vjp.

    Attributes:
      forward: the central difference.
      vjp: ``u -> (J^T u,)``.
      outputs: an array like the outputs, for its dtype.
      used: for every leaf of the params, whether its gradient can be other than zero. The others
        (behind a ``stop_gradient``, or a kernel that gives its bias none) are not moved: the map
        has to be the transpose of the vjp.
      way: how it is made.
    """

    forward: CentralDifference
    vjp: Any
    outputs: Any
    used: Any = static()
    way: Any = static()

    def __call__(self, v):
        leaves, treedef = jax.tree.flatten(v)
        leaves = [a if u else jnp.zeros_like(a) for a, u in zip(leaves, self.used, strict=True)]
        return trees.cast(self.forward(treedef.unflatten(leaves)), self.outputs)

    def transpose(self, v, cotangent):
        """``J^T u``."""
        del v
        return self.vjp(cotangent)[0]


@operator
class SymmetricVjp:
    """``v -> H v`` as ``H^T v``, the reverse derivative of a gradient."""

    vjp: Any
    way: Any = static()

    def __call__(self, v):
        return self.vjp(v)[0]


def linear_map(fn: Callable[[Any], Any], params: Any) -> tuple[Any, Any]:
    """The value of a function of the params, and its Jacobian product.

    The product is a pytree with a ``transpose`` and its ``way``: ``"jvp"``, ``"double-vjp"`` or
    ``"central-difference"``.
    """
    reverse = functools.cache(lambda: _reverse(fn, params))

    def forward():
        outputs, linear = _linearize(fn, params)
        return outputs, Jvp(linear, Way(FORWARD, coarsest(params, outputs)))

    def double_vjp():
        outputs, vjp, backward = reverse()
        # `u -> J^T u` is linear by definition: where a backward pass stops its derivative, the
        # second vjp is silently zero.
        if "stop_gradient" in backward.operations:
            raise TypeError("the backward pass of a jax.custom_vjp stops its own derivative.")
        way = Way(DOUBLE_VJP, coarsest(params, outputs))
        linear = DoubleVjp(vjp, jax.tree.map(jnp.zeros_like, outputs), way)
        jax.eval_shape(linear, params)  # raises where the backward pass has no derivative
        return outputs, linear

    def difference():
        outputs, vjp, backward = reverse()
        forward = central_difference(fn, params)
        way = Way(CENTRAL_DIFFERENCE, max(forward.noise, coarsest(params, outputs)))
        zeros = jax.tree.map(jnp.zeros_like, outputs)
        return outputs, DifferenceVjp(forward, vjp, zeros, tuple(backward.outputs), way)

    return _first_that_traces(forward, double_vjp, difference)


def _reverse(fn, params):
    outputs, vjp = jax.vjp(fn, params)
    program = jax.make_jaxpr(lambda u: vjp(u)[0])(outputs).jaxpr
    return outputs, vjp, dependence(program, [True] * len(program.invars))


def hessian_product(
    fn: Callable[[Any], Any], params: Any, v: Any, *, like: Any = ()
) -> tuple[Way, Any]:
    """How the product of the Hessian of a scalar function was taken, and the product.

    By ``"forward-over-reverse"``, ``"reverse-over-reverse"`` or ``"central-difference"``. ``v`` has
    the params' dtypes; ``like``, what else the function depends on, is asked whether it is traced.
    """
    gradient, rounding = jax.grad(fn), coarsest(params)

    def difference():
        map_ = central_difference(gradient, params)
        return Way(CENTRAL_DIFFERENCE, max(map_.noise, rounding)), map_(v)

    return _first_that_traces(
        # A jvp and no linearisation: without the residuals kept, XLA can recompute and free as it
        # goes (temporary memory 1.7 gradients instead of 2.3).
        lambda: (Way(FORWARD_OVER_REVERSE, rounding), _jvp(gradient, params, v, like)),
        lambda: (Way(REVERSE_OVER_REVERSE, rounding), jax.vjp(gradient, params)[1](v)[0]),
        difference,
    )


def hessian_map(fn: Callable[[Any], Any], params: Any) -> Any:
    """The linear map ``v -> H v`` of a scalar function with its residuals kept, and its ``way``.

    By ``"forward-over-reverse"`` or ``"reverse-over-reverse"``; central differences keep none.
    """
    gradient, rounding = jax.grad(fn), coarsest(params)
    return _first_that_traces(
        lambda: Jvp(_linearize(gradient, params)[1], Way(FORWARD_OVER_REVERSE, rounding)),
        lambda: SymmetricVjp(jax.vjp(gradient, params)[1], Way(REVERSE_OVER_REVERSE, rounding)),
    )


# Where a function with `jax.custom_vjp` has no forward-mode rule, JAX puts a placeholder of this
# name into the program and raises when that is compiled, which is too late for a fallback.
_PLACEHOLDER = "custom_lin"
_NO_RULE = "can't apply forward-mode autodiff (jvp) to a custom_vjp function."


def _jvp(fn, params, v, like):
    # Eager, JAX raises at once. Traced, it puts the placeholder; under `jit` the program that is
    # looked at is the one that runs, so the model is traced once.
    if not loops.is_traced(params, v, like):
        return jax.jvp(fn, (params,), (v,))[1]
    product = jax.jit(lambda params, v: jax.jvp(fn, (params,), (v,))[1])
    if _has_placeholder(product.trace(params, v).jaxpr.jaxpr):
        raise TypeError(_NO_RULE)
    return product(params, v)


def _linearize(fn, params):
    value, linear = jax.linearize(fn, params)
    if _has_placeholder(_program(linear, params)):
        raise TypeError(_NO_RULE)
    return value, linear


def _program(linear, params):
    # JAX keeps the program of a linear map among the arguments of its function; tracing it anew
    # gives the same, only slower.
    inner = getattr(getattr(linear, "func", None), "fun", None)
    for argument in getattr(inner, "args", ()):
        if hasattr(argument, "eqns"):
            return argument
    return jax.make_jaxpr(linear)(params).jaxpr


def _has_placeholder(jaxpr: Any) -> bool:
    return any(equation.primitive.name == _PLACEHOLDER for equation in equations(jaxpr))


def way_taken(op: Any) -> Way:
    """What ``op.traced_way()`` reports, by abstract evaluation: nothing is computed.

    New values of the same shapes are not evaluated again.
    """
    leaves, treedef = jax.tree.flatten(op)
    shapes = (jax.typeof(leaf) for leaf in leaves)
    return _way_taken(treedef, tuple((a.shape, a.dtype) for a in shapes))


@functools.lru_cache(maxsize=64)
def _way_taken(treedef, shapes):
    ways = []

    def run(leaves):
        ways.append(jax.tree.unflatten(treedef, leaves).traced_way())
        return ()

    jax.eval_shape(run, [jax.ShapeDtypeStruct(*shape) for shape in shapes])
    return ways[0]


def _first_that_traces(*ways: Callable[[], Any]) -> Any:
    first: Exception | None = None
    for way in ways:
        try:
            return way()
        except Exception as error:
            first = first or error
    # The first is the one to read: the later ways fail for the same cause or a lesser one.
    assert first is not None
    raise first
