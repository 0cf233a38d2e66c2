"""The losses of training and evaluation, by name, from flatjax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import losses

OUTPUT_LOSSES = {
    "cross_entropy": losses.softmax_cross_entropy,
    "squared_error": losses.squared_error,
}
"""The `flatjax.losses` behind each name; squared_error wants one-hot targets, see `encode`."""


def encode(name: str, targets: jax.Array, num_classes: int) -> jax.Array:
    """Returns the targets as the output loss `name` takes them: one-hot for squared_error."""
    if name == "squared_error" and jnp.issubdtype(targets.dtype, jnp.integer):
        return jax.nn.one_hot(targets, num_classes)
    return targets


def per_example(name: str) -> Callable[[jax.Array, jax.Array], Any]:
    """Returns `(logits, targets) -> (n,)`; targets are class ids or probabilities.

    Raises:
      ValueError: there is no loss of that name.
    """
    if name not in OUTPUT_LOSSES:
        raise ValueError(f"unknown loss {name!r}; choose from {', '.join(OUTPUT_LOSSES)}")
    loss = OUTPUT_LOSSES[name]
    return lambda logits, targets: loss(logits, encode(name, targets, logits.shape[-1]))


def labels(targets: jax.Array, logits: jax.Array) -> jax.Array:
    """Class ids of targets that may be probabilities."""
    return targets if targets.ndim < logits.ndim else targets.argmax(-1)
