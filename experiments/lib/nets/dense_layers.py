"""The layers of an MLP in somebody's arrays, whatever they are called.

layers = dense_layers({"Dense_0": {"kernel", "bias"}, "Dense_1": {...}, "out": {...}})
widths(layers)     (128, 128)
renamed(layers)    {"layer_0": ..., "layer_1": ..., "layer_2": ...}: of experiments.lib.nets.mlp
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

Layers = list[tuple[str, dict[str, Any]]]


def dense_layers(params: Any) -> Layers | None:
    """The layers from the inputs to the outputs; None if the arrays are not an MLP's.

    They are in the order of the numbers in their names, one without a number (`head`) last; each
    has a kernel (inputs, outputs) and a bias, and takes what the one before hands out. Where they
    do not in that order, they are in the only one in which they do: flax counts nested calls,
    `nn.Dense(10)(nn.relu(nn.Dense(20)(x)))`, from the outermost.
    """
    if not all_dense(params):
        return None
    layers = sorted(params.items(), key=lambda item: _number(item[0]))
    sizes = [np.shape(layer["kernel"]) for _, layer in layers]
    if all(before[1] == after[0] for before, after in itertools.pairwise(sizes)):
        return layers
    if len(set(sizes)) < len(sizes):
        return None  # which of two alike comes first, no shape tells
    orders = list(itertools.islice(_chains(layers), 2))
    return orders[0] if len(orders) == 1 else None


def all_dense(params: Any) -> bool:
    """Whether there is nothing but dense layers, in whatever order."""
    if not isinstance(params, dict) or not params:
        return False
    for layer in params.values():
        if not isinstance(layer, dict) or set(layer) != {"kernel", "bias"}:
            return False
        kernel, bias = np.shape(layer["kernel"]), np.shape(layer["bias"])
        if len(kernel) != 2 or bias != kernel[1:]:
            return False
    return True


def widths(layers: Layers) -> tuple[int, ...]:
    """The units of the hidden layers."""
    return tuple(len(layer["bias"]) for _, layer in layers[:-1])


def renamed(layers: Layers) -> dict[str, Any]:
    """The params of `experiments.lib.nets.mlp`."""
    return {f"layer_{i}": layer for i, (_, layer) in enumerate(layers)}


def linen_widths(params: Any) -> tuple[int, ...] | None:
    """The units of the hidden layers of `experiments.lib.nets.networks.MLP`, all of one width.

    Whatever norms it has; None if the arrays are not of that kind.
    """
    found = [
        np.shape(layer["bias"])[0]
        for name, layer in (params.items() if isinstance(params, dict) else ())
        if re.fullmatch(r"Dense_\d+", name) and isinstance(layer, dict) and "bias" in layer
    ]
    return tuple(found) if "head" in params and len(set(found)) == 1 else None


def _chains(layers: Layers, units: int | None = None) -> Iterator[Layers]:
    """All orders in which each layer takes what the one before hands out, the first `units`."""
    if not layers:
        yield []
    for i, (name, layer) in enumerate(layers):
        inputs, outputs = np.shape(layer["kernel"])
        if units in (None, inputs):
            for rest in _chains(layers[:i] + layers[i + 1 :], outputs):
                yield [(name, layer), *rest]


def _number(name: str) -> float:
    found = re.search(r"\d+", name)
    return float(found[0]) if found else np.inf
