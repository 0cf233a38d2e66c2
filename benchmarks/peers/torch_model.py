"""A task as a PyTorch module, for the systems on PyTorch: the twins of the JAX networks.

The parameters have the names, shapes and order of the task's leaves, except that convolution
kernels are stored in PyTorch's layout, a permutation that leaves the spectrum alone.
"""

import numpy as np
import torch
from torch.nn import functional

from benchmarks.peers.adapter import Task


class Twin(torch.nn.Module):
    """The network of a task; the output has one row of logits an example or token."""

    def __init__(self, task: Task):
        super().__init__()
        self.kind, self.heads = task.kind, task.heads
        for name, value in task.params.items():
            tensor = torch.from_numpy(np.array(to_torch(task.kind, name, value)))
            self.register_parameter(name.replace(".", "_"), torch.nn.Parameter(tensor))

    def forward(self, x):
        """Logits."""
        return {"mlp": self._mlp, "cnn": self._cnn, "transformer": self._transformer}[self.kind](x)

    def _mlp(self, x):
        *hidden, last = self.parameters()
        for weight in hidden:
            x = torch.tanh(x @ weight)
        return x @ last

    def _cnn(self, x):
        for i in range(4):
            kernel = getattr(self, f"convolutions_{i}")
            if i == 2:  # "SAME" with stride 2 pads an even image at its end alone
                x = functional.conv2d(functional.pad(x, (0, 1, 0, 1)), kernel, stride=2)
            else:
                x = functional.conv2d(x, kernel, padding=1)
            x = torch.tanh(x)
        return x.mean(dim=(2, 3)) @ self.out

    def _transformer(self, ids):
        examples, length = ids.shape
        x = self.embedding[ids] + self.positions
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        width = x.shape[-1]
        for i in range(len([n for n, _ in self.named_parameters() if n.endswith("_up")])):
            attention, down, projection, scales, up = (
                getattr(self, f"layers_{i}_{n}")
                for n in ("attention", "down", "projection", "scales", "up")
            )
            h = _norm(x, scales[0]) @ attention
            q, k, v = (
                a.reshape(examples, length, self.heads, -1).transpose(1, 2)
                for a in h.split(width, dim=-1)
            )
            scores = q @ k.transpose(2, 3) / (width / self.heads) ** 0.5
            mixed = torch.softmax(scores.masked_fill(~mask, -1e9), dim=-1) @ v
            x = x + mixed.transpose(1, 2).reshape(x.shape) @ projection
            x = x + functional.gelu(_norm(x, scales[1]) @ up, approximate="tanh") @ down
        return (x @ self.out).flatten(0, 1)


def _norm(x, scale):
    x = x - x.mean(dim=-1, keepdim=True)
    return scale * x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6)


def to_torch(kind: str, name: str, value: np.ndarray) -> np.ndarray:
    """A leaf of the task in PyTorch's layout."""
    return value.transpose(3, 2, 0, 1) if kind == "cnn" and value.ndim == 4 else value


def from_torch(kind: str, value: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch`."""
    return value.transpose(2, 3, 1, 0) if kind == "cnn" and value.ndim == 4 else value


def model_of(task: Task):
    """``(model, inputs, labels)``, the labels one a row of logits."""
    inputs = task.inputs.transpose(0, 3, 1, 2) if task.kind == "cnn" else task.inputs
    dtype = np.float32 if inputs.dtype.kind == "f" else np.int64
    labels = torch.from_numpy(task.labels.astype(np.int64).ravel())
    return Twin(task), torch.from_numpy(np.ascontiguousarray(inputs, dtype)), labels


def split(task: Task, vector: np.ndarray) -> list[torch.Tensor]:
    """A flat vector in the order of the task's leaves as tensors like the parameters."""
    out, start = [], 0
    for name, value in task.params.items():
        piece = vector[start : start + value.size].reshape(value.shape)
        out.append(torch.from_numpy(np.array(to_torch(task.kind, name, piece), np.float32)))
        start += value.size
    return out


def join(task: Task, tensors) -> np.ndarray:
    """The inverse of `split`."""
    pieces = [from_torch(task.kind, t.detach().numpy()).ravel() for t in tensors]
    return np.concatenate(pieces)
