"""Whether the updates that come in are the gradient: what stands before SAM in a chain is lost.

A transform that evaluates the gradient anew, elsewhere, hands out the new one. Clipping or weight
decay that stands before it in the chain acted on the old one, for nothing. Where the values are
there to be looked at, the incoming updates are therefore compared with ``grad_fn(params)``, once.

They may differ by rounding: another order of summation, a compiled step and one that is not, half
precision. Near a minimum a gradient is all rounding, so beyond a few units in the last place the
rounding is measured: the gradient is evaluated again at params moved by one unit in the last place
of the lowest precision at work, to either side. That is more than two programs of the same gradient
were seen to differ by (a quarter of it at most): in half precision the comparison is blunt, and a
small weight decay is not seen.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp

from flatjax import _collectives as collectives
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.transforms import _base as base
from flatjax.transforms import _callables as callables
from flatjax.transforms import _means as means

# In units in the last place of what sums are accumulated in: between compiled and eager, whole and
# accumulated, sharded and permuted gradients of up to 4,096 examples 4 were seen.
_SUMS = 64
# In those of the lowest precision at work, float32 sums of half-precision terms: 1 was seen.
_TERMS = 4


def global_gradient(
    name: str,
    grad_fn: callables.Gradient | None,
    value_fn: Callable[[Tree], Any] | None,
    axis_name: collectives.AxisName,
) -> callables.Gradient:
    """The gradient of the global batch by one of the caller's functions, checked."""
    local = callables.gradient_function(name, grad_fn, value_fn, axis_name)
    return means.averaged(local, axis_name)


def check_trees(name: str, updates: Tree, params: Tree) -> None:
    """Raise unless the params are whole, floating arrays and the updates look like them."""
    base.require_params(name, params)
    callables.check_params(name, params)
    callables.check_gradient(f"{name}: the incoming updates are", updates, params)


def check_incoming(
    name: str,
    incoming: Tree,
    other: Tree,
    gradient: callables.Gradient,
    params: Tree,
    count: jax.Array,
    adds: bool = False,
) -> None:
    """Raise ``ValueError`` if the first incoming updates are not the gradient at the params.

    Seen only where the values are there to look at: at the first call, if it is eager. ``other`` is
    what the transform made of the updates; a tracer in it means a traced call. There only a
    ``gradient`` that reads nothing of its argument is seen, by tracing it once more.

    With ``adds``, of a transform that adds to what comes in, they must only not be a descent step.
    ``other`` is then a gradient nearby: another is spent only where it points the opposite way.
    """
    if loops.is_traced(incoming, other, params, count):
        if not adds and _is_constant(gradient, params):
            _refuse_constant(name)
        return
    if int(count) != 0:
        return
    if adds and not _opposed(incoming, other):
        return
    reference = gradient(params)
    if loops.is_traced(reference):
        return
    if not adds and equal_up_to_rounding(incoming, reference, gradient, params):
        nothing = 1e-5 * float(trees.norm(reference))  # far below what an ascent changes
        if _distance(other, reference) <= nothing and _is_constant(gradient, params, True):
            _refuse_constant(name)
        return
    if _opposed(incoming, reference):
        _refuse_descent(name)
    if adds:
        return
    raise ValueError(
        f"{name} was given updates that are not grad_fn(params), and takes a new gradient in their "
        "place: what stands before it in the chain (clipping, weight decay, noise, a penalty) "
        f"would be lost. Put {name} first: optax.chain(flatjax.{name}(...), "
        "optax.clip_by_global_norm(...), optimizer). If grad_fn is stochastic (a dropout key or a "
        f"batch of its own), give it the key and the batch of the incoming gradient, or pass "
        f"flatjax.{name}(..., check=False)."
    )


def check_no_descent(
    name: str, incoming: Tree, gradient: callables.Gradient, params: Tree, count: jax.Array
) -> None:
    """Raise ``ValueError`` if the first incoming updates point against the gradient.

    Of a transform that adds to them and needs no gradient of the loss itself: one is spent, at the
    first call, if it is eager.
    """
    if loops.is_traced(incoming, params, count) or int(count) != 0:
        return
    reference = gradient(params)
    if not loops.is_traced(reference) and _opposed(incoming, reference):
        _refuse_descent(name)


def _refuse_descent(name):
    raise ValueError(
        f"{name} was given a descent step where it expects the gradient: put it at the head of "
        f"the chain, before the optimiser: optax.chain(flatjax.{name}(...), optax.sgd(lr))."
    )


def _refuse_constant(name):
    raise ValueError(
        f"{name}: grad_fn does not depend on the params that it is given, so that nothing is "
        "perturbed. Differentiate at its argument: "
        "grad_fn=lambda p: jax.grad(loss_fn)(p, batch)."
    )


def _opposed(a, b):
    return float(trees.vdot(a, b)) < -0.5 * float(trees.norm(a)) * float(trees.norm(b)) < 0


def equal_up_to_rounding(
    incoming: Tree, reference: Tree, gradient: callables.Gradient, params: Tree
) -> bool:
    """Whether ``incoming`` is a gradient at ``params`` like ``reference``, differently rounded.

    Two gradients more where the difference is not plainly one of rounding. ``True`` where one of
    them is not finite: nothing can be said then.
    """
    difference, size = _distance(incoming, reference), float(trees.norm(reference))
    leaves = [a.dtype for a in jax.tree.leaves((incoming, reference, params))]
    sums = max(float(jnp.finfo(trees.compute_dtype(a)).eps) for a in leaves)
    if not difference > _SUMS * sums * size:  # so also where it is NaN
        return True
    terms = max(float(jnp.finfo(a).eps) for a in [*leaves, *_dtypes_inside(gradient, params)])
    if difference <= _TERMS * terms * size:
        return True
    return any(
        not difference > _distance(gradient(_nudged(params, by)), reference)
        for by in (terms, -terms)
    )


def _distance(a, b):
    wide = trees.structure_of(b)
    difference = jax.tree.map(jnp.subtract, trees.cast(a, wide), trees.cast(b, wide))
    return float(trees.norm(difference))


def _nudged(params, by):
    """Every entry moved by the fraction ``by`` of itself, up or down at random."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), max(len(leaves), 1))
    moved = [
        (a * (1 + by * jax.random.rademacher(k, a.shape, trees.compute_dtype(a.dtype)))).astype(
            a.dtype
        )
        for k, a in zip(keys[: len(leaves)], leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, moved)


def _is_constant(gradient, params, in_flax=False):
    """Whether no operation of a program reads the params; of one that cannot be traced, no.

    ``in_flax`` is the answer where a flax module is what cannot be traced: the gradient of an nnx
    model from outside is taken by changing it, which is refused inside of another trace.
    """
    try:
        program = jax.make_jaxpr(gradient)(params).jaxpr
    except Exception as error:  # a function of the host, whatever it raises on a tracer
        return in_flax and "different trace level" in str(error)
    given = {id(variable) for variable in program.invars}
    read = [variable for equation in program.eqns for variable in equation.invars]
    return not any(id(variable) in given for variable in (*read, *program.outvars))


def _dtypes_inside(gradient, params) -> Iterator[Any]:
    """The floating dtypes of a program; none of a function that cannot be traced."""
    try:
        program = jax.make_jaxpr(gradient)(params)
    except Exception:  # a function of the host, whatever it raises on a tracer
        return
    yield from _floating(program.jaxpr)


def _floating(program):
    for equation in program.eqns:
        for variable in equation.outvars:
            dtype = getattr(variable.aval, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
                yield dtype
    for inner in jax.extend.core.subjaxprs(program):
        yield from _floating(inner)
