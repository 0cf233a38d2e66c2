"""Which units of a network of the experiments can be put in another order.

    model = network(architecture)
    tree = dict(zip(("params", "model_state"), model.init(key, inputs), strict=True))
    spec = symmetries(architecture, tree)
    flatjax.check_symmetry(evaluated(model), tree, spec, inputs, key=key).holds

The tree has the batch statistics, which move with their channels. Group norm makes the channels it
takes together blocks, and these are permuted, and the channels inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

import flatjax
from experiments.lib.nets import named
from experiments.lib.nets.architecture import Architecture
from experiments.lib.nets.config import ModelConfig
from experiments.lib.nets.models import Model
from experiments.lib.runs.errors import BadNetwork

Tree = Mapping[str, Any]  # {"params": ..., "model_state": ...}
Rules = dict[str, Any]
NORMS = {"batch": "BatchNorm", "layer": "LayerNorm", "group": "GroupNorm"}


def evaluated(model: Model) -> Callable[[Tree, jax.Array], jax.Array]:
    """The logits as a function of the tree: as evaluated, with running averages."""
    return lambda tree, inputs: model.model_fn(tree["params"], inputs, tree["model_state"])


def symmetries(architecture: Architecture | ModelConfig, tree: Tree) -> flatjax.Spec:
    """The permutation symmetries of a network.

    Args:
      architecture: which network; a `ModelConfig` for what no name says, such as tokens.
      tree: its params and model state, `{"params": ..., "model_state": ...}`.

    Raises:
      BadNetwork: it is a user's own network, of which nothing is known here.
    """
    config = architecture
    if isinstance(config, Architecture):
        if ":" in config.network:
            raise BadNetwork(
                f"the symmetries of {config.network} are not known: state them with "
                "flatjax.spec_of, and see flatjax.check_symmetry"
            )
        if config.network == "mlp":
            return flatjax.spec_of(tree, _plain_mlp(len(config.hidden)))
        config = named.parsed(config.network)
    layers = _Layers(config, tree["params"])
    _WRITTEN[config.name](layers)
    return flatjax.spec_of(tree, layers.rules, sizes=layers.sizes)


def _plain_mlp(hidden: int) -> Rules:
    groups = [None, *(f"h{i}" for i in range(hidden)), None]
    rules: Rules = {}
    for i in range(hidden + 1):
        rules[f"params/layer_{i}/kernel"] = groups[i], groups[i + 1]
        rules[f"params/layer_{i}/bias"] = (groups[i + 1],)
    return rules


class _Layers:
    """The rules of a network, layer by layer.

    Attributes:
      skip: whether blocks are added to their inputs, so that both have one order.
      params: of the network, for its shapes.
      rules: so far.
      sizes: the number of blocks of channels that a group norm takes together.
    """

    def __init__(self, config: ModelConfig, params: Any):
        norms = {"resnet": "batch", "wide_resnet": "batch", "transformer": "layer"}
        self.norm = config.norm or norms.get(config.name, "none")
        self.skip = config.name != "mlp" if config.skip is None else config.skip
        self.params = params
        self.rules: Rules = {}
        self.sizes: dict[str, int] = {}

    def channels(self, group: str, count: int) -> Any:
        """The entry of an axis of channels: blocks of them where a group norm follows."""
        if self.norm != "group":
            return group
        self.sizes[group] = max(g for g in range(1, 9) if count % g == 0)
        return group, f"{group}/channel"

    def width(self, path: str) -> int:
        """How many units a layer has."""
        return self.layer(path)["kernel"].shape[-1]

    def layer(self, path: str) -> Any:
        """Its params."""
        found = self.params
        for key in path.split("/"):
            found = found[key]
        return found

    def add(self, path: str, *entries: Any) -> None:
        """A dense layer or convolution: the entries of its kernel's last two axes."""
        leaves = self.layer(path)
        spatial = (None,) * (leaves["kernel"].ndim - 2)
        self.rules[f"params/{path}/kernel"] = (*spatial, *entries)
        if "bias" in leaves:
            self.rules[f"params/{path}/bias"] = entries[-1:]

    def add_norm(self, path: str, entry: Any) -> None:
        """A norm, by its place such as `BasicBlock_0/1` or by its name, with its statistics."""
        if self.norm == "none":
            return
        before, slash, last = path.rpartition("/")
        name = f"{NORMS[self.norm]}_{last}" if last.isdecimal() else last
        self.rules[f"params/{before}{slash}{name}/(scale|bias)"] = (entry,)
        if self.norm == "batch":
            self.rules[f"model_state/batch_stats/{before}{slash}{name}/(mean|var)"] = (entry,)


