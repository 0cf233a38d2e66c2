"""The ways of training, and which of them are compared."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.lib.nets.architecture import Architecture, network

if TYPE_CHECKING:
    from experiments.break_even_point import Config


class Arm(NamedTuple):
    """One way of training.

    Attributes:
      rate: the learning rate.
      batch_size: examples an update.
      steps: updates.
      batch_norm: whether the network has batch normalisation.
      order: the seed of the order of the batches.
    """

    rate: float
    batch_size: int
    steps: int
    batch_norm: bool = False
    order: int = 1

    def __str__(self) -> str:
        """How it is named in figures."""
        words = f"rate {self.rate:g}, batch {self.batch_size}"
        words = f"{words}, batch norm" if self.batch_norm else words
        return words if self.order == 1 else f"{words}, other order"


class Roles(NamedTuple):
    """The arms that are compared, by name."""

    fast: str
    slow: str
    small: str
    large: str
    norm_fast: str
    norm_slow: str
    again: str
    norm_again: str


def roles(config: Config) -> Roles:
    """The extremes of the learning rates and of the batch sizes; `again` are slow ones."""
    return Roles(
        f"rate_{config.rates[0]:g}",
        f"rate_{config.rates[-1]:g}",
        f"batch_{config.batch_sizes[0]}",
        f"batch_{config.batch_sizes[-1]}",
        f"norm_rate_{config.norm_rates[0]:g}",
        f"norm_rate_{config.norm_rates[-1]:g}",
        "again",
        "norm_again",
    )


def arms(config: Config) -> dict[str, Arm]:
    """The arms by name: learning rates, batch sizes, batch norm, other orders of the batches."""
    small, middle, large = config.batch_sizes

    def plain(rate: float, batch_size: int) -> Arm:
        epochs = config.epochs and config.epochs * (config.train_size // batch_size)
        return Arm(rate, batch_size, epochs or round(config.time / rate))

    slowest = config.rates[-1]
    norm_slow = Arm(config.norm_rates[-1], middle, config.norm_steps, True)
    return (
        {f"rate_{rate:g}": plain(rate, middle) for rate in config.rates}
        | {f"batch_{size}": plain(slowest, size) for size in (small, large)}
        | {f"norm_rate_{r:g}": norm_slow._replace(rate=r) for r in config.norm_rates}
        | {"again": plain(slowest, middle)._replace(order=2)}
        | {"norm_again": norm_slow._replace(order=2)}
    )


def plain_arms(config: Config, most: float = np.inf) -> list[str]:
    """The arms without batch norm and with at most that rate."""
    found = arms(config).items()
    return [name for name, arm in found if arm.rate <= most and not arm.batch_norm]


def with_batch_norm(architecture: Architecture) -> Architecture | None:
    """The same network with batch norm, by its name; None where there is none.

    It is called like the network, with the word `batch`: `s2cnn-16-batch`, and for the options of
    an mlp `mlp-3-64-tanh-batch`. A user's own network has none, nor have hidden layers of several
    widths, nor what has batch norm already.
    """
    name = architecture.network
    if architecture.flat:
        width, *others = set(architecture.hidden)
        if others:
            return None
        name = f"mlp-{len(architecture.hidden)}-{width}-{architecture.activation}"
    elif ":" in name:
        return None
    words = [word for word in name.split("-") if word not in ("none", "group", "layer", "batch")]
    twin = dataclasses.replace(architecture, network="-".join([*words, "batch"]))
    return None if network(twin).module == network(architecture).module else twin
