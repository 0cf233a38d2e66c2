"""Sums over parts of the data: chunks of a batch and batches of a stream, put together."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax.operators import _weighting as weighting
from flatjax.operators._arguments import matmul_precision
from flatjax.operators._base import operator


@operator
class Sums:
    r"""What a part of the data adds to a product, in at least float32.

    A covariance is centred once, over all parts, in one pass over them and with nothing kept from
    one product to the next: every part is centred by its own mean, and two parts A and B are put
    together (Chan, Golub & LeVeque 1983) with

    $$S_{AB} = S_A + S_B + \frac{W_A W_B}{W_A + W_B}\, (\bar g_A - \bar g_B)\,
    \langle \bar g_A - \bar g_B, v \rangle.$$

    Uncentred sums less the mean would lose all digits where the mean gradient dominates.

    Attributes:
      total: the weighted sum of the products with the vector.
      weight: the total weight.
      slope: of a centred covariance, the mean inner product of a gradient with the vector.
      gradient: likewise, the mean gradient.
    """

    total: Any
    weight: Any
    slope: Any = None
    gradient: Any = None


def of(op: Any, v: Any) -> Sums:
    """The sums over this device's examples of an operator over a batch."""
    w = op.example_weights
    weight = w.sum()
    dtype = trees.dtype(op.structure)
    slope: Any = None
    gradient: Any = None
    with matmul_precision(op.precision):
        v = op.prepared(v)
        if op.centered:
            mean, slope, gradient = op.moments(v)
            slope, gradient = slope.astype(dtype), trees.cast(gradient, op.structure)
        else:
            mean = op.local_mean(v)
    total = trees.scale(op.scale, trees.cast(mean, op.structure))
    total, slope, gradient = weighting.where_any(w, (total, slope, gradient))
    sums = Sums(total, weight.astype(dtype), slope, gradient)
    return collectives.varying(sums, op.axis_name)


def nothing(op: Any) -> Sums:
    """The sums over no example."""
    dtype = trees.dtype(op.structure)
    zero = lambda: jnp.zeros((), dtype)  # noqa: E731  # arrays of their own: they are donated
    sums = Sums(trees.zeros(op.structure), zero())
    if not op.centered:
        return sums
    return dataclasses.replace(sums, slope=zero(), gradient=trees.zeros(op.structure))


def together(a: Sums, b: Sums) -> Sums:
    """The sums over two parts."""
    weight = a.weight + b.weight
    total = jax.tree.map(jnp.add, a.total, b.total)
    if a.slope is None:
        return Sums(total, weight)
    share = b.weight / jnp.where(weight == 0, jnp.ones_like(weight), weight)
    slope, gradient = jax.tree.map(jnp.subtract, (b.slope, b.gradient), (a.slope, a.gradient))
    return Sums(
        trees.axpy(a.weight * share * slope, gradient, total),
        weight,
        a.slope + share * slope,
        trees.axpy(share, gradient, a.gradient),
    )


def mean(sums: Sums, axis_name: collectives.AxisName) -> Any:
    """The mean over all devices' examples; NaN where the total weight is zero."""
    total = sums.total
    if sums.slope is not None and axis_name is not None:
        # The deviations of the devices' means add up to zero, so one sum of vectors will do.
        centre = collectives.weighted_mean(sums.weight * sums.slope, sums.weight, axis_name)
        total = trees.axpy(sums.weight * (sums.slope - centre), sums.gradient, total)
    return collectives.weighted_mean(total, sums.weight, axis_name)
