"""Training on the sphere and with weight decay, and what is measured along the way."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

import flatjax
from experiments.lib.data.small import first_examples
from experiments.lib.nets import losses
from experiments.lib.nets.architecture import network
from experiments.lib.runs.progress import say
from experiments.lib.training import minibatch, recipes
from experiments.lib.training.descent import updates
from experiments.lib.training.recipes import Recipe
from experiments.lib.training.settings import train_settings
from flatjax import loops

if TYPE_CHECKING:
    from experiments.lib.lab import Runs
    from experiments.scale_invariance import Config

DECAYS = ("decayed", "phases", "annealed")
"""The kinds of arms with weight decay, by the names of their recipes."""


def on_sphere(rate: Any) -> optax.GradientTransformation:
    """SGD that returns to the unit sphere after every step: a fixed effective learning rate."""

    def update(gradient, state, params=None):
        moved = optax.tree.add_scale(params, -rate, gradient)
        moved = optax.tree.scale(1 / optax.tree.norm(moved), moved)
        return optax.tree.sub(moved, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def with_decay(recipe: Recipe, size: int, hyper: Any) -> optax.GradientTransformation:
    """SGD with weight decay; the learning rate changes after half of the epochs."""
    half = recipe.epochs // 2 * updates(recipe, size)
    return optax.chain(
        optax.add_decayed_weights(hyper["decay"]),
        optax.sgd(lambda count: jnp.where(count < half, hyper["rate"], hyper["last_rate"])),
    )


def to_sphere(start: tuple[Any, Any]) -> tuple[Any, Any]:
    """The first weights of all runs at length 1."""
    params, model_state = start
    return jax.vmap(lambda p: optax.tree.scale(1 / optax.tree.norm(p), p))(params), model_state


def in_training(recipe: Recipe) -> Any:
    """`losses_fn(params, batch, model_state)` with the statistics of the batch: scale-invariant."""
    model, loss = network(recipe), losses.OUTPUT_LOSSES[recipe.loss]

    def losses_fn(params, batch, model_state):
        logits, _ = model.apply(params, model_state, batch[0], train=True)
        return loss(logits, batch[1])

    return losses_fn


def measure(recipe: Recipe, count: int | None, products: int) -> Any:
    """What is recorded; curvature with so many products, none for 0, of so many examples."""
    return functools.partial(_measure, recipe, count, products)


def _measure(recipe, count, products, params, model_state, data, key) -> dict[str, jax.Array]:
    """Loss, squared gradients of batches, and lambda_1 |w|^2, all as in training."""
    losses_fn = in_training(recipe)
    batch = recipes.training_batch(recipe, first_examples(data, count))
    size = len(batch[0])
    each = min(recipe.batch_size or size, size)
    parts = jax.tree.map(lambda a: a[: size // each * each].reshape(-1, each, *a.shape[1:]), batch)

    def of(params, batch):
        return losses_fn(params, batch, model_state).mean()

    def squared(_, part):
        return None, optax.tree.norm(jax.grad(of)(params, part), squared=True)

    _, squares = loops.scan(squared, None, parts)
    found = {"loss": of(params, batch), "squared_gradients": squares.mean()}
    if products:
        operator = flatjax.hessian(losses_fn, params, batch, model_state)
        top = flatjax.eigsh(operator, 1, which="LA", key=key, max_products=products)
        found["effective_sharpness"] = top.values[0] * optax.tree.norm(params, squared=True)
    return found


def _data(config: Config, recipe: Recipe) -> Any:
    return minibatch.load_seeds(
        config.data, list(config.seed_range()), train_size=config.train_size,
        test_size=config.test_size, flat=recipe.flat, num_classes=recipe.classes,
    )  # fmt: skip


def sphere(config: Config, out: Path) -> Runs:
    """The records at every effective learning rate."""
    say("sphere", enabled=not config.quiet)
    recipe, seeds, count = config.sphere, list(config.seed_range()), len(config.sphere_rates)
    data = _data(config, recipe)
    start = to_sphere(recipes.init_runs(recipe, data, seeds))
    found = train_settings(
        out / "sphere", recipe, data, seeds, lambda seed, rate: on_sphere(rate),
        {f"sphere {rate:g}": rate for rate in config.sphere_rates},
        measure=measure(recipe, config.measured, 0),
        start=minibatch.repeat(start, count), quiet=config.quiet,
    )  # fmt: skip
    return {arm: trained.records for arm, trained in found.items()}


def decays(config: Config, out: Path, name: str) -> Runs:
    """The records of the arms of one kind, with weight decay and without."""
    say(name, enabled=not config.quiet)
    recipe, seeds = getattr(config, name), list(config.seed_range())

    def arm(rate: float, decay: float, last_rate: float | None = None) -> dict[str, float]:
        return {"rate": rate, "decay": decay, "last_rate": last_rate or rate}

    high, low, decay = config.high_rate, config.low_rate, config.phase_decay
    arms = {
        "decayed": {
            "decay": arm(config.decay_rate, config.decay),
            "no decay": arm(config.decay_rate, 0.0),
        },
        "phases": {
            "phases": arm(config.phase_rate, decay),
            "phases, no decay": arm(config.phase_rate, 0.0),
        },
        "annealed": {"annealed": arm(high, decay, low), "not annealed": arm(high, decay)},
    }[name]
    data = _data(config, recipe)
    found = train_settings(
        out / name, recipe, data, seeds,
        lambda seed, hyper: with_decay(recipe, config.train_size, hyper), arms,
        measure=measure(recipe, config.measured, 0 if name == "decayed" else config.products),
        quiet=config.quiet,
    )  # fmt: skip
    return {arm: trained.records for arm, trained in found.items()}
