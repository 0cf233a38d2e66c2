"""A decoder of 7.4 million parameters, vocabulary 8,192, in JAX."""

import jax
import numpy as np

from benchmarks.peers import blocks
from benchmarks.peers.blocks import Params

HEADS, PER = 4, "token"


def params(seed: int = 0, small: bool = False) -> Params:
    """Width 256, 4 layers, 128 positions, the output not tied to the embedding."""
    width, count, vocabulary, positions = (16, 1, 64, 8) if small else (256, 4, 8192, 128)
    draw = np.random.default_rng(seed)
    return {
        "embedding": np.float32(0.02 * draw.normal(size=(vocabulary, width))),
        "positions": np.float32(0.02 * draw.normal(size=(positions, width))),
        **blocks.layers(draw, width, count),
        "out": np.float32(0.02 * draw.normal(size=(width, vocabulary))),
    }


def batch(small: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """8 sequences of 128 tokens that follow Zipf's law or, half of them, the token before."""
    examples, positions, vocabulary = (2, 8, 64) if small else (8, 128, 8192)
    draw = np.random.default_rng(1)
    rank = 1 / np.arange(1, vocabulary + 1)
    ids = draw.choice(vocabulary, (examples, positions + 1), p=rank / rank.sum())
    for t in range(1, positions + 1):
        follows = draw.random(examples) < 0.5
        ids[:, t] = np.where(follows, (5 * ids[:, t - 1] + 3) % vocabulary, ids[:, t])
    return ids[:, :-1].astype(np.int32), ids[:, 1:].astype(np.int32)


def apply(params: Params, ids: jax.Array) -> jax.Array:
    """Logits, one row a token."""
    x = params["embedding"][ids] + params["positions"]
    return blocks.through(params, x, HEADS, causal=True) @ params["out"]
