"""Central differences, for functions of the params that have no derivative of their own."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from flatjax import _trees as trees
from flatjax.operators._base import operator, static


@operator
class CentralDifference:
    r"""``v -> J v`` from two evaluations of a function; made by [`central_difference`][].

    The step along $u = v / \lVert v \rVert$ is

    $$h = \epsilon^{1/3} \max(1, \; \mathrm{rms}(\theta) / \lVert u \rVert_\infty)$$

    with $\epsilon$ of the coarsest floating dtype on the way from the params to the outputs: an
    evaluation is no better than that, whatever dtype its outputs are cast to. A truncation error of
    the order of $h^2$ and a rounding error of the order of $\epsilon / h$ are balanced, both about
    $\epsilon^{2/3}$ of the largest products. Along a vector that is spread over all params they
    move by $\epsilon^{1/3}$ of their size; along a sharp or sparse one a step by the norm of all
    params would leave the neighbourhood in which the function is smooth. The step depends on ``v``
    by its direction alone: products are homogeneous, and linear up to these errors.

    Attributes:
      params: where, in at least float32: in bfloat16 most params would not move at all.
      constants: what the function closes over.
      program: the function as a program of the leaves of the params.
      outputs: the tree structure of its outputs.
      eps: that of the coarsest dtype.
    """

    params: Any
    constants: Any
    program: Any = static()
    outputs: Any = static()
    eps: Any = static()

    @property
    def noise(self) -> float:
        """The relative error of a product to expect."""
        return self.eps ** (2 / 3)

    def __call__(self, v):
        """The product, in at least float32; zero for a zero vector."""
        v = trees.cast(v, self.params)
        length = trees.norm(v)
        one = jnp.ones((), length.dtype)
        # Divided and not multiplied by 1 / length, which overflows for the smallest lengths.
        divisor = jnp.where(length > 0, length, one)
        unit = jax.tree.map(lambda a: a / divisor.astype(a.dtype), v)
        rms = trees.norm(self.params) / trees.size(self.params) ** 0.5
        largest = jnp.maximum(_largest(unit), jnp.asarray(trees.size(v) ** -0.5, length.dtype))
        step = self.eps ** (1 / 3) * jnp.maximum(one, rms / largest)
        ahead = self._evaluated(trees.axpy(step, unit, self.params))
        behind = self._evaluated(trees.axpy(-step, unit, self.params))
        factor = length / (2 * step)
        return jax.tree.map(lambda a, b: (a - b) * factor.astype(a.dtype), ahead, behind)

    def _evaluated(self, params):
        run = core.jaxpr_as_fun(self.program.replace(consts=self.constants))
        outputs = self.outputs.unflatten(run(*jax.tree.leaves(params)))
        return trees.cast(outputs, trees.structure_of(outputs))


def central_difference(fn: Callable[[Any], Any], params: Any) -> CentralDifference:
    """The product with the Jacobian of a function of the params, by central differences: a pytree.

    The function is given params in at least float32, or, where it does not take those (a kernel for
    half precision alone), perturbed ones rounded to their own dtypes.
    """
    wide = trees.cast(params, trees.structure_of(params))
    try:
        program, shapes = jax.make_jaxpr(fn, return_shape=True)(wide)
    except Exception:
        narrow = lambda p: fn(trees.cast(p, params))  # noqa: E731
        program, shapes = jax.make_jaxpr(narrow, return_shape=True)(wide)
    leaves = jax.tree.leaves(wide)
    way = dependence(program.jaxpr, [True] * len(leaves))
    # The tracers among the constants are leaves of the map; in its static part they would leak.
    bare = program.replace(consts=[None] * len(program.consts))
    eps = max(way.eps, coarsest(wide))
    return CentralDifference(wide, list(program.consts), bare, jax.tree.structure(shapes), eps)


def _largest(tree):
    sizes = [
        jnp.max(jnp.abs(a), initial=0).astype(trees.dtype(tree)) for a in jax.tree.leaves(tree)
    ]
    return functools.reduce(jnp.maximum, sizes)


def coarsest(*arrays: Any) -> float:
    """The largest rounding unit of the floating dtypes of trees of arrays; 0 if there is none."""
    return max((_eps(a.dtype) for a in jax.tree.leaves(arrays)), default=0.0)


def _eps(dtype) -> float:
    return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else 0.0


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a program, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from equations(getattr(inner, "jaxpr", inner))


class Dependence:
    """What lies on the way from some inputs of a program to its outputs.

    Attributes:
      outputs: for every output, whether it can depend on one of those inputs.
      eps: of the coarsest floating dtype of a value that can.
      operations: the names of the operations on the way.
    """

    def __init__(self, count: int):
        self.outputs = [False] * count
        self.eps = 0.0
        self.operations: set[str] = set()


def dependence(jaxpr: Any, chosen: Sequence[bool]) -> Dependence:
    """Follow the values that depend on the ``chosen`` inputs, one flag each, through a program.

    Where the inner programs of an operation do not match its inputs one by one (loops, branches,
    kernels), all their values count.
    """
    found = Dependence(len(jaxpr.outvars))
    marked = {id(v) for v, take in zip(jaxpr.invars, chosen, strict=True) if take}
    for equation in jaxpr.eqns:
        given = [id(v) in marked for v in equation.invars]
        if not any(given):
            continue
        found.operations.add(equation.primitive.name)
        results = [True] * len(equation.outvars)
        inner_programs = list(core.jaxprs_in_params(equation.params))
        for inner in inner_programs:
            is_call = (
                len(inner_programs) == 1
                and equation.primitive.name != "scan"
                and len(inner.invars) == len(given)
                and len(inner.outvars) == len(results)
            )
            inside = dependence(inner, given if is_call else [True] * len(inner.invars))
            found.operations |= inside.operations
            found.eps = max(found.eps, inside.eps)
            results = inside.outputs if is_call else results
        for v, depends in zip(equation.outvars, results, strict=True):
            if depends:
                marked.add(id(v))
                found.eps = max(found.eps, _eps(getattr(v.aval, "dtype", jnp.dtype(bool))))
    found.outputs = [id(v) in marked for v in jaxpr.outvars]
    return found
