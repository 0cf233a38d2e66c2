"""The networks of the experiments, in flax linen, behind two pure functions.

    model = make_model(ModelConfig(name="resnet", norm="group"), num_classes=10)
    params, model_state = model.init(key, inputs)
    logits, model_state = model.apply(params, model_state, inputs, train=True, key=key)

`model_state` holds the batch statistics (an empty dict without batch norm); `key` feeds dropout.
Inputs are images (n, height, width, channels), any array for the MLP, and for the transformer
also token ids (n, length).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax

from experiments.lib.nets import networks
from experiments.lib.nets.config import ModelConfig

Params = Any
ModelState = Any


class Apply(Protocol):
    """`apply(params, model_state, inputs, *, train, key=None) -> (logits, model_state)`."""

    def __call__(
        self,
        params: Params,
        model_state: ModelState,
        inputs: jax.Array,
        *,
        train: bool,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, ModelState]:
        """Returns logits (n, classes) and the new model state (unchanged unless `train`)."""
        ...


class Model(NamedTuple):
    """A network as pure functions; `init` and `apply` can be jitted and differentiated.

    Attributes:
      init: `(key, inputs) -> (params, model_state)`; `inputs` may be one example long.
      apply: see `Apply`.
      module: the flax module; None where there is none.
    """

    init: Callable[[jax.Array, jax.Array], tuple[Params, ModelState]]
    apply: Apply
    module: nn.Module | None

    def model_fn(
        self, params: Params, inputs: jax.Array, model_state: ModelState | None = None
    ) -> jax.Array:
        """The logits as evaluated: `model_fn(params, inputs, *args)` of flatjax's operators.

        Batch norm uses its running averages, dropout is off. Pass `model_state` as `args`.
        """
        return self.apply(params, model_state or {}, inputs, train=False)[0]


def make_model(config: ModelConfig, num_classes: int) -> Model:
    """Builds a network.

    Raises:
      ValueError: the configuration makes no network of this kind.
    """
    return of_module(networks.build(config, num_classes))


def of_module(module: nn.Module) -> Model:
    """The pure functions of a flax module whose `__call__` takes `(x, train=False)`."""

    def init(key, inputs):
        variables = dict(module.init({"params": key}, inputs, train=False))
        return variables.pop("params"), variables

    def apply(params, model_state, inputs, *, train, key=None):
        rngs = None if key is None else {"dropout": key}
        variables = {"params": params, **model_state}
        if not train:
            return module.apply(variables, inputs, train=False), model_state
        logits, new_state = module.apply(
            variables, inputs, train=True, rngs=rngs, mutable=list(model_state)
        )
        return logits, dict(new_state)

    return Model(init, apply, module)
