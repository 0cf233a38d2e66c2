"""Training in the modes of the neural tangent kernel, in double precision."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flatjax
from experiments.lib.data.small import small_data
from experiments.lib.nets.mlp import apply_mlp, init_mlp
from flatjax import loops

STRENGTH = 0.1
"""The step size times the largest eigenvalue of the kernel over the number of examples."""

model_fn = functools.partial(apply_mlp, activation=jnp.tanh)


def modes(seed: int, size: int, width: int, steps: int, count: int) -> dict[str, np.ndarray]:
    """Gradient descent on (1 / 2 n) |f - y|^2, of a network and of its linearisation at the start.

    One hidden layer; the targets are +1 for odd digits and -1 for even ones.

    Args:
      seed: of data and network.
      size: n, training examples.
      width: hidden units.
      steps: of gradient descent.
      count: how many of the leading modes are looked at.

    Returns:
      `rates`, what each mode of the linearised network loses in a step, a share; `theory`, eta
      lambda / n; `other`, the same of the kernel of another initialisation, (count,) each; `apart`,
      the distance of the two networks' outputs at the end over the distance of those from the
      targets.
    """
    with jax.enable_x64(True):
        data = small_data("digits", seed=seed, train_size=size)
        inputs = jnp.asarray(data.inputs, jnp.float64)
        targets = jnp.asarray(2.0 * (data.targets % 2) - 1)[:, None]
        keys = jax.random.split(jax.random.key(seed))
        start, other = (init_mlp(key, (inputs.shape[1], width, 1)) for key in keys)
        values, vectors = _eigenpairs(start, inputs)
        rate = STRENGTH * size / values[0]
        linear, network = _descend(start, (inputs, targets), rate, steps)
        along = vectors[:, :count].T @ (np.stack([network[0], linear]) - np.asarray(targets)[None])
        before, after = along[..., 0]
        theory = rate * values / size
        return {
            "rates": 1 - abs(after / before) ** (1 / steps),
            "theory": theory[:count],
            "other": (rate * _eigenpairs(other, inputs)[0] / size)[:count],
            "apart": np.asarray(
                np.linalg.norm(network[1] - linear) / np.linalg.norm(linear - targets)
            ),
        }


def _eigenpairs(params: Any, inputs: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Of the kernel on the inputs, descending."""
    kernel = np.asarray(flatjax.ntk(model_fn, params, inputs).to_dense())
    values, vectors = np.linalg.eigh(kernel)
    return values[::-1], vectors[:, ::-1]


@functools.partial(jax.jit, static_argnums=3)
def _descended(start, batch, rate, steps):
    inputs, targets = batch
    first, jacobian = jax.linearize(lambda p: model_fn(p, inputs), start)
    transpose = jax.linear_transpose(jacobian, start)

    def moved(params, gradient):
        return jax.tree.map(lambda a, g: a - rate * g / len(inputs), params, gradient)

    def linear_step(_, moves):
        return moved(moves, transpose(first + jacobian(moves) - targets)[0])

    def step(_, params):
        outputs, back = jax.vjp(lambda p: model_fn(p, inputs), params)
        return moved(params, back(outputs - targets)[0])

    moves = loops.fori(steps, linear_step, jax.tree.map(jnp.zeros_like, start))
    params = loops.fori(steps, step, start)
    return first + jacobian(moves), (first, model_fn(params, inputs))


def _descend(start: Any, batch: Any, rate: float, steps: int) -> Any:
    """The last outputs of the linearised network; the first and the last of the network."""
    return jax.tree.map(np.asarray, _descended(start, batch, rate, steps))
