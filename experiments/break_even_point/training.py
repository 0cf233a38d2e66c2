"""SGD with curvature and gradient noise measured on the way, in compiled loops."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import flatjax
from experiments.break_even_point.arms import Arm, with_batch_norm
from experiments.lib.data.small import SmallData
from experiments.lib.nets.flat import flat_network
from experiments.lib.runs.progress import say
from experiments.lib.runs.trajectory import run_chunks
from flatjax import loops

if TYPE_CHECKING:
    from experiments.break_even_point import Config

Records = dict[str, np.ndarray]

TRACKER = flatjax.track(1, num_blocks=2)
SHOWN = 200
"""Test examples whose predictions are recorded."""

NUMBERS = (
    *("time", "loss", "accuracy", "test_accuracy", "lambda_H", "lambda_B", "trace_B", "ratio_B"),
    *("variance_H", "lambda_K", "trace_K", "ratio_K"),  # not with batch norm
)
"""What is recorded at every measurement, beside the predictions."""


class State(NamedTuple):
    """A state of training; with a leading axis of seeds."""

    params: jax.Array
    track: Any
    key: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 6))
def _advance(net, batch_size, examples, rate_and_every, data_and_groups, state, blocks):
    rate, every = rate_and_every
    data, groups = data_and_groups
    losses_fn = net.losses_fn

    def group_losses(params, batch):
        return jax.vmap(lambda part: losses_fn(params, part).mean())(batch)

    def block(data, state, _):
        batch = (data.inputs, data.targets)

        def update(_, carry):
            params, key = carry
            key, draw = jax.random.split(jax.random.wrap_key_data(key))
            index = jax.random.choice(draw, batch[1].shape[0], (batch_size,), replace=False)
            part = jax.tree.map(lambda a: a[index], batch)
            gradient = jax.grad(lambda p: losses_fn(p, part).mean())(params)
            return params - rate * gradient, jax.random.key_data(key)

        params, key = loops.fori(every, update, (state.params, state.key))
        operator = _hessian(net, params, data, examples)
        track = loops.fori(3, lambda _, t: TRACKER.update(operator, t), state.track)
        grouped = jax.tree.map(lambda a: a[groups], batch)
        of_groups = jnp.linalg.eigvalsh(flatjax.gradient_gram(group_losses, params, grouped))
        logits = net(params, data.test_inputs)
        found = {
            "lambda_H": track.values[0],
            "lambda_B": of_groups[-1],
            "trace_B": of_groups.sum(),
            "loss": losses_fn(params, batch).mean(),
            "accuracy": net.accuracy(params, *batch),
            "test_accuracy": (logits.argmax(-1) == data.test_targets).mean(),
            "predictions": jax.nn.softmax(logits[:SHOWN]).astype(jnp.float16),
        }
        # With batch norm no example has a gradient of its own.
        if not net.has_batch_norm:
            some = jax.tree.map(lambda a: a[: examples[0]], batch)
            values = jnp.linalg.eigvalsh(flatjax.gradient_gram(losses_fn, params, some))
            found |= {
                "variance_H": curvature_variance(losses_fn, params, some, track.vectors[0]),
                "lambda_K": values[-1],
                "trace_K": values.sum(),
            }
        return State(params, track, key), found

    def one(data, state):
        return loops.scan(functools.partial(block, data), state, length=blocks)

    return net.over_seeds(one)(data, state)


def curvature_variance(losses_fn, params, batch, direction) -> jax.Array:
    """Mean over the examples of |H_i e - H e|^2, for a direction e."""

    def gradient(p, example):
        return jax.grad(lambda q: losses_fn(q, jax.tree.map(lambda a: a[None], example)).sum())(p)

    gradients = lambda p: jax.vmap(gradient, (None, 0))(p, batch)  # noqa: E731
    _, pushed = jax.jvp(gradients, (params,), (direction,))
    return jnp.square(pushed - pushed.mean(0)).sum(1).mean()


def _hessian(net, params, data, examples):
    """H of the first training examples."""
    batch = (data.inputs[: examples[1]], data.targets[: examples[1]])
    return flatjax.hessian(net.losses_fn, params, batch)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _settled(net, examples, data, params, keys):
    """The top eigenpair before the first step: the first records are no random vectors."""

    def one(data, params, key):
        return TRACKER.init(_hessian(net, params, data, examples), key=key)

    return net.over_seeds(one)(data, params, keys)


def groups_of(config: Config) -> np.ndarray:
    """The batches whose gradients make K_B: (batches, size), from whole passes over the data."""
    size = config.batch_sizes[1]
    each = config.train_size // size
    rng = np.random.RandomState(0)
    passes = -(-config.gradient_batches // each)
    order = [rng.permutation(config.train_size)[: each * size] for _ in range(passes)]
    return np.concatenate(order).reshape(-1, size)[: config.gradient_batches]


def run_arm(config: Config, folder: Path, arm: Arm, data: SmallData) -> Records:
    """The records of one arm, (seeds, measurements) and more axes each.

    NaN where there is nothing to measure: the claims on it stay open.
    """
    unknown = dict.fromkeys(NUMBERS, np.full((config.seeds, config.measurements), np.nan))
    own = config.architecture
    architecture = with_batch_norm(own) if arm.batch_norm else own
    if architecture is None:
        return unknown
    say(folder.name, enabled=not config.quiet)
    net = flat_network(architecture, data.inputs.shape[2:])
    every = max(round(arm.steps / config.measurements), 1)
    params = net.init_seeds(config.seed_range())
    keys = jax.random.split(jax.random.key(arm.order), config.seeds)
    data = jax.tree.map(jnp.asarray, data)
    examples = (config.examples, config.curvature_examples)
    start = State(params, _settled(net, examples, data, params, keys), jax.random.key_data(keys))
    hyper = (jnp.float32(arm.rate), jnp.int32(every))
    groups = jnp.asarray(groups_of(config))
    _, records = run_chunks(
        folder,
        start,
        lambda state, blocks: _advance(
            net, arm.batch_size, examples, hyper, (data, groups), state, blocks
        ),
        config.measurements,
        config.chunk,
        axis=1,
        quiet=config.quiet,
    )
    for of in {"K", "B"} & {name[-1] for name in records}:
        records[f"ratio_{of}"] = records[f"trace_{of}"] / records[f"lambda_{of}"]
    times = arm.rate * every * np.arange(1, config.measurements + 1)
    return unknown | records | {"time": np.tile(times, (config.seeds, 1))}
