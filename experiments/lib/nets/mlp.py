"""An MLP as plain arrays, for trajectories inside compiled loops.

params = init_mlp(jax.random.key(0), (64, 64, 64, 10), scale=1.0)
logits = apply_mlp(params, data.inputs)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def init_mlp(key: jax.Array, sizes: Sequence[int], *, scale: float = 1.0) -> dict[str, Any]:
    """W ~ N(0, scale^2 / fan_in), biases zero.

    Args:
      key: a PRNG key.
      sizes: units of every layer, inputs and classes included.
      scale: 1 for squared error; 0.6 starts a cross-entropy network flat, so that its curvature
        has room to grow.

    Returns:
      `{"layer_0": {"kernel", "bias"}, ...}`.
    """
    params = {}
    keys = jax.random.split(key, len(sizes) - 1)
    for i, (k, fan_in, fan_out) in enumerate(zip(keys, sizes[:-1], sizes[1:], strict=True)):
        kernel = scale / np.sqrt(fan_in) * jax.random.normal(k, (fan_in, fan_out))
        params[f"layer_{i}"] = {"kernel": kernel, "bias": jnp.zeros(fan_out)}
    return params


def apply_mlp(
    params: dict[str, Any],
    inputs: jax.Array,
    *,
    activation: Callable[[jax.Array], jax.Array] = jnp.tanh,
) -> jax.Array:
    """The logits (n, classes) of inputs (n, d)."""
    for i in range(len(params)):
        layer = params[f"layer_{i}"]
        inputs = inputs @ layer["kernel"] + layer["bias"]
        if i < len(params) - 1:
            inputs = activation(inputs)
    return inputs
