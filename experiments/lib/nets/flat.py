"""Any network as a function of one vector, for trajectories inside compiled loops.

net = flat_network(architecture, data.inputs.shape[2:])
gradient = jax.grad(lambda p: net.losses_fn(p, (inputs, targets)).mean())(net.init(key))
advance = jax.jit(net.over_seeds(one_seed))
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.errors
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from experiments.lib.nets.architecture import Architecture, network
from experiments.lib.nets.losses import per_example
from experiments.lib.runs.errors import BadNetwork


class FlatNetwork:
    """A network whose parameters are one vector: programs compile several times faster so.

    It is a function of parameters and inputs alone. Batch norm normalises over the inputs that it
    is given, in training and in tests; dropout is off.

    Attributes:
      architecture: its options.
      size: the number of parameters.
      unravel: from a vector to the tree of the network's own parameters.
    """

    def __init__(self, architecture: Architecture, shape: tuple[int, ...]):
        """Takes the options, and the shape of one example.

        Raises:
          BadNetwork: the network has batch norm and dropout.
        """
        self.architecture = architecture
        self._model = network(architecture)
        self._example = jnp.zeros((1, *shape))
        started = self._model.init(jax.random.key(0), self._example)
        params, self._state = jax.tree.map(np.asarray, started)
        vector, self.unravel = jax.flatten_util.ravel_pytree(params)
        self.size = vector.size
        try:
            jax.eval_shape(self, vector, self._example)
        except flax.errors.InvalidRngError as error:
            raise BadNetwork(
                f"{architecture.network} has batch norm and dropout: this experiment is about a "
                "loss without randomness, set the dropout rate to 0"
            ) from error

    def init(self, key: jax.Array) -> jax.Array:
        """Initial parameters, (size,)."""
        params, _ = self._model.init(key, self._example)
        return jax.flatten_util.ravel_pytree(params)[0]

    def init_seeds(self, seeds: Sequence[int]) -> jax.Array:
        """Initial parameters of several seeds, (seeds, size)."""
        return jnp.stack([self.init(jax.random.key(seed)) for seed in seeds])

    def __call__(self, params: jax.Array, inputs: jax.Array) -> jax.Array:
        """The logits (n, classes) of inputs (n, ...)."""
        train = bool(self._state)  # running averages are not a function of the parameters
        return self._model.apply(self.unravel(params), self._state, inputs, train=train)[0]

    def losses_fn(self, params: jax.Array, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        """The loss of every example, (n,), of (inputs, targets), as flatjax's operators take it."""
        inputs, targets = batch
        return per_example(self.architecture.loss)(self(params, inputs), targets)

    @property
    def has_batch_norm(self) -> bool:
        """Whether an example's output depends on those that it is given with."""
        return bool(self._state)

    def accuracy(self, params: jax.Array, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        """The share of the examples that are classified as their targets."""
        return (self(params, inputs).argmax(-1) == targets).mean()

    def over_seeds(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn` over a leading axis of seeds of all its arguments; see `Architecture.over_runs`."""
        return self.architecture.over_runs(fn)


@functools.cache
def flat_network(architecture: Architecture, shape: tuple[int, ...]) -> FlatNetwork:
    """The network; one object for each, so that nothing is compiled twice."""
    return FlatNetwork(architecture, shape)
