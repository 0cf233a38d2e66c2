"""Distances of discrete steps from the flows of modified losses, in double precision."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

import flatjax
from experiments.lib.data import small
from experiments.lib.training import curvature, recipes
from experiments.lib.training.recipes import Recipe
from flatjax import loops

if TYPE_CHECKING:
    from experiments.implicit_regularization import Config


def orders(config: Config, seed: int) -> dict[str, list[float]]:
    """Distances from the flows of one seed, in double precision."""
    with jax.enable_x64(True):
        data = small.small_data("digits", seed=seed, train_size=config.order_size)
        recipe = Recipe(hidden=(config.hidden,), loss="squared_error")
        batch = jax.tree.map(
            lambda a: jnp.asarray(a, jnp.float64), recipes.training_batch(recipe, data)
        )
        stacked = small.stack_seeds([data])
        start, _ = recipes.init_runs(recipe, stacked, jnp.array([seed], jnp.uint32))
        start = jax.tree.map(lambda a: a.astype(jnp.float64), curvature.run_of(start, 0))
        return {k: [float(x) for x in v] for k, v in _distances(config, recipe, start, batch)}


@functools.cache
def _programs(recipe: Recipe) -> tuple[Any, Any, Any]:
    """The flows, gradient descent and the mean epoch: compiled once for all seeds."""
    losses_fn = recipes.losses_fn(recipe)

    def gradient(params, batch):
        return jax.grad(lambda p: losses_fn(p, batch).mean())(params)

    def moved(params, factor, direction):
        return jax.tree.map(lambda a, b: a + factor * b, params, direction)

    def head(name, h):
        if name == "isgr":
            return flatjax.stochastic_implicit_gradient_regularization(
                h, loss_fn=losses_fn, micro_batches=4
            )
        return flatjax.implicit_gradient_regularization(h) if name == "modified" else None

    @functools.partial(jax.jit, static_argnums=0)
    def flow(name, substeps, start, batch, h, time):
        """The flow of L or of a modified loss, by classical Runge-Kutta steps."""
        tx = head(name, h)

        def field(params):
            g = gradient(params, batch)
            if tx is not None:
                grad_fn = lambda p: gradient(p, batch)  # noqa: E731
                g, _ = tx.update(g, tx.init(params), params, grad_fn=grad_fn, batch=batch)
            return jax.tree.map(jnp.negative, g)

        dt = time / substeps

        def step(_, p):
            k1 = field(p)
            k2 = field(moved(p, dt / 2, k1))
            k3 = field(moved(p, dt / 2, k2))
            k4 = field(moved(p, dt, k3))
            slope = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k1, k2, k3, k4)
            return moved(p, dt, slope)

        # Their number is traced, so that one program serves all.
        return loops.fori(substeps, step, start)

    @jax.jit
    def descend(start, batch, h, count):
        return loops.fori(count, lambda _, p: moved(p, -h, gradient(p, batch)), start)

    @jax.jit
    def mean_epoch(start, batch, h):
        parts = jax.tree.map(lambda a: a.reshape(4, -1, *a.shape[1:]), batch)

        def one(order):
            def step(p, k):
                return moved(p, -h, gradient(p, jax.tree.map(lambda a: a[k], parts))), None

            return loops.scan(step, start, order)[0]

        every_order = jnp.array(list(itertools.permutations(range(4))))
        return jax.tree.map(lambda a: a.mean(0), jax.vmap(one)(every_order))

    return flow, descend, mean_epoch


def _distances(config, recipe, start, batch):
    flow, descend, mean_epoch = _programs(recipe)

    def distance(a, b):
        return optax.tree.norm(jax.tree.map(jnp.subtract, a, b))

    steps, smallest, horizon = config.steps, config.steps[-1], config.horizon
    long = descend(start, batch, smallest, round(horizon / smallest))
    epochs = [(h, mean_epoch(start, batch, h)) for h in config.epoch_steps]
    for name in ("flow", "modified"):
        yield (
            f"step {name}",
            [
                distance(descend(start, batch, h, 1), flow(name, 32, start, batch, h, h))
                for h in steps
            ],
        )
        end = flow(name, 400, start, batch, smallest, horizon)
        yield f"horizon {name}", [distance(long, end)]
    twice = flow("modified", 400, start, batch, 2 * smallest, horizon)
    yield "horizon twice", [distance(long, twice)]
    for name in ("flow", "modified", "isgr"):
        yield (
            f"epoch {name}",
            [distance(p, flow(name, 32, start, batch, h, 4 * h)) for h, p in epochs],
        )