def _mlp(net: _Layers) -> None:
    before, i = None, 0
    while f"Dense_{i}" in net.params:
        units = net.channels("stream" if net.skip else f"h{i}", net.width(f"Dense_{i}"))
        net.add(f"Dense_{i}", before, units)
        net.add_norm(f"{i}", units)
        before, i = units, i + 1
    net.add("head", before, None)


def _convolutions(net: _Layers) -> None:
    """Convolutions one after another, flattened, at most one dense layer, the head."""
    before, i = None, 0
    while f"Conv_{i}" in net.params:
        units = net.channels(f"c{i}", net.width(f"Conv_{i}"))
        net.add(f"Conv_{i}", before, units)
        net.add_norm(f"{i}", units)
        before, i = units, i + 1
    flat = (None, *(before if isinstance(before, tuple) else (before,)))
    if "Dense_0" in net.params:
        net.add("Dense_0", flat, "dense")
        flat = "dense"
    net.add("head", flat, None)


def _blocks(net: _Layers, kind: str) -> list[str]:
    count = sum(name.startswith(f"{kind}_") for name in net.params)
    return [f"{kind}_{i}" for i in range(count)]


def _after(net: _Layers, block: str, stream: Any) -> Any:
    """The entry of what leaves a block: the one that enters it where nothing changes its order."""
    if net.skip and "shortcut" not in net.params[block]:
        return stream
    return net.channels(f"{block}-stream", net.width(f"{block}/Conv_1"))


def _resnet(net: _Layers) -> None:
    """The stream between shortcuts is one group; each block has one of its own inside.

    Without skips the output of every block is a group of its own.
    """
    stream = net.channels("stem", net.width("Conv_0"))
    net.add("Conv_0", None, stream)
    net.add_norm("0", stream)
    for block in _blocks(net, "BasicBlock"):
        inside = net.channels(f"{block}-inside", net.width(f"{block}/Conv_0"))
        net.add(f"{block}/Conv_0", stream, inside)
        net.add_norm(f"{block}/0", inside)
        after = _after(net, block, stream)
        if "shortcut" in net.params[block]:
            net.add(f"{block}/shortcut", stream, after)
            net.add_norm(f"{block}/shortcut_norm", after)
        stream = after
        net.add(f"{block}/Conv_1", inside, stream)
        net.add_norm(f"{block}/1", stream)
    net.add("head", stream, None)


def _wide_resnet(net: _Layers) -> None:
    """The same with the norm before the convolution."""
    stream = net.channels("stem", net.width("Conv_0"))
    net.add("Conv_0", None, stream)
    for block in _blocks(net, "WideBlock"):
        inside = net.channels(f"{block}-inside", net.width(f"{block}/Conv_0"))
        net.add_norm(f"{block}/0", stream)
        net.add(f"{block}/Conv_0", stream, inside)
        net.add_norm(f"{block}/1", inside)
        after = _after(net, block, stream)
        if "shortcut" in net.params[block]:
            net.add(f"{block}/shortcut", stream, after)
        stream = after
        net.add(f"{block}/Conv_1", inside, stream)
    net.add_norm("0", stream)
    net.add("head", stream, None)


def _transformer(net: _Layers) -> None:
    """One stream; in every block heads, the units inside them, and those of the perceptron."""
    embed = net.params["embed"]
    stream = net.channels("stream", net.params["position"].shape[-1])
    net.rules["params/position"] = (None, None, stream)
    if "embedding" in embed:
        net.rules["params/embed/embedding"] = (None, stream)
    else:
        net.add("embed", None, stream)
    for block in _blocks(net, "TransformerBlock"):
        net.add_norm(f"{block}/0", stream)
        heads, attention = f"{block}-heads", f"params/{block}/MultiHeadDotProductAttention_0"
        for names, units in (("(query|key)", f"{heads}/qk"), ("value", f"{heads}/v")):
            net.rules[f"{attention}/{names}/kernel"] = (stream, heads, units)
            net.rules[f"{attention}/{names}/bias"] = (heads, units)
        net.rules[f"{attention}/out/kernel"] = (heads, f"{heads}/v", stream)
        net.rules[f"{attention}/out/bias"] = (stream,)
        net.add_norm(f"{block}/1", stream)
        net.add(f"{block}/Dense_0", stream, f"{block}-inside")
        net.add(f"{block}/Dense_1", f"{block}-inside", stream)
    net.add_norm("0", stream)
    net.add("head", stream, None)


_WRITTEN: dict[str, Callable[[_Layers], None]] = {
    "mlp": _mlp,
    "s2cnn": _convolutions,
    "cnn": _convolutions,
    "simple_cnn": _convolutions,
    "resnet": _resnet,
    "wide_resnet": _wide_resnet,
    "transformer": _transformer,
}
