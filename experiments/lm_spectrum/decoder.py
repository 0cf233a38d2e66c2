"""The network: a pre-norm decoder, the type of each of its blocks, and its loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

import flatjax
from experiments.lib.nets.networks import Style, TransformerBlock

TYPES = ("embedding", "query/key", "MLP", "value/output", "norm")
"""In the order of their traces per parameter (Wang et al. 2025) ..."""
HEAD = "head"
"""... in which an untied last layer has no place."""

_OF_PART = {
    "embed": "embedding", "position": "embedding", "query": "query/key", "key": "query/key",
    "Dense_0": "MLP", "Dense_1": "MLP", "value": "value/output", "out": "value/output",
    "LayerNorm_0": "norm", "LayerNorm_1": "norm", "head": HEAD,
}  # fmt: skip
_STYLE = Style("gelu", "layer", 0.5, 0.5, dropout=0.0, noise=0.0, skip=True)
_LOSS = flatjax.softmax_cross_entropy(per="token")


class Block(TransformerBlock):
    """One of its blocks, as a function of its input alone, so that it can be computed twice."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x, train=False)


class Decoder(nn.Module):
    """A causal transformer over token ids (n, length) with learned positions.

    It answers with a `flatjax.losses.LinearHead`: no logits are kept. With `remat`
    gradients compute every block twice, and keep of it no more than its input.
    """

    vocabulary: int
    context: int
    width: int
    layers: int
    heads: int
    tied: bool
    remat: bool = False

    @nn.compact
    def __call__(self, tokens: jax.Array) -> flatjax.losses.LinearHead:
        init = nn.initializers.normal(0.02)
        embed = nn.Embed(self.vocabulary, self.width, embedding_init=init, name="embed")
        x = embed(tokens) + self.param("position", init, (self.context, self.width))
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.layers):
            x = block(_STYLE, self.heads, causal=True, name=f"block_{i}")(x)
        x = nn.LayerNorm()(x)
        if self.tied:
            return flatjax.losses.LinearHead(x, embed.embedding.T)
        return flatjax.losses.LinearHead(x, self.param("head", init, (self.width, self.vocabulary)))


def block_type(path: str) -> str:
    """The type of the block that a parameter belongs to, by its path.

    Raises:
      ValueError: it belongs to none.
    """
    found = [_OF_PART[part] for part in path.split("/") if part in _OF_PART]
    if len(found) != 1:
        raise ValueError(f"the parameter {path} belongs to {len(found)} types of blocks")
    return found[0]


@functools.cache
def loss_of(model: Decoder) -> Callable[[Any, Any], jax.Array]:
    """`loss_fn(params, (inputs, targets))`: the mean over the tokens; one object for a model."""

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        inputs, targets = batch
        return _LOSS.mean(model.apply({"params": params}, inputs), targets).value

    return loss_fn


def start(model: Decoder, seed: int) -> Any:
    """The first parameters."""
    example = jax.numpy.zeros((1, model.context), int)
    return model.init(jax.random.key(seed), example)["params"]
