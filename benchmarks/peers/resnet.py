"""ResNet-18 for images of 32 x 32, with group norm: 11.2 million parameters, in JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WIDTHS, GROUPS, CLASSES, PER = (64, 128, 256, 512), 32, 10, "example"


def params(seed: int = 0, small: bool = False) -> dict[str, Any]:
    """He's initial values."""
    widths = (32, 64, 96, 128) if small else WIDTHS
    draw = np.random.default_rng(seed)

    def kernel(window, inputs, outputs):
        scale = np.sqrt(2 / (window * window * inputs))
        return np.float32(scale * draw.normal(size=(window, window, inputs, outputs)))

    def norm(width):
        return {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}

    before = widths[0]
    found: dict[str, Any] = {"stem": kernel(3, 3, before), "norm": norm(before)}
    for i, width in enumerate(widths):
        for j in range(2):
            block = {"first": kernel(3, before, width), "norm1": norm(width)}
            block |= {"second": kernel(3, width, width), "norm2": norm(width)}
            if before != width:
                block |= {"skip": kernel(1, before, width), "norm0": norm(width)}
            found[f"block{i}{j}"], before = block, width
    found["out"] = np.float32(draw.normal(size=(before, CLASSES)) / before**0.5)
    return found


def batch(small: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """32 images of classes with means of their own, a tenth of the labels wrong."""
    n = 2 if small else 32
    draw = np.random.default_rng(1)
    labels = draw.integers(0, CLASSES, n)
    means = draw.normal(size=(CLASSES, 32, 32, 3))
    images = 0.5 * draw.normal(size=(n, 32, 32, 3)) + 0.5 * means[labels]
    wrong = draw.random(n) < 0.1
    labels = np.where(wrong, draw.integers(0, CLASSES, n), labels)
    return images.astype(np.float32), labels.astype(np.int32)


def apply(params: dict[str, Any], x: jax.Array) -> jax.Array:
    """Logits of images, channels last."""

    def conv(x, kernel, stride=1):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=numbers
        )

    def norm(x, p):
        n, h, w, c = x.shape
        grouped = x.reshape(n, h * w, GROUPS, c // GROUPS)
        mean = grouped.mean((1, 3), keepdims=True)
        centred = grouped - mean
        variance = jnp.square(centred).mean((1, 3), keepdims=True)
        return (centred * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape) * p["scale"] + p["bias"]

    x = jax.nn.relu(norm(conv(x, params["stem"]), params["norm"]))
    for i in range(len(WIDTHS)):
        for j in range(2):
            p, stride = params[f"block{i}{j}"], 2 if i and not j else 1
            y = jax.nn.relu(norm(conv(x, p["first"], stride), p["norm1"]))
            y = norm(conv(y, p["second"]), p["norm2"])
            if "skip" in p:
                x = norm(conv(x, p["skip"], stride), p["norm0"])
            x = jax.nn.relu(x + y)
    return x.mean((1, 2)) @ params["out"]
