"""Networks of papers that are of no family in `experiments.lib.nets.networks`.

Recipe(network="experiments.lib.nets.papers:SmallInception")
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


class VGG11(nn.Module):
    """Simonyan and Zisserman, 2015, table 1, A: for small images with a single dense layer."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """The logits."""
        del train
        for channels in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
            if channels:
                x = nn.relu(nn.Conv(channels, (3, 3), kernel_init=_HE)(x))
            else:
                x = nn.max_pool(x, (2, 2), (2, 2), "SAME")
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


class ShallowNet(nn.Module):
    """C1 of Keskar et al., ICLR 2017, appendix B, as in their code: AlexNet for small images."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """The logits; with `train` dropout wants a key."""

        def normalized(x):
            return nn.relu(nn.BatchNorm(use_running_average=not train)(x))

        for _ in range(2):
            x = normalized(nn.Conv(64, (5, 5), kernel_init=_HE)(x))
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        x = x.reshape(len(x), -1)
        for features in (384, 192):
            x = normalized(nn.Dense(features, kernel_init=_HE)(x))
            x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x)


class TwoTokens(nn.Module):
    """The transformer of Power et al., 2022, on two residues: two layers, four heads, width 128.

    The sequence is a, the operation, b, the equals sign; the answer is read from the last place.
    """

    num_classes: int
    width: int = 128
    layers: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """The logits of pairs (n, 2)."""
        del train
        operation, equals = self.num_classes, self.num_classes + 1
        symbols = [x[:, 0], jnp.full_like(x[:, 0], operation), x[:, 1]]
        tokens = jnp.stack([*symbols, jnp.full_like(x[:, 0], equals)], 1)
        x = nn.Embed(self.num_classes + 2, self.width)(tokens)
        x += self.param("position", nn.initializers.normal(0.02), (4, self.width))
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.layers):
            attended = nn.MultiHeadDotProductAttention(4, use_bias=False)(x, x, mask=mask)
            x = nn.LayerNorm()(x + attended)
            x = nn.LayerNorm()(x + nn.Dense(self.width)(nn.relu(nn.Dense(4 * self.width)(x))))
        return nn.Dense(self.num_classes, use_bias=False)(x[:, -1])


small_two_tokens = functools.partial(TwoTokens, width=32, layers=1)
"""The same with one layer of width 32."""


class AllCNN(nn.Module):
    """Springenberg et al., 2015, with batch norm as in Achille et al., ICLR 2019."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """The logits."""
        wide = ((96, 3, 1), (96, 3, 1), (192, 3, 2), (192, 3, 1), (192, 3, 1), (192, 3, 2))
        narrow = ((192, 3, 1), (192, 1, 1), (self.num_classes, 1, 1))
        for channels, size, stride in (*wide, *narrow):
            shape = (size, size), (stride, stride)
            x = nn.Conv(channels, *shape, use_bias=False, kernel_init=_HE)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return x.mean((1, 2))
