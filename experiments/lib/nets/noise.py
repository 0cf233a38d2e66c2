"""Gaussian noise on activations, in training alone."""

from __future__ import annotations

import flax.linen as nn
import jax


class Noise(nn.Module):
    """x + deviation * standard normal numbers, drawn anew at every update from the dropout key.

    Li, Wei and Ma, "Towards Explaining the Regularization Effect of Initial Large Learning Rate in
    Training Neural Networks", 2019. It has no parameters: a network with noise and the same one
    without take the same.
    """

    deviation: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The noisy array; as it is in evaluation, and in initialisation."""
        if not train:
            return x
        key = self.make_rng("dropout")
        return x + self.deviation * jax.random.normal(key, x.shape, x.dtype)
