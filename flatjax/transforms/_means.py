"""Means over devices, groups and examples, by weights or equally."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.losses import OutputLoss


def average(tree: Tree, axis_name: collectives.AxisName, weight: Any = None) -> Tree:
    """The mean over the devices of the named axes, the tree itself without.

    ``weight`` is by what this device's means count, ``None`` as much as those of every other. What
    has weight zero does not count, whatever it is; the mean of nothing that counts is no number.
    """
    if axis_name is None:
        return tree
    if weight is None:
        return collectives.weighted_mean(tree, jnp.ones(()), axis_name)
    return collectives.total(shares(tree, weight, collectives.total(weight, axis_name)), axis_name)


def shares(tree: Tree, weight: jax.Array, total: jax.Array) -> Tree:
    """``weight / total`` of a part's means, as its summand of the mean over all parts.

    With a ``weight`` of shape ``(k,)`` the means are those of k parts, stacked. Where the weight is
    zero the summand is, whatever the mean; where ``total`` is, it is no number. They are multiplied
    in at least float32, and in the dtypes of ``tree``.
    """

    def leaf(a):
        dtype = trees.compute_dtype(a.dtype)
        own = weight.reshape(weight.shape + (1,) * (a.ndim - weight.ndim))
        share = own.astype(dtype) / total.astype(dtype)
        return (jnp.where(own == 0, jnp.zeros_like(a), a).astype(dtype) * share).astype(a.dtype)

    return jax.tree.map(leaf, tree)


def mean_of_stacked(tree: Tree, weights: Any = None) -> Tree:
    """The mean over a leading axis, by the weights of its entries or equally, in its dtypes."""
    if weights is None:
        return jax.tree.map(lambda a: a.mean(axis=0).astype(a.dtype), tree)
    summands = shares(tree, weights, weights.sum())
    return jax.tree.map(lambda a: a.sum(axis=0).astype(a.dtype), summands)


def of_outputs(
    loss: OutputLoss, outputs: Any, targets: Tree, axis_name: collectives.AxisName
) -> tuple[jax.Array, jax.Array]:
    """This device's summand of the mean of an output loss, and every example's share of that mean.

    Padding does not count, on any device: the sum of the summands over the devices is the mean
    over the rest, and zero where there is none.

    Args:
      loss: the output loss.
      outputs: the model's outputs of this device's examples.
      targets: their targets.
      axis_name: the axes of the batch.

    Returns:
      A scalar, and shares of shape ``(n,)``, which over all devices add up to one.
    """
    if loss.masks:
        mean = loss.mean(outputs, targets)
        values, weights = mean.total, mean.weight
    else:  # a function may have outputs of any kind
        values, n = loss(outputs, targets), jax.tree.leaves(targets)[0].shape[0]
        weights = jnp.full(n, values.size / n)
    dtype = trees.compute_dtype(values.dtype)
    weights = weights.astype(dtype)
    total = collectives.total(weights.sum(), axis_name)
    share = 1 / jnp.where(total > 0, total, 1)
    return values.astype(dtype).sum() * share, weights * share


def averaged(fn: Callable[[Tree], Tree], axis_name: collectives.AxisName) -> Callable[[Tree], Tree]:
    """The global mean of a function of the params that is local to each device."""
    return weighed(lambda params: (fn(params), None), axis_name)


def weighed(
    fn: Callable[[Tree], tuple[Tree, Any]], axis_name: collectives.AxisName
) -> Callable[[Tree], Tree]:
    """The same of a function that returns the weight of its means beside them."""

    def mean(params):
        tree, weight = fn(collectives.varying(params, axis_name))
        return average(tree, axis_name, weight)

    return mean
