"""A network with one hidden layer on a linear model, with a step size for each layer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import loops

DIMENSIONS, SAMPLES, TEST = 50, 100, 1000
SCALES = (1.0, 4.0)
"""Smallest and largest standard deviation of the inputs' entries, geometric in between."""
SMALL = 0.01
"""Factor of the second layer's first weights."""


def init(key: jax.Array, hidden: int) -> dict[str, Any]:
    """The first weights: PyTorch's, but the first layer's Gaussian and the second's small."""
    keys = jax.random.split(key, 4)

    def uniform(key, shape, fan_in):
        bound = 1 / np.sqrt(fan_in)
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    kernel = jax.random.normal(keys[0], (DIMENSIONS, hidden)) / np.sqrt(3 * DIMENSIONS)
    return {
        "first": {"kernel": kernel, "bias": uniform(keys[1], (hidden,), DIMENSIONS)},
        "second": {
            "kernel": SMALL * uniform(keys[2], (hidden,), hidden),
            "bias": uniform(keys[3], (), hidden),
        },
    }


def outputs(params: Any, inputs: jax.Array) -> jax.Array:
    """(n,) of inputs (n, d)."""
    first, second = params["first"], params["second"]
    hidden = jax.nn.relu(inputs @ first["kernel"] + first["bias"])
    return hidden @ second["kernel"] + second["bias"]


def risks(hidden: int, rates: tuple[float, float], records: tuple[int, ...], seed: int) -> Any:
    """The mean absolute error on new examples after so many steps of gradient descent.

    Its loss is the sum of squares.

    Args:
      hidden: units.
      rates: step sizes of the two layers.
      records: after how many steps, ascending.
      seed: of data and first weights.
    """
    rng = np.random.default_rng([seed, 4])
    theta = rng.standard_normal(DIMENSIONS)
    drawn = rng.standard_normal((SAMPLES + TEST, DIMENSIONS)) * np.geomspace(*SCALES, DIMENSIONS)
    data = jnp.asarray(drawn, jnp.float32), jnp.asarray(drawn @ theta, jnp.float32)
    gaps = jnp.diff(jnp.array((0, *records)))
    found = _train(init(jax.random.key(seed), hidden), data, jnp.array(rates), gaps)
    return np.asarray(found, float)


@jax.jit
def _train(params, data, rates, gaps):
    inputs, targets = data
    train = inputs[:SAMPLES], targets[:SAMPLES]
    gradient = jax.grad(lambda p: jnp.square(outputs(p, train[0]) - train[1]).sum())

    def step(_, params):
        moved = gradient(params)
        return {
            layer: jax.tree.map(lambda a, g, rate=rate: a - rate * g, params[layer], moved[layer])
            for layer, rate in zip(("first", "second"), rates, strict=True)
        }

    def block(params, gap):
        params = loops.fori(gap, step, params)
        return params, jnp.abs(outputs(params, inputs[SAMPLES:]) - targets[SAMPLES:]).mean()

    return loops.scan(block, params, gaps)[1]
