"""What is trained, how, and what it answers: a recipe and its functions.

recipe = Recipe(network="s2cnn-16", epochs=60)
params, model_state = init_runs(recipe, data, seeds)
hessian = flatjax.hessian(losses_fn(recipe), params, training_batch(recipe, data), model_state)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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

    stream: bool = field(default=False, metadata={"identity": False})
    """Leave the training inputs on the host and send them to the device as they are needed: to the
    same end, for data that do not fit on it. Images that stay on disk are streamed without it."""

    def __post_init__(self):
        if self.flat and (self.flip or self.crop):
            raise ValueError("flip and crop are for images: name a network that takes them")
        if self.target_noise and self.loss != "squared_error":
            raise ValueError("target_noise is for squared_error, whose targets are one-hot")


def of_width(recipe: Recipe, width: int) -> Recipe:
    """The recipe with hidden layers of one width, or with its network's, such as s2cnn, to be."""
    if recipe.flat:
        return dataclasses.replace(recipe, hidden=(width,) * len(recipe.hidden))
    return dataclasses.replace(recipe, network=f"{recipe.network}-{width}")


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
    return _init(network(recipe), jnp.asarray(seeds, jnp.uint32), data.test_inputs[0, :1])


# XLA's CPU compiles every draw some twelve times longer at its highest level than at the one below,
# to the same numbers: a ResNet-8 6 times (15 s against 2.3 of processor time).
@functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 2}
)
def _init(model: Model, seeds: jax.Array, inputs: jax.Array) -> tuple[Any, Any]:
    keys = jax.vmap(jax.random.key)(seeds)
    return jax.vmap(model.init, (0, None))(keys, inputs)


def parts(size: int) -> list[np.ndarray]:
    """Which of so many examples are evaluated at once, if the network is not fully connected.

    Of m parts number j has the examples j, j + m, ...: every device that holds a share of the
    examples has a share of each part.
    """
    whole = size // EVALUATED
    examples, rest = np.split(np.arange(size), [whole * EVALUATED])
    return [*examples.reshape(EVALUATED, whole).T, *([rest] if len(rest) else [])]


def logits(recipe: Recipe, params: Any, model_state: Any, inputs: jax.Array) -> jax.Array:
    """The logits of any number of inputs, evaluated in `parts`."""
    model_fn = model_of(recipe)
    whole = 0 if recipe.flat else len(inputs) // EVALUATED
    if not whole:
        return model_fn(params, inputs, model_state)
    examples = inputs[: whole * EVALUATED].reshape(EVALUATED, whole, *inputs.shape[1:])

    def part(_, j):
        part = jax.lax.dynamic_index_in_dim(examples, j, axis=1, keepdims=False)
        return (), model_fn(params, part, model_state)

    _, found = loops.scan(part, (), jnp.arange(whole))
    found = found.swapaxes(0, 1).reshape(whole * EVALUATED, -1)
    rest = inputs[whole * EVALUATED :]
    return jnp.concatenate([found, model_fn(params, rest, model_state)]) if len(rest) else found


def hits(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """1 where the answer is the target, 0 where it is another; NaN where there is none."""
    answered = jnp.isfinite(logits).all(-1)
    return jnp.where(answered, logits.argmax(-1) == targets, jnp.nan)


def accuracies(
    recipe: Recipe, params: Any, model_state: Any, data: SmallData, on_train: jax.Array
) -> dict[str, Any]:
    """Losses and accuracies of one run, by the labels given and by the true ones.

    `on_train` are the logits of the training inputs.
    """
    per_example = losses.per_example(recipe.loss)
    on_test = logits(recipe, params, model_state, data.test_inputs)
    fit, recovered = hits(on_train, data.targets), hits(on_train, data.clean_targets)
    wrong = data.targets != data.clean_targets

    def share(hits, among):
        return jnp.where(among, hits, 0).sum() / jnp.maximum(among.sum(), 1)

    return {
        "train_loss": per_example(on_train, data.targets).mean(),
        "test_loss": per_example(on_test, data.test_targets).mean(),
        "train_accuracy": fit.mean(),
        "test_accuracy": hits(on_test, data.test_targets).mean(),
        "clean_fit": share(fit, ~wrong),
        "noisy_fit": share(fit, wrong),
        "noisy_recovered": share(recovered, wrong),
        "norm": optax.tree.norm(params),
    }
