"""An MLP as plain arrays or as one vector, for trajectories inside compiled loops.

params = init_mlp(jax.random.key(0), (64, 64, 64, 10), scale=1.0)
logits = apply_mlp(params, data.inputs)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from experiments.lib.nets.losses import per_example


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


class FlatMlp:
    """An MLP whose parameters are one vector: programs over it are compiled several times faster.

    Attributes:
      size: the number of parameters.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        scale: float = 1.0,
        activation: Callable[[jax.Array], jax.Array] = jnp.tanh,
    ):
        """Takes the units of every layer, the scale of `init_mlp` and the activation."""
        self.sizes, self.scale, self.activation = tuple(sizes), scale, activation
        shapes = jax.eval_shape(lambda: init_mlp(jax.random.key(0), self.sizes))
        zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
        vector, self.unravel = jax.flatten_util.ravel_pytree(zeros)
        self.size = vector.size

    def init(self, key: jax.Array) -> jax.Array:
        """Initial parameters, (size,)."""
        tree = init_mlp(key, self.sizes, scale=self.scale)
        return jax.flatten_util.ravel_pytree(tree)[0]

    def init_seeds(self, seeds: Sequence[int]) -> jax.Array:
        """Initial parameters of several seeds, (seeds, size)."""
        return jnp.stack([self.init(jax.random.key(seed)) for seed in seeds])

    def __call__(self, params: jax.Array, inputs: jax.Array) -> jax.Array:
        """The logits (n, classes) of inputs (n, d)."""
        return apply_mlp(self.unravel(params), inputs, activation=self.activation)

    def losses(self, loss: str) -> Callable[[jax.Array, Any], jax.Array]:
        """Returns `losses_fn(params, (inputs, targets)) -> (n,)`, as flatjax's operators take it.

        Args:
          loss: `cross_entropy` or `squared_error`, half the squared distance to the one-hot label.
        """
        value = per_example(loss)

        def losses_fn(params, batch):
            inputs, targets = batch
            return value(self(params, inputs), targets)

        return losses_fn

    def accuracy(self, params: jax.Array, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        """The share of the examples that are classified as their targets."""
        return (self(params, inputs).argmax(-1) == targets).mean()
