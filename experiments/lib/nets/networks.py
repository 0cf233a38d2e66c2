"""The flax modules behind `experiments.lib.nets.models`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.lib.nets.config import ModelConfig
from experiments.lib.nets.noise import Noise

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "tanh": jnp.tanh,
    "gelu": nn.gelu,
    "elu": nn.elu,
    "softplus": nn.softplus,
    "identity": lambda x: x,
}


@dataclass(frozen=True)
class Style:
    """What all layers of a network share."""

    activation: str
    norm: str
    init_scale: float
    head_scale: float
    dropout: float
    noise: float
    skip: bool

    def branch_scale(self, blocks: int) -> float:
        """The factor of each of so many blocks, where their inputs are added to them.

        Without normalisation 1 / sqrt(blocks), or the signal would double in every block.
        """
        return 1 / math.sqrt(blocks) if self.skip and self.norm == "none" else 1.0

    def act(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The non-linearity; in training behind noise, if there is any."""
        x = Noise(self.noise)(x, train=train) if self.noise else x
        return _ACTIVATIONS[self.activation](x)

    def normalize(self, x: jax.Array, *, train: bool, name: str | None = None) -> jax.Array:
        """Batch, group or layer norm, or nothing; to be called inside a compact method.

        Group norm takes the largest number of groups up to 8 that divides the channels; layer
        norm is over the channels of each position; batch statistics move with momentum 0.9.
        """
        if self.norm == "batch":
            return nn.BatchNorm(use_running_average=not train, momentum=0.9, name=name)(x)
        if self.norm == "group":
            groups = max(g for g in range(1, 9) if x.shape[-1] % g == 0)
            return nn.GroupNorm(num_groups=groups, name=name)(x)
        if self.norm == "layer":
            return nn.LayerNorm(name=name)(x)
        return x

    def drop(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Dropout, traced only where there is any, so that no key is needed without it."""
        return nn.Dropout(self.dropout, deterministic=not train)(x) if self.dropout else x

    def conv(self, channels: int, size: int = 3, stride: int = 1, name: str | None = None):
        """A convolution; without a bias where a norm with its own bias follows."""
        return nn.Conv(
            channels,
            (size, size),
            (stride, stride),
            use_bias=self.norm == "none",
            kernel_init=_normal(self.init_scale),
            name=name,
        )

    def dense(self, features: int) -> nn.Dense:
        """A dense layer."""
        return nn.Dense(features, kernel_init=_normal(self.init_scale))

    def embed(self, features: int) -> nn.Dense:
        """The first layer of a transformer, linear."""
        return nn.Dense(features, kernel_init=_normal(self.head_scale), name="embed")

    def head(self, features: int) -> nn.Dense:
        """The last layer: no non-linearity follows that its scale would have to make up for."""
        return nn.Dense(features, kernel_init=_normal(self.head_scale), name="head")


def _normal(scale: float) -> Any:
    """W ~ N(0, scale^2 / fan_in)."""
    return nn.initializers.variance_scaling(scale**2, "fan_in", "normal")


class MLP(nn.Module):
    """A multilayer perceptron on flattened inputs; with skips from hidden layer to hidden layer."""

    style: Style
    width: int
    depth: int
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        scale = self.style.branch_scale(max(1, self.depth - 1))
        for layer in range(self.depth):
            y = self.style.normalize(self.style.dense(self.width)(x), train=train)
            x = self.style.act(x + scale * y if self.style.skip and layer else y, train=train)
        return self.style.head(self.num_classes)(self.style.drop(x, train=train))


class StridedCNN(nn.Module):
    """Two convolutions of stride 2 and a dense layer of 64 units: small, and fast on a CPU."""

    style: Style
    width: int
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for stage, size in enumerate((5, 3)):
            x = self.style.conv(self.width * 2**stage, size, 2)(x)
            x = self.style.act(self.style.normalize(x, train=train), train=train)
        x = self.style.act(self.style.dense(64)(x.reshape(x.shape[0], -1)), train=train)
        return self.style.head(self.num_classes)(self.style.drop(x, train=train))


class CNN(nn.Module):
    """VGG-like: stages of two 3x3 convolutions, each ending in max pooling and twice as wide.

    Simonyan and Zisserman, 2015, without the wide dense layers, or with a single one. Images one
    pixel across are pooled no further.
    """

    style: Style
    width: int
    depth: int
    dense: int
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for stage in range(self.depth):
            for _ in range(2):
                x = self.style.conv(self.width * 2**stage)(x)
                x = self.style.act(self.style.normalize(x, train=train), train=train)
            if min(x.shape[1:3]) > 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        if self.dense:
            x = self.style.act(self.style.dense(self.dense)(x), train=train)
        x = self.style.drop(x, train=train)
        return self.style.head(self.num_classes)(x)


class BasicBlock(nn.Module):
    """conv, norm, act, conv, norm, added to the input if there are skips, act."""

    style: Style
    channels: int
    stride: int
    branch_scale: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = self.style.conv(self.channels, stride=self.stride)(x)
        y = self.style.act(self.style.normalize(y, train=train), train=train)
        y = self.style.conv(self.channels)(y)
        y = self.style.normalize(y, train=train)
        if not self.style.skip:
            return self.style.act(y, train=train)
        if x.shape != y.shape:
            x = self.style.conv(self.channels, 1, self.stride, name="shortcut")(x)
            x = self.style.normalize(x, train=train, name="shortcut_norm")
        return self.style.act(x + self.branch_scale * y, train=train)


class ResNet(nn.Module):
    """Residual network for small images: a 3x3 stem, then stages, halved and doubled in between.

    He et al., "Deep Residual Learning", CVPR 2016; without skips their plain network.
    """

    style: Style
    width: int
    blocks: tuple[int, ...]
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        scale = self.style.branch_scale(sum(self.blocks))
        x = self.style.act(
            self.style.normalize(self.style.conv(self.width)(x), train=train), train=train
        )
        for stage, count in enumerate(self.blocks):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                x = BasicBlock(self.style, self.width * 2**stage, stride, scale)(x, train=train)
        x = self.style.drop(x.mean((1, 2)), train=train)
        return self.style.head(self.num_classes)(x)


class WideBlock(nn.Module):
    """norm, act, conv, norm, act, dropout, conv, added to the input if there are skips."""

    style: Style
    channels: int
    stride: int
    branch_scale: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = self.style.act(self.style.normalize(x, train=train), train=train)
        shortcut = x
        if self.style.skip and (self.stride > 1 or x.shape[-1] != self.channels):
            shortcut = self.style.conv(self.channels, 1, self.stride, "shortcut")(y)
        y = self.style.conv(self.channels, stride=self.stride)(y)
        y = self.style.act(self.style.normalize(y, train=train), train=train)
        y = self.style.conv(self.channels)(self.style.drop(y, train=train))
        if not self.style.skip:
            return y
        return shortcut + self.branch_scale * y


class WideResNet(nn.Module):
    """Wide residual network: three stages of 16k, 32k and 64k channels.

    Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016.
    """

    style: Style
    factor: int
    blocks_per_stage: int
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        scale = self.style.branch_scale(3 * self.blocks_per_stage)
        x = self.style.conv(16)(x)
        for stage in range(3):
            for block in range(self.blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                channels = 16 * self.factor * 2**stage
                x = WideBlock(self.style, channels, stride, scale)(x, train=train)
        x = self.style.act(self.style.normalize(x, train=train), train=train).mean((1, 2))
        return self.style.head(self.num_classes)(x)


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and a perceptron four times as wide."""

    style: Style
    heads: int
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        model_width = x.shape[-1]
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2])) if self.causal else None
        y = self.style.normalize(x, train=train)
        y = nn.MultiHeadDotProductAttention(
            self.heads, kernel_init=_normal(self.style.init_scale), deterministic=True
        )(y, mask=mask)
        x = x + self.style.drop(y, train=train)
        y = self.style.normalize(x, train=train)
        y = self.style.act(self.style.dense(4 * model_width)(y), train=train)
        return x + self.style.drop(self.style.dense(model_width)(y), train=train)


