"""Convolutions as XLA's CPU backend likes them, wherever they stand.

XLA's CPU backend has a fast kernel for convolutions of one layout: examples, space, channels for
the inputs and outputs; space, inputs, outputs for the kernel. The pass that brings other layouts
into this one looks at a program's entry only. In the body of ``while``, ``scan``, ``fori_loop`` or
``cond`` a convolution of another layout is left as it is and runs 20 to 90 times slower (JAX issue
12868). The derivatives of a convolution are of other layouts even if the network's own are not.

So the layouts are changed before XLA sees the program: [`canonical`][] traces a function and puts
transpositions around its convolutions, as the pass does for a program's entry. The arithmetic is
the same.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.extend.core import primitives


def canonical(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` with convolutions that stay fast inside loops and branches on a CPU.

    Wrap the body of a ``lax`` loop or the branches of a ``lax.cond`` that hold the gradient of a
    convolutional network. Everything of flatjax that iterates in a compiled program does so by
    itself. On other backends, and where there is no convolution, ``fn`` is called as it is.

    Derivatives taken of the result have layouts of their own again: differentiate first, wrap then.

    Cost: the function is traced twice. No arithmetic; the transpositions are those that a program's
    entry would hold.

    Args:
      fn: a traceable function of pytrees.

    Returns:
      A function of the same arguments with the same results.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flatjax.loops import canonical
      >>> images = jnp.ones((4, 8, 8, 3))
      >>> def loss(kernel):
      ...     out = jax.lax.conv_general_dilated(
      ...         images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
      ...     )
      ...     return (out**2).mean()
      >>> def step(i, kernel):
      ...     return kernel - 0.01 * jax.grad(loss)(kernel)
      >>> kernel = jax.lax.fori_loop(0, 9, canonical(step), jnp.ones((3, 3, 3, 5)))
      >>> kernel.shape
      (3, 3, 3, 5)
    """

    @functools.wraps(fn)
    def wrapped(*args, **kwargs):
        if jax.default_backend() != "cpu":
            return fn(*args, **kwargs)
        # Closed over, not passed: tracers keep all that their types say (mesh axes, weak types).
        program, shapes = jax.make_jaxpr(lambda: fn(*args, **kwargs), return_shape=True)()
        rewritten = _rewritten(program.jaxpr)
        if rewritten is program.jaxpr:
            return fn(*args, **kwargs)
        leaves = core.jaxpr_as_fun(program.replace(jaxpr=rewritten))()
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return wrapped


def _rewritten(value):
    """A program with its convolutions replaced; the same object if there was nothing to replace."""
    # From JAX 0.12 on the two kinds of program are one, which is its own `jaxpr`.
    if isinstance(value, core.ClosedJaxpr) and value.jaxpr is not value:
        inner = _rewritten(value.jaxpr)
        return value if inner is value.jaxpr else value.replace(jaxpr=inner)
    if isinstance(value, core.Jaxpr):
        equations = [_equation(e) for e in value.eqns]
        same = all(new is old for new, old in zip(equations, value.eqns, strict=True))
        return value if same else value.replace(eqns=equations)
    if type(value) in (tuple, list):  # the branches of a conditional
        items = [_rewritten(item) for item in value]
        same = all(new is old for new, old in zip(items, value, strict=True))
        return value if same else type(value)(items)
    return value


def _equation(equation):
    """One operation, and all programs inside it."""
    if equation.primitive is primitives.conv_general_dilated_p:
        if _layout(equation.params) == _fast(equation.invars[0].aval.ndim):
            return equation
        # A compiled call stands in for the operation, so that the program stays a list of
        # operations; XLA inlines it.
        avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]
        (call,) = jax.make_jaxpr(jax.jit(_convolution(equation.params)))(*avals).eqns
        return equation.replace(primitive=call.primitive, params=call.params)
    params = {name: _rewritten(value) for name, value in equation.params.items()}
    if all(params[name] is value for name, value in equation.params.items()):
        return equation
    return equation.replace(params=params)


def _layout(params):
    return params["dimension_numbers"]


def _fast(ndim):
    """Examples, space, channels; space, inputs, outputs; examples, space, channels."""
    space = tuple(range(1, ndim - 1))
    data = (0, ndim - 1, *space)
    return lax.ConvDimensionNumbers(data, (ndim - 1, ndim - 2, *range(ndim - 2)), data)


def _convolution(params):
    """The same convolution, transposed into the fast layout and back."""

    def convolution(inputs, kernel):
        layout = _layout(params)
        examples, channels, *space = layout.lhs_spec
        outputs, features, *window = layout.rhs_spec
        result = primitives.conv_general_dilated_p.bind(
            jnp.transpose(inputs, (examples, *space, channels)),
            jnp.transpose(kernel, (*window, features, outputs)),
            **{**params, "dimension_numbers": _fast(inputs.ndim)},
        )
        examples, channels, *space = layout.out_spec
        order = (examples, *space, channels)  # where the axes of the result belong
        return jnp.transpose(result, [order.index(axis) for axis in range(inputs.ndim)])

    return convolution
