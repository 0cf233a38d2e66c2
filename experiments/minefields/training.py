"""The training set and its poison, and training on both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from experiments.lib.data.small import SmallData, first_examples
from experiments.lib.nets import losses
from experiments.lib.nets.architecture import network
from experiments.lib.training import minibatch
from experiments.lib.training.descent import Descent, descent
from experiments.lib.training.minibatch import Trained
from experiments.lib.training.recipes import Recipe

if TYPE_CHECKING:
    from experiments.minefields import Config


def with_poison(data: SmallData, size: int, seed: int) -> tuple[SmallData, SmallData]:
    """The first `size` examples to train on, and the others with only wrong labels."""
    poison = data._replace(**{n: getattr(data, n)[size:] for n in ("inputs", "clean_targets")})
    classes = int(data.clean_targets.max()) + 1
    shift = np.random.RandomState([seed, 9]).randint(1, classes, size=len(poison.inputs))
    wrong = ((poison.clean_targets + shift) % classes).astype(np.int32)
    return first_examples(data, size), poison._replace(targets=wrong)


def poisoned(recipe: Recipe, seed: Any, poison: Any) -> optax.GradientTransformationExtraArgs:
    """Adds beta times the gradient of the loss on a batch of the poison, as it is in training."""
    model, per_example = network(recipe), losses.per_example(recipe.loss)
    inputs, targets = poison["inputs"], poison["targets"]
    size = len(inputs)

    def update(updates, key, params, *, args, **extra):
        del extra
        (model_state,) = args
        key, draw, dropout = jax.random.split(key, 3)
        index = jnp.arange(size)
        if recipe.batch_size is not None and recipe.batch_size < size:
            index = jax.random.randint(draw, (recipe.batch_size,), 0, size)

        def objective(params):
            logits, _ = model.apply(params, model_state, inputs[index], train=True, key=dropout)
            return poison["beta"] * per_example(logits, targets[index]).mean()

        return optax.tree.add(updates, jax.grad(objective)(params)), key

    return optax.GradientTransformationExtraArgs(lambda params: jax.random.key(seed), update)


def held(strength: float) -> optax.GradientTransformation:
    """Adds the gradient of strength |w - w_0|^2, w_0 where training starts."""

    def update(updates, start, params=None):
        away = optax.tree.sub(params, start)
        return optax.tree.add_scale(updates, 2 * strength, away), start

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.copy, params), update)


def train_good(config: Config, folder: Path, data: SmallData) -> Trained:
    """Training without poison; its records have the weights along the way."""
    return minibatch.train_arm(
        folder,
        config.recipe,
        data,
        config.seed_range(),
        lambda seed, hyper: descent(config.descent, config.recipe, config.train_size),
        measure=lambda params, *rest: {"weights": vector(params)},
        quiet=config.quiet,
    )


def train_poisoned(
    config: Config,
    folder: Path,
    data: SmallData,
    poison: SmallData,
    arms: Mapping[str, tuple[float, np.ndarray]],
    by: Descent,
    *,
    pull: float = 0.0,
    start: tuple[Any, Any] | None = None,
) -> dict[str, Trained]:
    """Training with poison.

    Args:
      config: the options.
      folder: a folder of its own.
      data: with a leading axis of seeds.
      poison: likewise.
      arms: by name the weight of the poison's loss, and its labels.
      by: the optimiser.
      pull: what holds the weights at the start, see `held`.
      start: parameters and batch statistics of every seed; None for new ones.

    Returns:
      The runs of every arm, with a leading axis of seeds.
    """
    recipe, seeds, count = config.recipe, list(config.seed_range()), len(arms)
    targets = np.stack([targets for _, targets in arms.values()], 1)
    hyper = {
        "beta": np.array([beta for beta, _ in arms.values()] * len(seeds), np.float32),
        "inputs": np.repeat(poison.inputs, count, axis=0),
        "targets": targets.reshape(-1, targets.shape[-1]),
    }

    def optimizer(seed, hyper):
        last = descent(by, recipe, config.train_size)
        by_the_start = held(pull) if pull else optax.identity()  # without a copy of the weights
        return optax.chain(poisoned(recipe, seed, hyper), by_the_start, last)

    found = minibatch.train_arm(
        folder,
        recipe,
        minibatch.repeat(data, count),
        np.repeat(seeds, count),
        optimizer,
        hyper=hyper,
        start=minibatch.repeat(start, count),
        quiet=config.quiet,
    )
    return {name: jax.tree.map(lambda a, i=i: a[i::count], found) for i, name in enumerate(arms)}


def vector(params: Any) -> jax.Array:
    """The parameters as one vector."""
    return ravel_pytree(params)[0]