class Transformer(nn.Module):
    """An encoder over image patches (Dosovitskiy et al., 2021) or token ids (n, length)."""

    style: Style
    width: int
    depth: int
    heads: int
    patch: int
    vocabulary: int | None
    causal: bool
    per_token: bool
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.vocabulary is None:
            x = self.style.embed(self.width)(_patches(x, self.patch))
        else:
            x = nn.Embed(self.vocabulary, self.width, name="embed")(x)
        position_init = nn.initializers.normal(0.02)
        x = x + self.param("position", position_init, (1, *x.shape[1:]), x.dtype)
        for _ in range(self.depth):
            x = TransformerBlock(self.style, self.heads, self.causal)(x, train=train)
        x = self.style.normalize(x, train=train)
        if not self.per_token:
            x = x.mean(1)
        return self.style.head(self.num_classes)(x)


def _patches(images: jax.Array, side: int) -> jax.Array:
    """(n, h, w, c) to (n, number of patches, side * side * c)."""
    n, height, width, channels = images.shape
    if height % side or width % side:
        raise ValueError(f"images of {height} x {width} pixels do not cut into patches of {side}")
    x = images.reshape(n, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, side * side * channels)


_WIDTHS = {
    "mlp": 128,
    "s2cnn": 16,
    "cnn": 16,
    "simple_cnn": 32,
    "resnet": 16,
    "wide_resnet": 2,
    "transformer": 64,
}
_DEPTHS = {"resnet": 8, "wide_resnet": 10}
_NORMS = {"resnet": "batch", "wide_resnet": "batch", "transformer": "layer"}


