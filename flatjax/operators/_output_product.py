"""The rule of matrices ``J^T M J`` with M the output Hessian of a loss, or scores of targets."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _functions as functions
from flatjax import _trees as trees
from flatjax import losses
from flatjax.losses import _blockwise as blockwise
from flatjax.operators import _weighting as weighting
from flatjax.operators._base import operator, static


@operator
class OutputProduct:
    """``J^T (s * M (J v))``, s the shares of the examples.

    Attributes:
      held_loss: the output loss, see `follow_loss`; it is given one row of outputs an example.
      kind: M is the loss's ``"hessian_product"``, or the mean over the draws of the targets of its
        ``"score_product"`` or ``"gradient_product"``.
    """

    held_loss: Any
    kind: Any = static()

    def __call__(self, linear, aux, v, axis_name):
        del axis_name
        loss = dataclasses.replace(loss_of(self.held_loss), per="example")
        if self.kind == "score_product":
            loss = loss.of_draws()
        outputs, targets, weights, scale = aux
        factors, counted = weighting.shares(weights, scale), weights != 0
        tangents = linear(v)
        if isinstance(outputs, losses.LinearHead):
            factors = jnp.where(counted, factors, jnp.zeros_like(factors))
            product = blockwise.product(loss, self.kind, outputs, targets, tangents, factors)
            return linear.transpose(v, trees.cast(product, tangents))
        product = getattr(loss, self.kind)
        if self.kind == "hessian_product":
            product = product(outputs, targets, tangents)
        else:
            product = jax.vmap(product, in_axes=(None, 0, None))(outputs, targets, tangents)
            product = product.mean(axis=0)

        def leaf(a):
            wide = a.astype(trees.compute_dtype(a.dtype))
            return (wide * trees.per_row(factors, wide)).astype(a.dtype)

        scaled = weighting.where_rows(counted, jax.tree.map(leaf, product))
        return linear.transpose(v, scaled)


def loss_of(held: Any) -> losses.OutputLoss:
    """The output loss behind what `follow_loss` gives."""
    return held.value if isinstance(held, functions.Constant) else held
