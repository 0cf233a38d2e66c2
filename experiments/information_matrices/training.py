"""Gradient descent of one seed and arm, and the comparisons along its way."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.information_matrices.comparisons import compare, divergences, matrices, takeuchi
from experiments.lib.data.small import SmallData, small_data
from experiments.lib.nets.architecture import network
from experiments.lib.nets.flat import FlatNetwork, flat_network
from experiments.lib.runs.errors import BadData, BadNetwork
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.runs.metrics import MetricsLog
from flatjax import loops

if TYPE_CHECKING:
    from experiments.information_matrices import Config

LARGEST = 6000
"""Parameters: three matrices of so many rows take 0.9 GB in float64, eigenvectors as much again."""


@functools.partial(jax.jit, static_argnums=(0, 1))
def _descend(losses_fn, batch_size, state, data, rate, momentum, key, steps):
    """Heavy ball's state after more steps: parameters, velocity, steps so far."""

    def step(_, state):
        params, velocity, count = state
        batch = data
        if batch_size is not None:
            draw = jax.random.fold_in(key, count)
            index = jax.random.randint(draw, (batch_size,), 0, len(data[1]))
            batch = jax.tree.map(lambda a: a[index], data)
        gradient = jax.grad(lambda p: losses_fn(p, batch).mean())(params)
        velocity = momentum * velocity + gradient
        return params - rate * velocity, velocity, count + 1

    return loops.fori(steps, step, state)


def pooled(inputs: np.ndarray, side: int) -> np.ndarray:
    """Images averaged over squares.

    Raises:
      BadData: they are no images, or not cut into such squares.
    """
    if side == 1:
        return inputs
    if inputs.ndim != 4 or inputs.shape[1] % side or inputs.shape[2] % side:
        raise BadData(
            f"--pool {side} averages over squares of {side} x {side} pixels, and inputs of shape "
            f"{inputs.shape[1:]} are not cut into such: choose a divisor, or 1"
        )
    n, height, width, channels = inputs.shape
    squares = inputs.reshape(n, height // side, side, width // side, side, channels)
    return squares.mean((2, 4))


def prepared(config: Config, arm: str, seed: int) -> tuple[FlatNetwork, SmallData]:
    """The network and the data of an arm.

    Raises:
      BadNetwork: its matrices are too large, or mean nothing.
    """
    fresh = arm == "fresh"
    architecture = config.fresh_architecture if fresh else config.architecture
    if architecture.loss != "cross_entropy":
        raise BadNetwork(f"F is that of cross_entropy: {arm} cannot have {architecture.loss}")
    data = small_data(
        config.data,
        seed=seed,
        train_size=config.fresh_size if fresh else config.train_size,
        test_size=config.test_size,
        num_classes=architecture.classes,
        flat=False,
    )

    def shaped(inputs: np.ndarray) -> np.ndarray:
        inputs = pooled(inputs, config.pool)
        return inputs.reshape(len(inputs), -1) if architecture.flat else inputs

    data = data._replace(inputs=shaped(data.inputs), test_inputs=shaped(data.test_inputs))
    example = jnp.asarray(data.inputs[:1])
    if jax.eval_shape(network(architecture).init, jax.random.key(seed), example)[1]:
        raise BadNetwork(
            f"{architecture.network} has batch norm, with which no example has a gradient of its "
            "own: name a network without, or with group or layer norm"
        )
    net = flat_network(architecture, data.inputs.shape[1:])
    if net.size > LARGEST:
        raise BadNetwork(
            f"{architecture.network} has {net.size:,} parameters on inputs of shape "
            f"{data.inputs.shape[1:]}, and dense matrices are not formed beyond {LARGEST:,}: name "
            "a smaller network for the arm, such as cnn-2, or average over pixels by --pool"
        )
    return net, data


def run_seed(config: Config, seed: int, folder: Path) -> dict[str, Any]:
    """The comparisons of one seed after every number of steps, by arm."""
    arms = {arm: prepared(config, arm, seed) for arm in ("fitted", "fresh")}
    return {arm: _run_arm(config, arm, *arms[arm], seed, folder / arm) for arm in arms}


def _run_arm(config: Config, arm: str, net, data, seed: int, folder: Path) -> list[dict[str, Any]]:
    train = (jnp.asarray(data.inputs), jnp.asarray(data.targets))
    test = (jnp.asarray(data.test_inputs), jnp.asarray(data.test_targets))
    batch = test if arm == "fresh" else train
    key = jax.random.key(seed)
    rows = []

    def trained() -> dict[str, np.ndarray]:
        params, kept = net.init(key), []
        state = params, jnp.zeros_like(params), jnp.int32(0)
        options = config.learning_rate, config.momentum, key
        for step in config.steps:
            more = step - int(state[2])
            state = _descend(net.losses_fn, config.batch_size, state, train, *options, more)
            kept.append(state[0])
        return {"params": np.stack(kept)}

    folder.mkdir(parents=True, exist_ok=True)
    kept = kept_arrays(folder / "params.npz", trained)["params"]
    with MetricsLog(folder) as log:
        for step, params in zip(config.steps, jnp.asarray(kept), strict=True):
            found = matrices(net, params, batch)
            # As many directions as classes but one.
            row: dict[str, Any] = dict(compare(found, net.architecture.classes - 1))
            row["loss"] = float(net.losses_fn(params, train).mean())
            row["gap"] = float(net.losses_fn(params, test).mean()) - row["loss"]
            row["accuracy"] = float(net.accuracy(params, *train))
            if arm == "fresh":
                row["takeuchi"] = takeuchi(found, len(data.targets))
            row["kl"], row["kl_by_c"] = divergences(net, params, batch, key)
            log.write(step, "matrices", row)
            rows.append(row | {"step": step})
    return rows
