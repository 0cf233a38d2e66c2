"""Convolutions and matrix products as XLA's CPU backend likes them, wherever they stand.

Those of shapes that it is slow with anywhere become products of shifted slices, see
[`flatjax._shifted_products`][]: grouped ones, and the derivative of a kernel gradient.

XLA's CPU backend has a fast kernel for convolutions of one layout: examples, space, channels for
the inputs and outputs; space, inputs, outputs for the kernel. The pass that brings other layouts
into this one looks at a program's entry only. In the body of ``while``, ``scan``, ``fori_loop`` or
``cond`` a convolution of another layout is left as it is and runs 20 to 90 times slower (JAX issue
12868). The derivatives of a convolution are of other layouts even if the network's own are not.

Products of stacked matrices become products of two, see [`flatjax._matrix_products`][].

So all of it is done before XLA sees the program: [`canonical`][] traces a function and replaces its
convolutions, or puts transpositions around them, as the pass does for a program's entry. The sums
are the same but for their order. A shard_map *inside* of the function is left as it is: what would
stand in for an operation has other types than inside.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.extend.core import primitives

from flatjax import _matrix_products as matrices
from flatjax import _shifted_products as shifted

_REPLACED = (primitives.conv_general_dilated_p, primitives.dot_general_p)


def canonical(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` with convolutions and dense layers that are fast on a CPU, inside loops, too.

    Wrap the body of a ``lax`` loop or the branches of a ``lax.cond`` that hold the gradient of a
    convolutional network, and a step whose network has grouped or depthwise convolutions anywhere:
    their kernel gradients are 10 to 500 times faster. The gradient of a network whose dense layers
    have inputs of more than two axes, such as a transformer, is 1.4 to 1.9 times faster anywhere.
    Everything of flatjax that iterates in a compiled program, and the product of every operator,
    does so by itself. On other backends, and where there is nothing to change, ``fn`` is called as
    it is.

    Derivatives taken of the result have layouts of their own again: differentiate first, wrap then.

    Cost: the function is traced twice. No more arithmetic; the transpositions are those that a
    program's entry would hold, and a replaced convolution is up to 64 products in the program.

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
        found, is_same = _evaluate(lambda: fn(*args, **kwargs))
        return fn(*args, **kwargs) if is_same else found()

    return wrapped


def compiled(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``jax.jit`` of a function with fast convolutions, traced once.

    For a program whose entry holds derivatives of the user's network. Slow convolutions are
    replaced, layouts are left to XLA, which sees at an entry which transpositions cancel. What the
    function returns must be arrays.

    Args:
      fn: a traceable function of pytrees.
      **options: of ``jax.jit``.

    Returns:
      The compiled function.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import _convolutions as convolutions
      >>> convolutions.compiled(lambda x: 2 * x)(jnp.ones(2)).tolist()
      [2.0, 2.0]
    """

    @functools.wraps(fn)
    def wrapped(*args, **kwargs):
        return _evaluate(lambda: fn(*args, **kwargs), layouts=False)[0]()

    return jax.jit(wrapped, **options)


def _evaluate(fn, layouts=True):
    """A function of nothing with other convolutions, and whether it is the same."""
    if jax.default_backend() != "cpu":
        return fn, True
    # Closed over, not passed: tracers keep all that their types say (mesh axes, weak types).
    program, shapes = jax.make_jaxpr(fn, return_shape=True)()
    rewritten = _rewritten(program.jaxpr, layouts)

    def evaluate():
        leaves = core.jaxpr_as_fun(program.replace(jaxpr=rewritten))()
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return evaluate, rewritten is program.jaxpr


def _rewritten(value, layouts):
    """A program with its convolutions replaced; the same object if there was nothing to replace."""
    # From JAX 0.12 on the two kinds of program are one, which is its own `jaxpr`.
    if isinstance(value, core.ClosedJaxpr) and value.jaxpr is not value:
        inner = _rewritten(value.jaxpr, layouts)
        return value if inner is value.jaxpr else value.replace(jaxpr=inner)
    if isinstance(value, core.Jaxpr):
        equations = [_equation(e, layouts) for e in value.eqns]
        same = all(new is old for new, old in zip(equations, value.eqns, strict=True))
        return value if same else value.replace(eqns=equations)
    if type(value) in (tuple, list):  # the branches of a conditional
        items = [_rewritten(item, layouts) for item in value]
        same = all(new is old for new, old in zip(items, value, strict=True))
        return value if same else type(value)(items)
    return value


def _equation(equation, layouts):
    """One operation, and all programs inside it."""
    if equation.primitive in _REPLACED and not _typed_here(equation):
        return equation
    if equation.primitive is primitives.conv_general_dilated_p:
        operands = [v.aval for v in equation.invars]
        form = shifted.form_of(equation.params, operands[0], operands[1], equation.outvars[0].aval)
        if form is not None:
            convolution = shifted.convolution(equation.params, form)
        elif not layouts or _layout(equation.params) == _fast(operands[0].ndim):
            return equation
        else:
            convolution = _convolution(equation.params)
        # It may hold a convolution in its turn, of another layout.
        return _equation(_replaced(equation, convolution), layouts)
    if equation.primitive is primitives.dot_general_p:
        form = matrices.form_of(equation.params, *(v.aval for v in equation.invars))
        if form is None:
            return equation
        return _replaced(equation, matrices.product(equation.params, form))
    params = {name: _rewritten(value, layouts) for name, value in equation.params.items()}
    if all(params[name] is value for name, value in equation.params.items()):
        return equation
    return equation.replace(params=params)


def _typed_here(equation):
    """Whether a replacement would have the same types: not in a shard_map inside of a program."""
    here = jax.sharding.get_abstract_mesh()
    return all(v.aval.sharding.mesh == here for v in equation.invars)


def _replaced(equation, fn):
    """A compiled call in place of an operation: the program stays a list; XLA inlines it."""
    # Whole types: inside of shard_map they say over which axes of its mesh a value varies.
    (call,) = jax.make_jaxpr(jax.jit(fn))(*(v.aval for v in equation.invars)).eqns
    return equation.replace(primitive=call.primitive, params=call.params)


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
