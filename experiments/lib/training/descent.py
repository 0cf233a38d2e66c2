"""The optimiser of an experiment, by options: SGD or Adam, and how its learning rate falls.

tx = optax.chain(flatjax.sam(0.05), descent(Descent(schedule="cosine"), recipe, 50_000))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import optax

from experiments.lib.training.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Descent:
    """An optimiser; the default is plain SGD."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd or adam."""

    learning_rate: float = 0.1
    """The learning rate, of the first update if it falls."""

    schedule: Literal["constant", "cosine", "epochs"] = "constant"
    """cosine: falls to zero; epochs: is multiplied by 0.95 after each."""

    momentum: float = 0.0
    """sgd: of Nesterov if `nesterov`."""

    nesterov: bool = False
    """sgd: see `momentum`."""

    weight_decay: float = 0.0
    """This times the weights is added to the gradient ..."""

    clip: float | None = None
    """... which is then shortened to at most this norm."""


def updates(recipe: Recipe, size: int) -> int:
    """The updates of an epoch on so many examples."""
    return max(1, size // (recipe.batch_size or size))


def descent(options: Descent, recipe: Recipe, size: int) -> optax.GradientTransformation:
    """The optimiser for a recipe on so many examples."""
    rate, each = options.learning_rate, updates(recipe, size)
    schedules = {
        "constant": lambda: rate,
        "cosine": lambda: optax.cosine_decay_schedule(rate, recipe.epochs * each),
        "epochs": lambda: optax.exponential_decay(rate, each, 0.95, staircase=True),
    }
    chosen = schedules[options.schedule]()
    parts = []
    if options.weight_decay:
        parts.append(optax.add_decayed_weights(options.weight_decay))
    if options.clip is not None:
        parts.append(optax.clip_by_global_norm(options.clip))
    if options.optimizer == "adam":
        parts.append(optax.adam(chosen))
    else:
        # momentum=None, not 0.0: no buffer is kept where none is used.
        parts.append(optax.sgd(chosen, options.momentum or None, options.nesterov))
    return optax.chain(*parts)
