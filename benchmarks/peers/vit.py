"""ViT-Tiny for images of 32 x 32, patches of 4 x 4: 5.4 million parameters, in JAX."""

import jax
import numpy as np

from benchmarks.peers import blocks, resnet
from benchmarks.peers.blocks import Params

HEADS, PATCH, CLASSES, PER = 3, 4, 10, "example"


def params(seed: int = 0, small: bool = False) -> Params:
    """Width 192, 12 layers, the mean over the patches before the output."""
    width, count = (12, 1) if small else (192, 12)
    draw = np.random.default_rng(seed)
    return {
        "patches": blocks.dense(draw, 3 * PATCH**2, width),
        "positions": np.float32(0.02 * draw.normal(size=((32 // PATCH) ** 2, width))),
        **blocks.layers(draw, width, count),
        "out": blocks.dense(draw, width, CLASSES, 0.1),
    }


batch = resnet.batch


def apply(params: Params, images: jax.Array) -> jax.Array:
    """Logits of images, channels last."""
    n, side = len(images), 32 // PATCH
    x = images.reshape(n, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    x = blocks.linear(x.reshape(n, side * side, -1), params["patches"]) + params["positions"]
    x = blocks.through(params, x, HEADS, causal=False)
    return blocks.linear(x.mean(1), params["out"])
