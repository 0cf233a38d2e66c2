"""A network learns a sum of sines on an interval: which frequency comes first."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib.nets.mlp import apply_mlp, init_mlp
from flatjax import loops

POINTS = 100
LEARNED = 0.9
"""The share of a sine's amplitude at which it counts as learned."""


def amplitudes(
    seed: int, frequencies: Sequence[int], width: int, records: int, every: int, *, shuffled: bool
) -> np.ndarray:
    """The amplitudes of the sines in the network's output along training, (records, frequencies).

    The target is the sum of sin 2 pi k x with amplitudes one, at equidistant x from -1 to 1; Adam
    with full batches, three hidden layers of ReLU.

    Args:
      seed: of the network, and of the order of the points if shuffled.
      frequencies: k.
      width: units of a hidden layer.
      records: how many.
      every: steps between two of them.
      shuffled: whether the inputs are in random order, so that no sine is smooth in them.
    """
    x = -1 + 2 * np.arange(POINTS) / POINTS
    sines = np.sin(np.pi * np.outer(x, frequencies))
    seen = np.random.default_rng([seed, 5]).permutation(x) if shuffled else x
    params = init_mlp(jax.random.key(seed), (1, width, width, width, 1), scale=np.sqrt(2))
    given = tuple(jnp.asarray(a, jnp.float32) for a in (seen[:, None], sines))
    return np.asarray(_amplitudes(params, given, records, every), float)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _amplitudes(params, given, records, every):
    inputs, sines = given
    targets, tx = sines.sum(1), optax.adam(1e-3)
    outputs = lambda p: apply_mlp(p, inputs, activation=jax.nn.relu)[:, 0]  # noqa: E731
    gradient = jax.grad(lambda p: jnp.square(outputs(p) - targets).mean() / 2)

    def step(_, state):
        params, memory = state
        updates, memory = tx.update(gradient(params), memory)
        return optax.apply_updates(params, updates), memory

    def block(state, _):
        state = loops.fori(every, step, state)
        return state, 2 * outputs(state[0]) @ sines / POINTS

    return loops.scan(block, (params, tx.init(params)), jnp.arange(records))[1]


def learned_after(amplitudes: np.ndarray, every: int) -> np.ndarray:
    """The steps after which each sine is first learned, or all of them, (..., frequencies).

    `amplitudes` has the shape (..., records, frequencies).
    """
    there = amplitudes >= LEARNED
    first = np.where(there.any(-2), there.argmax(-2), there.shape[-2] - 1)
    return every * (first + 1.0)
