"""A gradient and products of ResNet-18, of 11.2 million parameters, beside PyTorch.

Group norm, 32 images of 32 x 32, random labels. The gradient, products with the Hessian (the primal
pass repeated, or kept) and with the Gauss-Newton matrix (likewise), in flatjax and, where it is
installed, in PyTorch: two passes of `torch.autograd.grad`, the graph of the first one kept or not,
and two of transposed ones with the logits' Hessian between. The first product is compared, so that
both are the same matrices. The processor's seconds, the least of the repetitions taken in turn.
"""

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import flatjax
from benchmarks.peers import resnet
from flatjax import loops

IMAGES, REPEATS = 32, {True: 1, False: 3}
LOSS = flatjax.softmax_cross_entropy


def ours(params: Any, x: jax.Array, y: jax.Array, v: Any) -> dict[str, Callable[[], Any]]:
    """What is timed of flatjax, by name."""

    def loss_fn(params, batch):
        return LOSS(resnet.apply(params, batch[0]), batch[1])

    hessian = flatjax.hessian(loss_fn, params, (x, y))
    ggn = flatjax.ggn(resnet.apply, LOSS, params, (x, y))
    gradient = jax.jit(jax.grad(lambda p: loss_fn(p, (x, y)).mean()))
    kept, kept_ggn = hessian.linearize(), ggn.linearize()
    return {
        "gradient": lambda: gradient(params),
        "hessian": lambda: loops.product(hessian)(v),
        "hessian, kept": lambda: loops.product(kept)(v),
        "ggn": lambda: loops.product(ggn)(v),
        "ggn, kept": lambda: loops.product(kept_ggn)(v),
    }


def size_of(found: Any) -> float:
    """The norm of a gradient or product of either."""
    leaves = jax.tree.leaves(found)
    return float(np.sqrt(sum(np.square(np.asarray(a, np.float64)).sum() for a in leaves)))


def main(short: bool = False) -> dict[str, dict[str, Any]]:
    """By quantity, seconds of each system."""
    params = resnet.params()
    x = jax.random.normal(jax.random.key(0), (IMAGES, 32, 32, 3))
    y = jax.random.randint(jax.random.key(1), (IMAGES,), 0, resnet.CLASSES)
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    v = treedef.unflatten(
        [jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    )
    systems = {"flatjax": ours(params, x, y, v)}
    if importlib.util.find_spec("torch") is not None:
        systems["PyTorch"] = resnet.calls(params, x, y, v)
    out: dict[str, dict[str, Any]] = {}
    for name in systems["flatjax"]:
        seconds = dict.fromkeys(systems, float("inf"))
        norms = {}
        for system, calls in systems.items():
            norms[system] = size_of(jax.block_until_ready(calls[name]()))
        off = max(norms.values()) / min(norms.values()) - 1
        if off > 1e-3:  # float32 through eighteen layers
            raise RuntimeError(f"{name} is another matrix: norms {norms}")
        for _ in range(REPEATS[short]):
            for system, calls in systems.items():
                begin = time.process_time()
                jax.block_until_ready(calls[name]())
                seconds[system] = min(seconds[system], time.process_time() - begin)
        out[name] = {"seconds": seconds, "norms_apart": off}
        print(f"   {name}: {out[name]}", flush=True)
    return out
