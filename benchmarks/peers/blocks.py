"""What GPT and ViT are made of, in JAX: layers of attention and a perceptron, norms before."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, Any]


def dense(draw: np.random.Generator, inputs: int, outputs: int, scale: float = 1.0) -> Params:
    """A kernel of variance ``scale^2 / inputs``, and a bias."""
    kernel = scale / math.sqrt(inputs) * draw.normal(size=(inputs, outputs))
    return {"kernel": np.float32(kernel), "bias": np.zeros(outputs, np.float32)}


def norm(width: int) -> Params:
    """Scale and bias."""
    return {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}


def layers(draw: np.random.Generator, width: int, count: int) -> Params:
    """Layers and the norm after the last; what they add to the stream is scaled by their number."""
    less = 1 / math.sqrt(2 * count)
    found: Params = {
        f"layer{i:02}": {
            "norm1": norm(width),
            "attention": dense(draw, width, 3 * width),
            "mix": dense(draw, width, width, less),
            "norm2": norm(width),
            "up": dense(draw, width, 4 * width),
            "down": dense(draw, 4 * width, width, less),
        }
        for i in range(count)
    }
    return found | {"norm": norm(width)}


def linear(x: jax.Array, p: Params) -> jax.Array:
    """A dense layer."""
    return x @ p["kernel"] + p["bias"]


def normalised(x: jax.Array, p: Params) -> jax.Array:
    """Layer norm."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def through(params: Params, x: jax.Array, heads: int, causal: bool) -> jax.Array:
    """The stream after all layers and the last norm; x is of shape (examples, positions, width)."""
    for name in sorted(name for name in params if name.startswith("layer")):
        p = params[name]
        mixed = _attention(normalised(x, p["norm1"]), p["attention"], heads, causal)
        x = x + linear(mixed, p["mix"])
        gelu = functools.partial(jax.nn.gelu, approximate=True)
        x = x + linear(gelu(linear(normalised(x, p["norm2"]), p["up"])), p["down"])
    return normalised(x, params["norm"])


def _attention(x: jax.Array, p: Params, heads: int, causal: bool) -> jax.Array:
    examples, positions, width = x.shape
    shape = (examples, positions, heads, width // heads)
    q, k, v = (a.reshape(shape) for a in jnp.split(linear(x, p), 3, axis=-1))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(width // heads)
    if causal:
        scores = jnp.where(np.tri(positions, dtype=bool), scores, -1e9)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
    return mixed.reshape(x.shape)
