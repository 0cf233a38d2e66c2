"""Networks of benchmark size: pure functions, params and a batch."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Problem(NamedTuple):
    """A network with its data.

    Attributes:
      model_fn: ``model_fn(params, inputs) -> logits``.
      params: a pytree.
      batch: ``(inputs, class ids)``.
    """

    model_fn: Callable[[Any, Any], jax.Array]
    params: Any
    batch: tuple[jax.Array, jax.Array]

    def losses_fn(self, params, batch):
        """The per-example losses."""
        import flatjax  # here, since the processes of other libraries use these networks too

        return flatjax.softmax_cross_entropy(self.model_fn(params, batch[0]), batch[1])

    def mean_loss(self, params, batch):
        """The mean loss."""
        return self.losses_fn(params, batch).mean()


def mlp_model(params, x):
    """Logits of a tanh network."""
    for weight in params[:-1]:
        x = jnp.tanh(x @ weight)
    return x @ params[-1]


def cnn_model(params, x):
    """Logits of 3 x 3 convolutions, the third with stride 2, mean pooling and a linear layer."""
    for i, kernel in enumerate(params["convolutions"]):
        stride = 2 if i == 2 else 1
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=layout
        )
        x = jnp.tanh(x)
    return x.mean(axis=(1, 2)) @ params["out"]


def _norm(x, scale):
    x = x - x.mean(axis=-1, keepdims=True)
    return scale * x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + 1e-6)


def transformer_model(params, ids, heads):
    """Logits of a causal pre-norm transformer, for every token."""
    width = params["out"].shape[0]
    mask = jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool))
    x = params["embedding"][ids] + params["positions"]
    for layer in params["layers"]:
        h = _norm(x, layer["scales"][0]) @ layer["attention"]
        q, k, v = (
            a.reshape(*a.shape[:2], heads, -1).swapaxes(1, 2) for a in jnp.split(h, 3, axis=-1)
        )
        scores = q @ k.swapaxes(2, 3) / (width / heads) ** 0.5
        mixed = jax.nn.softmax(jnp.where(mask, scores, -1e9)) @ v
        x = x + mixed.swapaxes(1, 2).reshape(x.shape) @ layer["projection"]
        x = x + jax.nn.gelu(_norm(x, layer["scales"][1]) @ layer["up"]) @ layer["down"]
    return x @ params["out"]


def _normal(key, *shape):
    fan_in = 1
    for axis in shape[:-1]:
        fan_in *= axis
    return jax.random.normal(key, shape) / fan_in**0.5


def mlp(width: int = 512, layers: int = 4, examples: int = 256) -> Problem:
    """A tanh network of equal layers."""
    keys = jax.random.split(jax.random.key(0), layers + 2)
    widths = [width] * layers + [10]
    shapes = itertools.pairwise(widths)
    params = [_normal(key, *shape) for key, shape in zip(keys[2:], shapes, strict=True)]

    inputs = jax.random.normal(keys[0], (examples, width))
    return Problem(mlp_model, params, (inputs, _labels(keys[1], (examples,), 10)))


def cnn(channels: int = 32, examples: int = 32, image: int = 16) -> Problem:
    """Four 3 x 3 convolutions in two stages, mean pooling, a linear layer."""
    keys = jax.random.split(jax.random.key(0), 7)
    c = channels
    shapes = [(3, 3, 3, c), (3, 3, c, c), (3, 3, c, 2 * c), (3, 3, 2 * c, 2 * c)]
    params = {
        "convolutions": [_normal(k, *s) for k, s in zip(keys[2:6], shapes, strict=True)],
        "out": _normal(keys[6], 2 * c, 10),
    }

    inputs = jax.random.normal(keys[0], (examples, image, image, 3))
    return Problem(cnn_model, params, (inputs, _labels(keys[1], (examples,), 10)))


def transformer(
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    vocabulary: int = 2048,
    positions: int = 64,
    examples: int = 8,
) -> Problem:
    """A causal pre-norm transformer; an example is a sequence, its loss the mean over tokens."""
    keys = iter(jax.random.split(jax.random.key(0), 4 + 4 * layers))
    params = {
        "embedding": 0.1 * jax.random.normal(next(keys), (vocabulary, width)),
        "positions": 0.1 * jax.random.normal(next(keys), (positions, width)),
        "layers": [
            {
                "attention": _normal(next(keys), width, 3 * width),
                "projection": _normal(next(keys), width, width),
                "up": _normal(next(keys), width, 4 * width),
                "down": _normal(next(keys), 4 * width, width),
                "scales": jnp.ones((2, width)),
            }
            for _ in range(layers)
        ],
        "out": _normal(next(keys), width, vocabulary),
    }
    ids = _labels(next(keys), (examples, positions + 1), vocabulary)
    model_fn = functools.partial(transformer_model, heads=heads)
    return Problem(model_fn, params, (ids[:, :-1], ids[:, 1:]))


def _labels(key, shape, classes):
    return jax.random.randint(key, shape, 0, classes)


PROBLEMS = {"mlp": mlp, "cnn": cnn, "transformer": transformer}
