"""Seconds of a gradient and of products, flatjax and PyTorch in turn in one process of one thread.

``python -m benchmarks.peers.user_products NAME FILE REPEATS`` writes one JSON object.
"""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers import user_models, worker

# float32 through up to eighteen layers, in another order.
APART = 1e-3


def ours(name: str, params: Any, batch: Any, v: Any) -> dict[str, Callable[[], Any]]:
    """What is timed of flatjax, by name."""
    import jax

    from flatjax import loops

    found = user_models.jax_operators(name, params, batch)
    gradient = jax.jit(jax.grad(found["loss"]))
    rewritten = jax.jit(loops.canonical(jax.grad(found["loss"])))
    calls: dict[str, Callable[[], Any]] = {"gradient": lambda: gradient(params)}
    calls["gradient, canonical"] = lambda: rewritten(params)
    for matrix in ("hessian", "ggn"):
        kept = found[matrix].linearize()
        calls[matrix] = lambda op=found[matrix]: loops.product(op)(v)
        calls[f"{matrix}, kept"] = lambda op=kept: loops.product(op)(v)
    return calls


def size_of(found: Any) -> float:
    """The norm of a gradient or product of either."""
    import jax

    leaves = jax.tree.leaves(found)
    return float(np.sqrt(sum(np.square(np.asarray(a, np.float64)).sum() for a in leaves)))


def measured(name: str, path: str, repeats: int) -> dict[str, Any]:
    """By quantity, the processor's seconds of each system, the least of the repetitions."""
    import jax

    params, batch = user_models.read(path)
    draw = np.random.default_rng(2)
    v = jax.tree.map(lambda a: np.float32(draw.normal(size=a.shape)), params)
    on_device = jax.tree.map(jax.numpy.asarray, (params, batch, v))
    systems = {"flatjax": ours(name, *on_device)}
    if importlib.util.find_spec("torch") is not None:
        import torch

        from benchmarks.peers import torch_blocks

        torch.set_num_threads(1)
        systems["PyTorch"] = torch_blocks.products(name, params, batch, v)
    out: dict[str, Any] = {"params": sum(a.size for a in jax.tree.leaves(params))}
    for what in systems["flatjax"]:
        norms = {
            system: size_of(jax.block_until_ready(calls[what]()))
            for system, calls in systems.items()
        }
        off = max(norms.values()) / min(norms.values()) - 1
        if off > APART:
            raise RuntimeError(f"{name}: {what} is another matrix: norms {norms}")
        seconds = dict.fromkeys(systems, float("inf"))
        for _ in range(repeats):
            for system, calls in systems.items():
                begin = time.process_time()
                jax.block_until_ready(calls[what]())
                seconds[system] = min(seconds[system], time.process_time() - begin)
        out[what] = {"seconds": seconds, "norms_apart": off}
        print(name, what, out[what], file=sys.stderr, flush=True)
    return out


if __name__ == "__main__":
    worker.pinned(int(os.environ.get("BENCH_THREADS", "1")))
    print(json.dumps(measured(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
