"""What the penalties share that evaluate a model: outputs, an output loss, a part of the batch."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from flatjax import _collectives as collectives
from flatjax import losses
from flatjax._trees import Tree
from flatjax.losses._own import as_loss
from flatjax.transforms import _base as base
from flatjax.transforms import _callables as callables
from flatjax.transforms import _means as means
from flatjax.transforms._penalty_transform import penalty

OutputLoss = losses.OutputLoss | Callable[[Any, Any], jax.Array]


def model_penalty(
    name: str,
    term: Callable[..., tuple[Tree, jax.Array]],
    model_fn: Callable[..., Any],
    loss: OutputLoss,
    *,
    sub_batch: int | None,
    axis_name: collectives.AxisName,
    **options,
) -> optax.GradientTransformationExtraArgs:
    """The ``penalty`` of a term on (a part of) a batch of inputs and targets.

    It is ``term(params, outputs, loss, inputs, targets, key)`` with ``outputs(params, inputs)``
    those of the model; the arguments are those of [`fisher_penalty`][].
    """
    output_loss = as_loss(loss)
    model_fn = callables.model_function(name, model_fn, output_loss)
    size = None if sub_batch is None else base.static_int("sub_batch", sub_batch)

    def on_sub_batch(at):
        base.require_pair(name, at.batch, at.params, at.args, axis_name)
        offset_key, key = jax.random.split(at.key)
        inputs, targets = sub_sample(at.batch, size, offset_key, axis_name)

        def outputs(w, x):
            return model_fn(w, x, *at.args)

        return term(at.params, outputs, output_loss, inputs, targets, key)

    def gradient(at, params):
        base.require_pair(name, at.batch, at.params, at.args, axis_name)
        inputs, targets = at.batch

        def mean(w):
            outputs = model_fn(w, inputs, *at.args)
            return means.of_outputs(output_loss, outputs, targets, axis_name)[0]

        found = jax.grad(mean)(collectives.varying(params, axis_name))
        return collectives.total(found, axis_name)

    return penalty(name, on_sub_batch, axis_name=axis_name, gradient=gradient, **options)


def sub_sample(
    batch: Tree, size: int | None, key: jax.Array, axis_name: collectives.AxisName
) -> Tree:
    """``size`` evenly spaced examples of the global batch, from a random offset.

    Evenly spaced, so that a batch sharded over devices stays so; the offset varies, so that a fixed
    batch (full-batch training) is seen in all its parts. ``size=None`` takes all.
    """
    if size is None:
        return batch
    n = jax.tree.leaves(batch)[0].shape[0]
    devices = collectives.axis_size(axis_name)
    if n * devices < size:
        raise ValueError(
            f"the batch of {n * devices} examples is smaller than sub_batch={size}: pass a larger "
            "batch, or sub_batch=None for all of it."
        )
    if size % devices:
        raise ValueError(f"sub_batch={size} is not divisible by the {devices} devices.")
    local = size // devices
    stride = n // local
    offset = jax.random.randint(key, (), 0, stride)

    def leaf(a):
        rows = a[: local * stride].reshape(local, stride, *a.shape[1:])
        return jax.lax.dynamic_index_in_dim(rows, offset, axis=1, keepdims=False)

    return jax.tree.map(leaf, batch)
