"""What is trained, how, and what it answers: a recipe and its functions.

recipe = Recipe(network="s2cnn-16", epochs=60)
params, model_state = init_runs(recipe, data, seeds)
hessian = flatjax.hessian(losses_fn(recipe), params, training_batch(recipe, data), model_state)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.lib.data.small import SmallData
from experiments.lib.nets import losses
from experiments.lib.nets.architecture import Architecture, network
from experiments.lib.nets.models import Model
from flatjax import loops

EVALUATED = 1000
"""Examples that are evaluated at once where the network is not fully connected."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Architecture):
    """The network, and how long and on what it is trained."""

    batch_size: int | None = 40
    """Examples an update, drawn without replacement in an epoch; None for all."""

    epochs: int = 100
    """Passes over the training set."""

    record_every: int = 1
    """Epochs between two records; one is made at the start too."""

    stop_loss: float | None = None
    """Stand still from the epoch after which the training loss is at most this."""

    mixup: float = 0.0
    """Mixup with Beta(mixup, mixup) weights (Zhang et al., ICLR 2018); 0 is off."""

    flip: bool = False
    """Images are mirrored left to right with probability 1/2 ..."""

    crop: int = 0
    """... and shifted by up to so many pixels, zeros coming in."""

    target_noise: float = 0.0
    """Standard deviation of the Gaussian noise on one-hot targets, drawn anew at every update."""

    def __post_init__(self):
        if self.flat and (self.flip or self.crop):
            raise ValueError("flip and crop are for images: name a network that takes them")
        if self.target_noise and self.loss != "squared_error":
            raise ValueError("target_noise is for squared_error, whose targets are one-hot")


def model_of(recipe: Recipe) -> Callable[..., jax.Array]:
    """`model_fn(params, inputs, model_state)`: the logits as evaluated."""
    return network(recipe).model_fn


@functools.cache
def _losses_fn(model: Model, loss: str) -> Callable[..., jax.Array]:
    output_loss = losses.OUTPUT_LOSSES[loss]

    def losses_fn(params, batch, model_state=None):
        return output_loss(model.model_fn(params, batch[0], model_state), batch[1])

    return losses_fn


def losses_fn(recipe: Recipe) -> Callable[..., jax.Array]:
    """`losses_fn(params, (inputs, targets), model_state)`: the loss of every example."""
    return _losses_fn(network(recipe), recipe.loss)


def mean_loss(recipe: Recipe, params: Any, batch: Any, model_state: Any = None) -> jax.Array:
    """The mean loss of a batch `(inputs, targets)`."""
    return losses_fn(recipe)(params, batch, model_state).mean()


def training_batch(recipe: Recipe, data: SmallData, size: int | None = None) -> tuple[Any, Any]:
    """The first training examples with targets as the loss takes them."""
    targets = losses.encode(recipe.loss, jnp.asarray(data.targets[:size]), recipe.classes)
    return jnp.asarray(data.inputs[:size]), targets


def init_runs(recipe: Recipe, data: SmallData, seeds: Any) -> tuple[Any, Any]:
    """First parameters and batch statistics, a function of each run's seed."""
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    return jax.vmap(network(recipe).init, (0, None))(keys, data.inputs[0, :1])


def logits(recipe: Recipe, params: Any, model_state: Any, inputs: jax.Array) -> jax.Array:
    """The logits of any number of inputs, as evaluated."""
    model_fn = model_of(recipe)
    whole = 0 if recipe.flat else len(inputs) // EVALUATED
    if not whole:
        return model_fn(params, inputs, model_state)
    parts = inputs[: whole * EVALUATED].reshape(whole, EVALUATED, *inputs.shape[1:])
    _, found = loops.scan(lambda _, part: ((), model_fn(params, part, model_state)), (), parts)
    rest = inputs[whole * EVALUATED :]
    found = found.reshape(-1, found.shape[-1])
    return jnp.concatenate([found, model_fn(params, rest, model_state)]) if len(rest) else found


def accuracies(recipe: Recipe, params: Any, model_state: Any, data: SmallData) -> dict[str, Any]:
    """Losses and accuracies of one run, by the labels given and by the true ones."""
    per_example = losses.per_example(recipe.loss)
    on_train = logits(recipe, params, model_state, data.inputs)
    on_test = logits(recipe, params, model_state, data.test_inputs)
    train, test = on_train.argmax(-1), on_test.argmax(-1)
    wrong = data.targets != data.clean_targets

    def share(hits, among):
        return (hits & among).sum() / jnp.maximum(among.sum(), 1)

    return {
        "train_loss": per_example(on_train, data.targets).mean(),
        "test_loss": per_example(on_test, data.test_targets).mean(),
        "train_accuracy": (train == data.targets).mean(),
        "test_accuracy": (test == data.test_targets).mean(),
        "clean_fit": share(train == data.targets, ~wrong),
        "noisy_fit": share(train == data.targets, wrong),
        "noisy_recovered": share(train == data.clean_targets, wrong),
        "norm": optax.tree.norm(params),
    }
