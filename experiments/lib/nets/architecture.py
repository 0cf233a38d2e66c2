"""Which network an experiment trains, by its options.

architecture = Architecture(network="s2cnn-16")
params, model_state = network(architecture).init(key, inputs[:1])
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax

from experiments.lib.nets import named
from experiments.lib.nets.models import Model
from flatjax import loops


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The network, and the loss of its outputs."""

    network: str = "mlp"
    """mlp, by the next three options; another one of `experiments.lib.nets.named`, such as
    s2cnn-16 or resnet-20-group; or package.module:make, see `experiments.lib.nets.user`."""

    hidden: tuple[int, ...] = (64, 64, 64)
    """mlp: units of the hidden layers."""

    activation: Literal["tanh", "relu", "square"] = "tanh"
    """mlp: between the layers."""

    init_scale: float = 1.0
    """mlp: s in W ~ N(0, s^2 / fan_in)."""

    classes: int = 10
    """Outputs of the network."""

    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"
    """squared_error: half the squared distance to the one-hot label."""

    @property
    def flat(self) -> bool:
        """Whether the network takes flat inputs and is trained side by side with others."""
        return self.network == "mlp"

    def over_runs(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn` over a leading axis of runs of all its arguments.

        Fully connected networks go side by side. Others go one after the other in a compiled loop:
        a kernel of its own for each run makes convolutions slow on a CPU.
        """
        if self.flat:
            return jax.vmap(fn)
        return lambda *args: loops.scan(lambda _, each: (None, fn(*each)), None, args)[1]


@functools.cache
def _network(name, hidden, activation, init_scale, classes) -> Model:
    if name == "mlp":
        return named.plain_mlp(hidden, activation, init_scale, classes)
    return named.model(name, classes)


def network(architecture: Architecture) -> Model:
    """The network; one object for each, so that nothing is compiled twice."""
    a = architecture
    return _network(a.network, a.hidden, a.activation, a.init_scale, a.classes)
