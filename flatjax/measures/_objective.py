"""The mean loss as a function of the params, for the measures that evaluate it at other points.

An objective is the operator that [`flatjax.hessian`][] makes: it has the data, the weights and the
axis name as leaves of one pytree, and its factory has checked them. One compiled program therefore
serves every point, batch and measure of the same shapes.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flatjax import _collectives as collectives
from flatjax import _convolutions as convolutions
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.operators._arguments import as_arrays, check_params, matmul_precision
from flatjax.operators._hessian import Hessian, hessian
from flatjax.operators._terms import LossOperator
from flatjax.operators._weighting import over_devices


def widened(params: Tree) -> Tree:
    """The same point in at least float32, which is what a measure's model is called with.

    A perturbation of 1e-3 of a bfloat16 weight is rounded away. So every measure casts its params
    once, here, and a model that is to compute in low precision casts them again by itself.
    """
    check_params(params)
    params = as_arrays(params)
    return trees.cast(params, trees.structure_of(params))


def mean_loss(
    loss_fn: Callable[..., jax.Array],
    params: Tree,
    batch: Any,
    args: tuple,
    *,
    weights: Any,
    axis_name: collectives.AxisName,
    precision: str | None,
) -> Hessian:
    """The objective of these data, its arguments checked as those of [`flatjax.hessian`][].

    Its params, and all points that measures form from them, are in at least float32.
    """
    params = widened(params)
    op = hessian(
        loss_fn, params, batch, *args, weights=weights, axis_name=axis_name, precision=precision
    )
    return cast(Hessian, op)  # not chunked


def value(op: LossOperator, params: Tree) -> jax.Array:
    """The weighted mean loss over all devices' examples at ``params``, in at least float32."""
    with matmul_precision(op.precision):
        mean = op.local_loss(collectives.varying(params, op.axis_name))
    return over_devices(
        mean.astype(trees.dtype(params)), op.example_weights, op.scale, op.axis_name
    )


def value_and_gradient(op: Hessian, params: Tree) -> tuple[jax.Array, Tree]:
    """The mean loss and its gradient, both over all devices' examples, in at least float32."""
    local = collectives.varying(params, op.axis_name)
    with matmul_precision(op.precision):
        mean, gradient = jax.value_and_grad(op.local_loss)(local)
    gradient = trees.cast(gradient, trees.structure_of(params))
    both = mean.astype(trees.dtype(params)), gradient
    return over_devices(both, op.example_weights, op.scale, op.axis_name)


# The compiled forms, with the objective as an argument.
loss_at = jax.jit(value)
loss_and_gradient_at = convolutions.compiled(value_and_gradient)


def row_structure(name: str, rows: Tree) -> Tree:
    """The structure of one vector of a stack, or a clear error where it is none."""
    leaves = jax.tree.leaves(rows)
    if not leaves or any(not jnp.ndim(leaf) for leaf in leaves):
        raise ValueError(f"{name} must be a stack of vectors: every leaf needs a leading axis.")
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), rows)


def magnitudes(params: Tree, offset: ArrayLike) -> Tree:
    """``|w| + offset``: the scale of the adaptive measures."""

    def leaf(w):
        return jnp.abs(w) + jnp.asarray(offset).astype(w.dtype)

    return jax.tree.map(leaf, params)


def repeat(num_steps: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
    """``loops.fori`` that decides where to run on what the first step gives.

    The carry before it may be concrete zeros while the objective is traced.
    """
    carry = body(0, carry)
    return loops.fori(num_steps - 1, lambda i, c: body(i + 1, c), carry)
