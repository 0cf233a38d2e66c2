"""ResNet-18 for images of 32 x 32, with group norm: 11.2 million parameters, in JAX and PyTorch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WIDTHS, GROUPS, CLASSES = (64, 128, 256, 512), 32, 10


def params(seed: int = 0) -> dict[str, Any]:
    """He's initial values."""
    draw = np.random.default_rng(seed)

    def kernel(window, inputs, outputs):
        scale = np.sqrt(2 / (window * window * inputs))
        return jnp.asarray(scale * draw.normal(size=(window, window, inputs, outputs)), jnp.float32)

    def norm(width):
        return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}

    found: dict[str, Any] = {"stem": kernel(3, 3, 64), "norm": norm(64)}
    before = 64
    for i, width in enumerate(WIDTHS):
        for j in range(2):
            block = {"first": kernel(3, before, width), "norm1": norm(width)}
            block |= {"second": kernel(3, width, width), "norm2": norm(width)}
            if before != width:
                block |= {"skip": kernel(1, before, width), "norm0": norm(width)}
            found[f"block{i}{j}"], before = block, width
    found["out"] = jnp.asarray(draw.normal(size=(512, CLASSES)) / 512**0.5, jnp.float32)
    return found


def apply(params: dict[str, Any], x: jax.Array) -> jax.Array:
    """Logits of images, channels last."""

    def conv(x, kernel, stride=1):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=numbers
        )

    def norm(x, p):
        n, h, w, c = x.shape
        grouped = x.reshape(n, h * w, GROUPS, c // GROUPS)
        mean = grouped.mean((1, 3), keepdims=True)
        centred = grouped - mean
        variance = jnp.square(centred).mean((1, 3), keepdims=True)
        return (centred * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape) * p["scale"] + p["bias"]

    x = jax.nn.relu(norm(conv(x, params["stem"]), params["norm"]))
    for i in range(len(WIDTHS)):
        for j in range(2):
            p, stride = params[f"block{i}{j}"], 2 if i and not j else 1
            y = jax.nn.relu(norm(conv(x, p["first"], stride), p["norm1"]))
            y = norm(conv(y, p["second"]), p["norm2"])
            if "skip" in p:
                x = norm(conv(x, p["skip"], stride), p["norm0"])
            x = jax.nn.relu(x + y)
    return x.mean((1, 2)) @ params["out"]


def twin(params: dict[str, Any]) -> Any:
    """The same network and values as a PyTorch module of images, channels first."""
    import torch
    from torch import nn
    from torch.nn import functional

    def conv(kernel, stride=1):
        window, _, inputs, outputs = np.shape(kernel)
        layer = nn.Conv2d(inputs, outputs, window, stride, padding=0, bias=False)
        layer.weight.data = torch.from_numpy(np.transpose(np.array(kernel), (3, 2, 0, 1)).copy())
        return layer

    def norm(p):
        layer = nn.GroupNorm(GROUPS, len(p["scale"]))
        layer.weight.data = torch.from_numpy(np.array(p["scale"]))
        layer.bias.data = torch.from_numpy(np.array(p["bias"]))
        return layer

    def padded(layer, x):
        """As "SAME": an even image is padded at its end first."""
        window, stride = layer.kernel_size[0], layer.stride[0]
        both = max((-(-x.shape[-1] // stride) - 1) * stride + window - x.shape[-1], 0)
        low, high = both // 2, both - both // 2
        return layer(functional.pad(x, (low, high, low, high)))

    class Block(nn.Module):
        def __init__(self, p, stride):
            super().__init__()
            self.first, self.second = conv(p["first"], stride), conv(p["second"])
            self.norm1, self.norm2 = norm(p["norm1"]), norm(p["norm2"])
            self.skip = conv(p["skip"], stride) if "skip" in p else None
            self.norm0 = norm(p["norm0"]) if "skip" in p else nn.Identity()

        def forward(self, x):
            y = functional.relu(self.norm1(padded(self.first, x)))
            y = self.norm2(padded(self.second, y))
            if self.skip is not None:
                x = self.norm0(padded(self.skip, x))
            return functional.relu(x + y)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = conv(params["stem"]), norm(params["norm"])
            blocks = [
                Block(params[f"block{i}{j}"], 2 if i and not j else 1)
                for i in range(len(WIDTHS))
                for j in range(2)
            ]
            self.blocks = nn.Sequential(*blocks)
            self.out = nn.Parameter(torch.from_numpy(np.array(params["out"])))

        def forward(self, x):
            x = self.blocks(functional.relu(self.norm(padded(self.stem, x))))
            return x.mean((2, 3)) @ self.out

    return Net()


def calls(params: Any, x: jax.Array, y: jax.Array, v: Any) -> dict[str, Callable[[], Any]]:
    """What is timed of PyTorch, by name: products along `v` with the matrices at `params`."""
    import torch

    net = twin(params)
    weights = list(net.parameters())
    images = torch.from_numpy(np.transpose(np.array(x), (0, 3, 1, 2)).copy())
    labels = torch.from_numpy(np.array(y)).long()
    along = [a.detach() for a in twin(v).parameters()]
    grad = torch.autograd.grad

    def loss():
        return torch.nn.functional.cross_entropy(net(images), labels)

    graph = grad(loss(), weights, create_graph=True)

    def hessian():
        return grad(grad(loss(), weights, create_graph=True), weights, along)

    def pair():
        outputs = net(images)
        u = torch.zeros_like(outputs, requires_grad=True)
        return outputs, u, grad(outputs, weights, u, create_graph=True)

    def ggn(parts=None):
        outputs, u, transposed = parts or pair()
        jv = grad(transposed, u, along, retain_graph=True)[0]
        p = outputs.detach().softmax(1)
        hv = (p * jv - p * (p * jv).sum(1, keepdim=True)) / len(labels)
        return grad(outputs, weights, hv, retain_graph=True)

    held = pair()
    return {
        "gradient": lambda: grad(loss(), weights),
        "hessian": hessian,
        "hessian, kept": lambda: grad(graph, weights, along, retain_graph=True),
        "ggn": ggn,
        "ggn, kept": lambda: ggn(held),
    }
