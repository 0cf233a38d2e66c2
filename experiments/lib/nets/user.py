"""A user's own network by name: `my_package.my_module:make`.

`make(num_classes)` returns a flax linen module whose `__call__` takes `(x, train=False)`:

    class Net(nn.Module):
        num_classes: int

        @nn.compact
        def __call__(self, x, train=False):
            x = nn.relu(nn.Dense(100)(x.reshape(len(x), -1)))
            return nn.Dense(self.num_classes)(nn.Dropout(0.1, deterministic=not train)(x))

    make = Net
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from experiments.lib.runs.errors import BadNetwork

_CALL = "its __call__ must take (x, train=False)"


def user_network(name: str, num_classes: int) -> nn.Module:
    """Imports and calls `make`.

    Args:
      name: `module:function`, the module by its dotted name, from the current directory or
        installed; the function may lie in a class, `module:Class.function`.
      num_classes: what `make` is called with; the outputs for each example.

    Raises:
      BadNetwork: the name has no such form, there is no such module or function, it cannot be
        called with one argument, or returns something else. An error inside the module or inside
        `make` is shown as it is.
    """
    module_name, colon, path = name.partition(":")
    if not colon or not all(p.isidentifier() for p in (*module_name.split("."), *path.split("."))):
        raise BadNetwork(f"--network is package.module:function, got {name!r}")
    make = _find(name, module_name, path)
    try:
        inspect.signature(make).bind(num_classes)
    except TypeError as error:
        raise BadNetwork(f"{name} must take (num_classes): {error}") from error
    network = make(num_classes)
    if not isinstance(network, nn.Module):
        kind = f"the class {network.__name__}" if isinstance(network, type) else type(network)
        raise BadNetwork(f"{name} must return a flax linen module, returned {kind}")
    _check_call(name, network)
    return network


def _find(name: str, module_name: str, path: str) -> Callable[..., Any]:
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that it imports in turn may be missing: that is another matter.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise BadNetwork(
            f"--network {name}: there is no module {error.name}; it is looked for in the current "
            "directory and among what is installed"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise BadNetwork(f"--network {name}: {getattr(found, '__name__', found)} has no {part}")
        found = getattr(found, part)
    if not callable(found):
        raise BadNetwork(f"--network {name}: {path} is no function, but {type(found).__name__}")
    return found


def _check_call(name: str, network: nn.Module) -> None:
    signature = inspect.signature(type(network).__call__)
    try:
        for options in ({}, {"train": True}):
            signature.bind(network, "x", **options)
    except TypeError as error:
        raise BadNetwork(
            f"{name} returns {type(network).__name__}; {_CALL}, takes {signature}"
        ) from error
    train = signature.parameters.get("train")
    if train is None or train.default is not False:
        raise BadNetwork(f"{name} returns {type(network).__name__}; {_CALL}, takes {signature}")
