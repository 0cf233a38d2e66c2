"""Networks whose output does not change when all their weights are multiplied by one number.

Recipe(network="experiments.lib.nets.scale_invariant:ConvNetSI")

Every layer of weights is followed by a batch norm without scale and shift, and the last layer is
never trained: it is a part of the model state, with Frobenius norm 10 (Lobacheva et al., NeurIPS
2021; Kodryan et al., NeurIPS 2022).
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

HEAD_NORM = 10.0
_TORCH = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's default, which the papers' code has."""


def _normalized(x: jax.Array, train: bool) -> jax.Array:
    """Batch norm alone, then ReLU."""
    # The usual epsilon of 1e-5 is not small beside the variances of short weights: the function
    # would depend on their length.
    norm = nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-12, use_bias=False,
        use_scale=False, use_fast_variance=False,
    )  # fmt: skip
    return nn.relu(norm(x))


def _frozen_head(module: nn.Module, x: jax.Array, num_classes: int) -> jax.Array:
    """The logits, by a last layer that no optimiser sees."""

    def init() -> jax.Array:
        kernel = jax.random.normal(module.make_rng("params"), (x.shape[-1], num_classes))
        return HEAD_NORM * kernel / jnp.linalg.norm(kernel)

    return x @ module.variable("frozen", "head", init).value


class PerceptronSI(nn.Module):
    """Three hidden layers on flattened inputs."""

    num_classes: int
    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """The logits."""
        x = x.reshape(len(x), -1)
        for _ in range(3):
            kernel_init = nn.initializers.he_normal()
            x = _normalized(nn.Dense(self.width, use_bias=False, kernel_init=kernel_init)(x), train)
        return _frozen_head(self, x, self.num_classes)


class ConvNetSI(nn.Module):
    """The papers' network: a convolution, then three stages twice as wide, each max-pooled."""

    num_classes: int
    width: int = 32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """The logits."""
        for stage in range(4):
            conv = nn.Conv(
                self.width * 2**stage, (3, 3), use_bias=False, kernel_init=_TORCH
            )  # fmt: skip
            x = _normalized(conv(x), train)
            if stage:
                x = nn.max_pool(x, (2, 2), (2, 2))
        return _frozen_head(self, x.max((1, 2)), self.num_classes)


SmallConvNetSI = functools.partial(ConvNetSI, width=8)
"""A quarter as wide, for a CPU."""