def build(config: ModelConfig, num_classes: int) -> nn.Module:
    """Returns the module of a `ModelConfig`; see there."""
    name = config.name
    if name not in _WIDTHS:
        raise ValueError(f"unknown model {name!r}; choose from {', '.join(_WIDTHS)}")
    width, depth = config.width or _WIDTHS[name], config.depth or _DEPTHS.get(name, 2)
    activation = config.activation or ("gelu" if name == "transformer" else "relu")
    norm = config.norm or _NORMS.get(name, "none")
    scale = config.init_scale or (math.sqrt(2) if activation == "relu" else 1.0)
    residual = name in ("resnet", "wide_resnet")
    if config.skip is not None and not residual and name != "mlp":
        raise ValueError(f"skip is for mlp, resnet and wide_resnet; leave it out for {name}")
    skip = residual if config.skip is None else config.skip
    style = Style(
        activation, norm, scale, config.init_scale or 1.0, config.dropout, config.noise, skip
    )
    if name == "mlp":
        return MLP(style, width, depth, num_classes)
    if name == "s2cnn":
        return StridedCNN(style, width, num_classes)
    if name in ("cnn", "simple_cnn"):
        return CNN(style, width, depth, 128 if name == "simple_cnn" else 0, num_classes)
    if name == "resnet":
        return ResNet(style, width, _resnet_blocks(depth), num_classes)
    if name == "wide_resnet":
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"a wide_resnet's depth is 6n + 4: 10, 16, 28, 40 ...; got {depth}")
        return WideResNet(style, width, (depth - 4) // 6, num_classes)
    if width % config.heads:
        raise ValueError(f"heads ({config.heads}) must divide the model's width ({width})")
    shape = (config.heads, config.patch, config.vocabulary, config.causal, config.per_token)
    return Transformer(style, width, depth, *shape, num_classes)


def _resnet_blocks(depth: int) -> tuple[int, ...]:
    if depth == 18:
        return (2, 2, 2, 2)
    if depth == 34:
        return (3, 4, 6, 3)
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"a resnet's depth is 6n + 2: 8, 14, 20, 32 ..., or 18 or 34; got {depth}")
    return ((depth - 2) // 6,) * 3
