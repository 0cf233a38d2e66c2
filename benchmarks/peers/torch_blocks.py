"""GPT, ViT and ResNet-18 of `gpt`, `vit` and `resnet` as PyTorch modules of the same values.

They take the arrays by name, and inputs as PyTorch has them; GPT gives one row of logits a token.
Attention is written out, since the fused one has no second derivative.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

Params = dict[str, Any]
GPT_HEADS, VIT_HEADS, PATCH, GROUPS = 4, 3, 4, 32


def parameter(value: Any) -> nn.Parameter:
    """An array's."""
    return nn.Parameter(torch.from_numpy(np.array(value, np.float32)))


def linear(p: Params) -> nn.Linear:
    """A dense layer, whose kernel PyTorch has transposed."""
    layer = nn.Linear(*np.shape(p["kernel"]))
    layer.weight, layer.bias = parameter(np.transpose(p["kernel"])), parameter(p["bias"])
    return layer


def normed(layer: Any, p: Params) -> Any:
    """A norm of these values."""
    layer.weight, layer.bias = parameter(p["scale"]), parameter(p["bias"])
    return layer


class Layer(nn.Module):
    """A layer of GPT or ViT."""

    def __init__(self, p: Params, heads: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = (
            normed(nn.LayerNorm(len(p[n]["scale"])), p[n]) for n in ("norm1", "norm2")
        )
        self.attention, self.mix = linear(p["attention"]), linear(p["mix"])
        self.up, self.down = linear(p["up"]), linear(p["down"])

    def forward(self, x):
        """The stream behind it."""
        n, t, width = x.shape
        h = self.attention(self.norm1(x)).split(width, dim=-1)
        q, k, v = (a.reshape(n, t, self.heads, -1).transpose(1, 2) for a in h)
        scores = q @ k.transpose(2, 3) / (width // self.heads) ** 0.5
        if self.causal:
            scores = scores.masked_fill(~torch.ones(t, t, dtype=torch.bool).tril(), -1e9)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
        x = x + self.mix(mixed)
        return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))


def _layers(params: Params, heads: int, causal: bool) -> nn.Sequential:
    names = sorted(name for name in params if name.startswith("layer"))
    last = normed(nn.LayerNorm(len(params["norm"]["scale"])), params["norm"])
    return nn.Sequential(*(Layer(params[name], heads, causal) for name in names), last)


class Gpt(nn.Module):
    """Of tokens."""

    def __init__(self, params: Params):
        super().__init__()
        self.embedding, self.positions = (parameter(params[n]) for n in ("embedding", "positions"))
        self.layers, self.out = _layers(params, GPT_HEADS, True), parameter(params["out"])

    def forward(self, ids):
        """Logits, one row a token."""
        x = functional.embedding(ids, self.embedding) + self.positions
        return (self.layers(x) @ self.out).flatten(0, 1)


class Vit(nn.Module):
    """Of images, channels first."""

    def __init__(self, params: Params):
        super().__init__()
        self.patches, self.positions = linear(params["patches"]), parameter(params["positions"])
        self.layers, self.out = _layers(params, VIT_HEADS, False), linear(params["out"])

    def forward(self, x):
        """Logits."""
        n, side = len(x), 32 // PATCH
        x = x.reshape(n, 3, side, PATCH, side, PATCH).permute(0, 2, 4, 3, 5, 1)
        x = self.patches(x.reshape(n, side * side, -1)) + self.positions
        return self.out(self.layers(x).mean(1))


def _conv(kernel, stride=1):
    window, _, inputs, outputs = np.shape(kernel)
    layer = nn.Conv2d(inputs, outputs, window, stride, padding=0, bias=False)
    layer.weight = parameter(np.transpose(kernel, (3, 2, 0, 1)).copy())
    return layer


def _padded(layer, x):
    """As "SAME": an even image is padded at its end first."""
    window, stride = layer.kernel_size[0], layer.stride[0]
    both = max((-(-x.shape[-1] // stride) - 1) * stride + window - x.shape[-1], 0)
    low, high = both // 2, both - both // 2
    return layer(functional.pad(x, (low, high, low, high)))


def _group_norm(p):
    return normed(nn.GroupNorm(GROUPS, len(p["scale"])), p)


class Block(nn.Module):
    """Two convolutions of ResNet-18 and what goes round them."""

    def __init__(self, p: Params, stride: int):
        super().__init__()
        self.first, self.second = _conv(p["first"], stride), _conv(p["second"])
        self.norm1, self.norm2 = _group_norm(p["norm1"]), _group_norm(p["norm2"])
        self.skip = _conv(p["skip"], stride) if "skip" in p else None
        self.norm0 = _group_norm(p["norm0"]) if "skip" in p else nn.Identity()

    def forward(self, x):
        """The images behind it."""
        y = functional.relu(self.norm1(_padded(self.first, x)))
        y = self.norm2(_padded(self.second, y))
        if self.skip is not None:
            x = self.norm0(_padded(self.skip, x))
        return functional.relu(x + y)


class ResNet(nn.Module):
    """Of images, channels first."""

    def __init__(self, params: Params):
        super().__init__()
        self.stem, self.norm = _conv(params["stem"]), _group_norm(params["norm"])
        names = sorted(name for name in params if name.startswith("block"))
        strides = [2 if name[5] != "0" and name[6] == "0" else 1 for name in names]
        pairs = zip(names, strides, strict=True)
        self.blocks = nn.Sequential(*(Block(params[name], stride) for name, stride in pairs))
        self.out = parameter(params["out"])

    def forward(self, x):
        """Logits."""
        x = self.blocks(functional.relu(self.norm(_padded(self.stem, x))))
        return x.mean((2, 3)) @ self.out


MODULES = {"gpt": Gpt, "vit": Vit, "resnet": ResNet}


def model_of(name: str, params: Params, batch: tuple[np.ndarray, np.ndarray]):
    """``(model, inputs, labels)``, the labels one a row of logits."""
    x, y = batch
    inputs = x.astype(np.int64) if name == "gpt" else np.transpose(x, (0, 3, 1, 2)).copy()
    return MODULES[name](params), torch.from_numpy(inputs), torch.from_numpy(y.ravel()).long()


def products(name: str, params: Params, batch: Any, v: Params) -> dict[str, Any]:
    """A gradient, and products along `v` with the Hessian and the Gauss-Newton matrix, by name."""
    net, inputs, labels = model_of(name, params, batch)
    weights = list(net.parameters())
    along = [a.detach() for a in MODULES[name](v).parameters()]
    grad = torch.autograd.grad

    def loss():
        return functional.cross_entropy(net(inputs), labels)

    def hessian():
        return grad(grad(loss(), weights, create_graph=True), weights, along)

    def pair():
        outputs = net(inputs)
        u = torch.zeros_like(outputs, requires_grad=True)
        return outputs, u, grad(outputs, weights, u, create_graph=True)

    def ggn(parts=None):
        outputs, u, transposed = parts or pair()
        jv = grad(transposed, u, along, retain_graph=True)[0]
        p = outputs.detach().softmax(1)
        hv = (p * jv - p * (p * jv).sum(1, keepdim=True)) / len(labels)
        return grad(outputs, weights, hv, retain_graph=True)

    graph = grad(loss(), weights, create_graph=True)
    held = pair()

    def gradient():
        return grad(loss(), weights)

    return {
        "gradient": gradient,
        "gradient, canonical": gradient,
        "hessian": hessian,
        "hessian, kept": lambda: grad(graph, weights, along, retain_graph=True),
        "ggn": ggn,
        "ggn, kept": lambda: ggn(held),
    }
