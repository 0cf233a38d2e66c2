"""Full-batch training with its sharpness tracked, gradient flow, and the quadratic model.

All steps are taken in compiled loops (see flatjax.loops).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatjax
from experiments.lib.data.small import SmallData
from experiments.lib.nets.flat import FlatNetwork
from experiments.lib.runs.trajectory import run_chunks
from flatjax import _trees as trees
from flatjax import loops


class Arm(NamedTuple):
    """One optimiser.

    Attributes:
      optimizer: an optax transformation; arms that share one share a compiled program.
      hyperparams: values for its `inject_hyperparams`.
      threshold: the sharpness at which it becomes unstable, see `flatjax.stability_threshold`.
      batch_size: None for full batches.
    """

    optimizer: optax.GradientTransformation
    hyperparams: dict[str, float]
    threshold: float
    batch_size: int | None = None


class State(NamedTuple):
    """A state of training; with a leading axis of seeds.

    Attributes:
      params: the parameters.
      opt_state: of the optimiser.
      track: the largest eigenvalue.
      key: data of a PRNG key.
      batch_size: examples per update.
      top: the largest sharpness so far ...
      at_top: ... and the parameters there.
    """

    params: jax.Array
    opt_state: Any
    track: Any
    key: jax.Array
    batch_size: jax.Array
    top: jax.Array
    at_top: jax.Array


TRACKER = flatjax.track(1, num_blocks=2)


def full_batch(data: SmallData) -> tuple[jax.Array, jax.Array]:
    """The training examples as a batch."""
    return jnp.asarray(data.inputs), jnp.asarray(data.targets)


def _tracked(operator, track):
    # Twice: the eigenvector turns fast at the edge, and one update leaves an error of 1e-3.
    return loops.fori(2, lambda _, t: TRACKER.update(operator, t), track)


@functools.partial(jax.jit, static_argnums=0)
def _settled(net, batch, params, keys):
    """Vectors that already are eigenvectors: those of a tracker start at random."""

    def one(batch, params, key):
        operator = flatjax.hessian(net.losses_fn, params, batch)
        start = TRACKER.init(params, key=key)
        return loops.fori(30, lambda _, t: TRACKER.update(operator, t), start)

    return net.over_seeds(one)(batch, params, keys)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 5))
def _advance(net, optimizer, every, batch, state, blocks):
    def update(batch, state, _):
        key, draw = jax.random.split(jax.random.wrap_key_data(state.key))
        size = batch[1].shape[0]
        # A minibatch as weights, so that all batch sizes are one program.
        chosen = jax.random.permutation(draw, size) < state.batch_size
        weights = chosen * (size / state.batch_size)
        loss, gradient = jax.value_and_grad(lambda p: (weights * net.losses_fn(p, batch)).mean())(
            state.params
        )
        change, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        return state._replace(
            params=state.params + change, opt_state=opt_state, key=jax.random.key_data(key)
        ), loss

    def block(batch, state, _):
        state, loss = loops.scan(functools.partial(update, batch), state, length=every)
        operator = flatjax.hessian(net.losses_fn, state.params, batch)
        # All ones for SGD, with momentum or without.
        diagonal = flatjax.preconditioner(state.opt_state, params=state.params)
        track = _tracked(flatjax.preconditioned(operator, diagonal), state.track)
        found = {
            "loss": loss,
            "sharpness": track.values[0],
            "residual": track.residual_norms[0],
        }
        # Kept on the way: at the edge rounding decides when the sharpness peaks, and another
        # program would find another peak.
        above = found["sharpness"] > state.top
        return state._replace(
            track=track,
            top=jnp.maximum(state.top, found["sharpness"]),
            at_top=jnp.where(above, state.params, state.at_top),
        ), found

    def one(batch, state):
        return loops.scan(functools.partial(block, batch), state, length=blocks)

    return net.over_seeds(one)(batch, state)


def train(
    folder: Path,
    arm: Arm,
    net: FlatNetwork,
    data: SmallData,
    params: jax.Array,
    *,
    steps: int,
    every: int,
    chunk: int,
    quiet: bool,
) -> dict[str, np.ndarray]:
    """Trains all seeds and tracks the sharpness after every `every` steps.

    Args:
      folder: where it is kept.
      arm: the optimiser.
      net: the network.
      data: stacked over seeds.
      params: stacked over seeds.
      steps: updates, a multiple of `every`.
      every: updates between two measurements of the sharpness.
      chunk: updates between two saves, a multiple of `every`.
      quiet: no progress bar.

    Returns:
      Records with a leading axis of seeds: `loss` (steps,), before each update; `sharpness`,
      preconditioned for Adam, and `residual` (steps // every,); the parameters at the largest
      sharpness, `at_top`, and at the end, `last` (size,).
    """
    batch = full_batch(data)
    seeds, examples = batch[1].shape
    opt_state = jax.vmap(arm.optimizer.init)(params)
    given = {name: jnp.full(seeds, value, jnp.float32) for name, value in arm.hyperparams.items()}
    opt_state = opt_state._replace(hyperparams=opt_state.hyperparams | given)
    keys = jax.random.split(jax.random.key(1), seeds)
    start = State(
        params,
        opt_state,
        _settled(net, batch, params, keys),
        jax.random.key_data(keys),
        jnp.full(seeds, arm.batch_size or examples, jnp.int32),
        jnp.full(seeds, -jnp.inf),
        params,
    )
    state, records = run_chunks(
        folder,
        start,
        lambda state, blocks: _advance(net, arm.optimizer, every, batch, state, blocks),
        steps // every,
        max(chunk // every, 1),
        axis=1,
        quiet=quiet,
    )
    records["loss"] = records["loss"].reshape(seeds, -1)
    return records | {"at_top": np.asarray(state.at_top), "last": np.asarray(state.params)}


class Flow(NamedTuple):
    """Gradient flow beside gradient descent; with a leading axis of seeds."""

    start: jax.Array
    flow: jax.Array
    descent: jax.Array
    track: Any


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 5))
def _flow(net, learning_rate, every, batch, state, blocks):
    span = learning_rate * every

    def block(batch, state, _):
        gradient = jax.grad(lambda p: net.losses_fn(p, batch).mean())

        def runge_kutta(carry):
            p, t = carry
            # 10% more than tracked: the sharpness grows within the block.
            dt = jnp.minimum(1 / (1.1 * jnp.maximum(sharpness, 1e-3)), span - t)
            k1 = gradient(p)
            k2 = gradient(trees.axpy(-dt / 2, k1, p))
            k3 = gradient(trees.axpy(-dt / 2, k2, p))
            k4 = gradient(trees.axpy(-dt, k3, p))
            mean = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k1, k2, k3, k4)
            return trees.axpy(-dt, mean, p), t + dt

        track = _tracked(flatjax.hessian(net.losses_fn, state.flow, batch), state.track)
        sharpness = track.values[0]
        flow, _ = loops.until(
            lambda carry: carry[1] >= span * (1 - 1e-6), runge_kutta, (state.flow, jnp.zeros(()))
        )
        descent = loops.fori(
            every, lambda _, p: trees.axpy(-learning_rate, gradient(p), p), state.descent
        )
        found = {
            "sharpness": sharpness,
            "loss": net.losses_fn(flow, batch).mean(),
            "distance": trees.norm(trees.axpy(-1.0, flow, descent)),
            "moved": trees.norm(trees.axpy(-1.0, state.start, flow)),
        }
        return Flow(state.start, flow, descent, track), found

    def one(batch, state):
        return loops.scan(functools.partial(block, batch), state, length=blocks)

    return net.over_seeds(one)(batch, state)


def gradient_flow(
    folder: Path,
    net: FlatNetwork,
    data: SmallData,
    params: jax.Array,
    *,
    learning_rate: float,
    steps: int,
    every: int,
    chunk: int,
    quiet: bool,
) -> dict[str, np.ndarray]:
    """Solves d theta/dt = -grad L by Runge-Kutta steps of at most 1 / sharpness, beside descent.

    Args:
      folder: where it is kept.
      net: the network.
      data: stacked over seeds.
      params: stacked over seeds.
      learning_rate: of gradient descent: a step of it is this much time.
      steps: steps of gradient descent, a multiple of `every`.
      every: steps between two records.
      chunk: steps between two saves.
      quiet: no progress bar.

    Returns:
      Records with a leading axis of seeds, (steps // every,): `sharpness` and `loss` of the flow,
      `distance` between flow and descent, `moved`, how far the flow has come.
    """
    batch = full_batch(data)
    keys = jax.random.split(jax.random.key(2), len(params))
    start = Flow(params, params, params, _settled(net, batch, params, keys))
    _, records = run_chunks(
        folder,
        start,
        lambda state, blocks: _flow(net, learning_rate, every, batch, state, blocks),
        steps // every,
        max(chunk // every, 1),
        axis=1,
        quiet=quiet,
    )
    return records


@functools.partial(jax.jit, static_argnums=(0, 5))
def quadratic_model(losses_fn, params, batch, learning_rate, when, steps):
    """Gradient descent on the loss and on its quadratic Taylor model from a point on its way.

    Where rounding decides the way, at the edge, give the point itself and `when` 0.

    Args:
      losses_fn: per-example losses.
      params: where gradient descent starts.
      batch: the batch.
      learning_rate: the step size.
      when: the model is made after this many steps.
      steps: steps on both from there.

    Returns:
      The loss and the model's value after each of the steps, (steps,) each.
    """

    def mean_loss(p):
        return losses_fn(p, batch).mean()

    point = loops.fori(
        when, lambda _, p: trees.axpy(-learning_rate, jax.grad(mean_loss)(p), p), params
    )
    value, gradient = jax.value_and_grad(mean_loss)(point)
    hessian = flatjax.hessian(losses_fn, point, batch)

    def step(carry, _):
        p, d = carry
        p = trees.axpy(-learning_rate, jax.grad(mean_loss)(p), p)
        slope = trees.axpy(1.0, hessian.mv(d), gradient)
        d = trees.axpy(-learning_rate, slope, d)
        model = value + trees.vdot(gradient, d) + trees.vdot(d, hessian.mv(d)) / 2
        return (p, d), (mean_loss(p), model)

    _, values = loops.scan(step, (point, trees.scale(0.0, point)), length=steps)
    return values
