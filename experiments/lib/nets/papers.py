"""Networks of papers that are of no family in `experiments.lib.nets.networks`.

Recipe(network="experiments.lib.nets.papers:small_inception")
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

_HE = nn.initializers.he_normal()


class SmallInception(nn.Module):
    """Inception for small images, with batch norm: Zhang et al., ICLR 2017, figure 3."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """The logits."""

        def conv(x, channels, size, stride=1):
            shape = (size, size), (stride, stride)
            x = nn.Conv(channels, *shape, use_bias=False, kernel_init=_HE)(x)
            return nn.relu(nn.BatchNorm(use_running_average=not train, use_scale=False)(x))

        def inception(x, *channels):
            branches = [conv(x, c, size) for c, size in zip(channels, (1, 3), strict=True)]
            return jnp.concatenate(branches, axis=-1)

        def downsample(x, channels):
            pooled = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            return jnp.concatenate([conv(x, channels, 3, 2), pooled], axis=-1)

        x = conv(x, 96, 3)
        x = inception(inception(x, 32, 32), 32, 48)
        x = downsample(x, 80)
        for channels in ((112, 48), (96, 64), (80, 80), (48, 96)):
            x = inception(x, *channels)
        x = downsample(x, 96)
        x = inception(inception(x, 176, 160), 176, 160)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class Plain(nn.Module):
    """3x3 convolutions, dense layers and relu, no normalisation; 0 channels are max pooling."""

    channels: tuple[int, ...]
    dense: tuple[int, ...]
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """The logits."""
        del train
        for channels in self.channels:
            if channels:
                x = nn.relu(nn.Conv(channels, (3, 3), kernel_init=_HE)(x))
            else:
                x = nn.max_pool(x, (2, 2), (2, 2), "SAME")
        x = x.reshape(len(x), -1)
        for units in self.dense:
            x = nn.relu(nn.Dense(units, kernel_init=_HE)(x))
        return nn.Dense(self.num_classes)(x)


small_inception = SmallInception
# Jastrzebski et al. 2020 and 2021.
simple_cnn = functools.partial(Plain, (32, 32, 0, 64, 64, 0), (128,))
# Simonyan and Zisserman 2015, table 1, A; of its dense layers the last alone, as for small images.
vgg11 = functools.partial(Plain, (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0), ())
