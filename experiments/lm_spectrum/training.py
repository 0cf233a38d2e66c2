"""Training by Adam at a constant rate, and the curvature along it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatjax
from experiments.lib.runs.trajectory import run_chunks
from experiments.lm_spectrum import text
from experiments.lm_spectrum.decoder import Decoder, loss_of, start
from flatjax import loops

if TYPE_CHECKING:
    from experiments.lm_spectrum import Config

B1, EPS = 0.9, 1e-8
ARMS = ("batches", "full batch")
"""On windows drawn from the whole text, and on those alone that are measured."""
MEASURED = ("sharpness", "plain_ratio", "preconditioned", "critical", "residual")
"""Of the curvature; see `curvature`."""


class State(NamedTuple):
    """Between two updates, of which there were `count`; the key as its data."""

    params: Any
    opt_state: Any
    key: jax.Array
    count: jax.Array


class Data(NamedTuple):
    """What is trained on and what is measured: a row of tokens, and windows."""

    tokens: jax.Array
    measured: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]


def load(config: Config) -> Data:
    """The text, on the device; the test windows are as many as the measured ones, or all."""
    found = text.load(config.data, vocabulary=config.vocabulary, context=config.context)
    measured = text.spread(found.train, config.measured, config.context)
    most = (len(found.test) - 1) // config.context
    test = text.spread(found.test, min(config.measured, most), config.context)
    return Data(*jax.tree.map(jnp.asarray, (found.train, tuple(measured), tuple(test))))


def decoder(config: Config) -> Decoder:
    """The network."""
    size = config.vocabulary, config.context, config.width
    return Decoder(*size, config.layers, config.heads, config.tied, config.remat)


def rate(config: Config, arm: str) -> float:
    """The learning rate after the warm-up."""
    return config.learning_rate if arm == "batches" else config.full_rate


@functools.cache
def adam(peak: float, warm_up: int, b2: float, decay: float) -> optax.GradientTransformation:
    """AdamW; one object for the same numbers, so that nothing is compiled twice."""
    schedule = optax.schedules.warmup_constant_schedule(0.0, peak, warm_up)
    return optax.adamw(schedule, b1=B1, b2=b2, eps=EPS, weight_decay=decay)


def optimizer(config: Config, arm: str) -> optax.GradientTransformation:
    """That of an arm."""
    return adam(rate(config, arm), config.warm_up, config.b2, config.weight_decay)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _updated(
    model: Decoder, tx: Any, updates: int, size: int | None, context: int, data: Data, state: State
) -> tuple[State, jax.Array]:
    """The state after so many updates, each with new windows, or with all measured ones."""
    loss_fn = loss_of(model)

    def update(state: State, _: Any) -> tuple[State, jax.Array]:
        key, draw = jax.random.split(jax.random.wrap_key_data(state.key))
        batch = data.measured if size is None else text.drawn(draw, data.tokens, size, context)
        loss, gradient = jax.value_and_grad(loss_fn)(state.params, batch)
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, opt_state, jax.random.key_data(key), state.count + 1), loss

    return loops.scan(update, state, length=updates)


@functools.partial(jax.jit, static_argnums=0)
def _loss(model: Decoder, params: Any, batch: Any) -> jax.Array:
    return loss_of(model)(params, batch)


@functools.partial(jax.jit, static_argnums=0)
def _gradient(model: Decoder, params: Any, batch: Any) -> Any:
    return jax.grad(loss_of(model))(params, batch)


def hessian(config: Config, params: Any, batch: Any) -> flatjax.Operator:
    """The Hessian of the loss of a batch of windows."""
    loss_fn = loss_of(decoder(config))
    if config.chunk_size is None:
        return flatjax.hessian(loss_fn, params, batch).linearize()
    return flatjax.hessian(loss_fn, params, batch, chunk_size=config.chunk_size)


def largest(op: flatjax.Operator) -> flatjax.Eigenpairs:
    """The largest eigenvalue to a per cent."""
    return flatjax.eigsh(op, 1, key=jax.random.key(0), tol=1e-2)


def curvature(config: Config, arm: str, state: State, data: Data) -> dict[str, jax.Array]:
    """The loss and its curvature on the measured windows.

    Returns:
      Scalars: `loss`, `test_loss`; `sharpness`, the largest eigenvalue of the Hessian, and
      `preconditioned`, that in Adam's geometry over the largest at which Adam is stable, 38 / eta
      without weight decay; `residual`, by which share of it one of the two may be off. In the unit
      of the threshold too `critical`, the critical sharpness along the gradient over Adam's
      preconditioner, and `plain_ratio`, the Hessian's own eigenvalue.
    """
    model, batch = decoder(config), data.measured
    losses = {
        "loss": _loss(model, state.params, batch),
        "test_loss": _loss(model, state.params, data.test),
    }
    if not np.isfinite(losses["loss"]):  # it diverged, and has no preconditioner
        return losses | dict.fromkeys(MEASURED, jnp.full((), jnp.nan))
    edge = flatjax.stability_threshold(
        "adamw", rate(config, arm), b1=B1, weight_decay=config.weight_decay
    )
    diagonal = flatjax.preconditioner(state.opt_state, b1=B1, b2=config.b2, eps=EPS)
    op = hessian(config, state.params, batch)
    plain, seen = largest(op), largest(flatjax.preconditioned(op, diagonal))
    gradient = _gradient(model, state.params, batch)
    update = jax.tree.map(lambda g, d: -g / d, gradient, diagonal)
    critical = flatjax.critical_sharpness(
        loss_of(model), state.params, batch, update=update, initial_step=2 / edge
    )
    residuals = [abs(pairs.residual_norms[0] / pairs.values[0]) for pairs in (plain, seen)]
    found = (
        plain.values[0], plain.values[0] / edge, seen.values[0] / edge, critical.value / edge,
        jnp.maximum(*residuals),
    )  # fmt: skip
    return losses | dict(zip(MEASURED, found, strict=True))


def train(
    folder: Path, config: Config, arm: str, seed: int, data: Data
) -> tuple[dict[str, np.ndarray], Any]:
    """Trains one arm of one seed, and measures after every `every` updates.

    Returns:
      The records of `curvature`, (records,), with `update`, after how many, and `mean_loss`, the
      mean over the updates before; and the last parameters.
    """
    model, tx, full = decoder(config), optimizer(config, arm), arm == "full batch"
    params = start(model, seed)
    key = jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1))
    size = None if full else config.batch_size
    advanced = functools.partial(_updated, model, tx, config.every, size, config.context, data)

    def advance(state: State, blocks: int) -> tuple[State, dict[str, np.ndarray]]:
        found = []
        for _ in range(blocks):
            state, losses = advanced(state)
            record = curvature(config, arm, state, data) | {"mean_loss": losses.mean()}
            found.append(record | {"update": state.count})
        return state, {name: np.stack([r[name] for r in found]) for name in found[0]}

    blocks = (config.full_updates if full else config.updates) // config.every
    first = State(params, tx.init(params), key, jnp.zeros((), jnp.int32))
    state, records = run_chunks(folder, first, advance, blocks, 1, quiet=config.quiet)
    return records, state.params
