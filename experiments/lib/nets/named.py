"""Networks by a short name: what `--recipe.network` takes.

    model("s2cnn-16", 10)            two convolutions of stride 2, 16 and 32 channels
    model("resnet-20-group", 10)     20 layers, group norm
    model("resnet-20-noskip", 10)    20 layers, batch norm, without skip connections
    model("wide_resnet-28-10", 10)   28 layers, ten times as wide
    model("mlp-256-batch", 10)       two hidden layers of 256 units, batch norm
    model("mlp-4-32-skip", 10)       four hidden layers of 32 units with skip connections
    model("s2cnn-16-noise0.4", 10)   noise of that deviation before every non-linearity, in training
    model("my_nets:tiny", 10)        a user's own, see `experiments.lib.nets.user`

A number is the width, of a resnet the depth; two are depth and width. Words are a norm, an
activation, skip or noskip, or the noise.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from experiments.lib.nets.config import ModelConfig
from experiments.lib.nets.mlp import apply_mlp, init_mlp
from experiments.lib.nets.models import Model, make_model, of_module
from experiments.lib.nets.user import user_network
from experiments.lib.runs.errors import BadNetwork

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh, "relu": jax.nn.relu, "square": jnp.square,
}  # fmt: skip


def plain_mlp(hidden: Sequence[int], activation: str, init_scale: float, classes: int) -> Model:
    """The MLP of `experiments.lib.nets.mlp`; it has no batch statistics."""
    act = ACTIVATIONS[activation]

    def init(key, inputs):
        return init_mlp(key, (inputs.shape[-1], *hidden, classes), scale=init_scale), {}

    def apply(params, model_state, inputs, *, train, key=None):
        del train, key
        return apply_mlp(params, inputs, activation=act), model_state

    return Model(init, apply, None)


def model(name: str, classes: int) -> Model:
    """The network of a name.

    Raises:
      BadNetwork: there is none of that name, or a user's own cannot be had.
    """
    if ":" in name:
        return _checked(of_module(user_network(name, classes)), name, classes)
    config = parsed(name)
    made = make_model(config, classes)
    if config.name == "mlp":
        return made

    def init(key, inputs):
        if inputs.ndim != 4:
            raise BadNetwork(
                f"network {name!r} takes images, (height, width, channels), and an example has the "
                f"shape {inputs.shape[1:]}: say --network mlp-64, or package.module:make"
            )
        return made.init(key, inputs)

    return made._replace(init=init)


def _checked(made: Model, name: str, classes: int) -> Model:
    """A user's own network, refused where its outputs are not one for each class."""

    def init(key, inputs):
        params, state = made.init(key, inputs)
        found = jax.eval_shape(lambda x: made.apply(params, state, x, train=False)[0], inputs)
        if (found.shape[:1], found.shape[-1:]) != ((len(inputs),), (classes,)):
            raise BadNetwork(
                f"{name} returns outputs of shape {found.shape} for {len(inputs)} examples, not "
                f"{(len(inputs), classes)}, one for each class"
            )
        return params, state

    return made._replace(init=init)


def parsed(name: str) -> ModelConfig:
    """The configuration of a name.

    Raises:
      BadNetwork: there is none of that name.
    """
    hints = typing.get_type_hints(ModelConfig)
    options = {key: typing.get_args(hints[key]) for key in ("name", "norm", "activation")}
    values = {
        key: tuple(v for part in found for v in (typing.get_args(part) or (part,)))
        for key, found in options.items()
    }
    kind, *words = name.split("-")
    if kind not in values["name"]:
        kinds = ", ".join(values["name"])
        raise BadNetwork(f"no network {name!r}; there are {kinds}, and package.module:make")
    numbers = [int(word) for word in words if word.isdecimal()]
    if len(numbers) > 2:
        raise BadNetwork(f"network {name!r}: depth and width at most, got {len(numbers)} numbers")
    sizes = ("depth", "width") if len(numbers) == 2 or kind == "resnet" else ("width",)
    found: dict[str, typing.Any] = {"name": kind, **dict(zip(sizes, numbers, strict=False))}
    for word in (word for word in words if not word.isdecimal()):
        if word in values["norm"]:
            found["norm"] = word
        elif word in values["activation"]:
            found["activation"] = word
        elif word in ("skip", "noskip"):
            found["skip"] = word == "skip"
        elif noise := re.fullmatch(r"noise(\d+(?:\.\d+)?)", word):
            found["noise"] = float(noise[1])
        else:
            known = ", ".join(
                v
                for v in (*values["norm"], *values["activation"], "skip", "noskip", "noise0.4")
                if isinstance(v, str)
            )
            raise BadNetwork(f"network {name!r}: {word!r} is no number and none of {known}")
    return ModelConfig(**found)
