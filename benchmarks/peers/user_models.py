"""The networks of user size, trained a little, so that their spectra have outliers over a bulk."""

import importlib
import os
import pathlib
from typing import Any

import numpy as np

NAMES = ("resnet", "gpt", "vit")
FOLDER = pathlib.Path("runs/benchmarks/tasks")
STEPS, LEARNING_RATE = 20, 1e-3


def module(name: str) -> Any:
    """The network in JAX: ``params``, ``batch``, ``apply``."""
    return importlib.import_module(f"benchmarks.peers.{name}")


def prepared(name: str, small: bool = False) -> pathlib.Path:
    """The file with the params after some steps of Adam, and the batch; made if it is missing."""
    path = (FOLDER / f"{name}-{'toy' if small else 'user'}.npz").resolve()
    if not path.exists():
        x, y = module(name).batch(small)
        arrays = _flat(trained(name, module(name).params(small=small), (x, y)))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, inputs=x, labels=y, **{f"param:{n}": a for n, a in arrays.items()})
        os.replace(part, path)
    return path


def trained(name: str, params: Any, batch: Any) -> Any:
    """The params after the steps on the one batch."""
    import jax
    import optax

    tx, apply = optax.adam(LEARNING_RATE), module(name).apply

    @jax.jit
    def step(params, state):
        def loss(p):
            logits = apply(p, batch[0])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, value = tx.init(params), None
    for _ in range(STEPS):
        params, state, value = step(params, state)
    print(f"   {name}: loss {value:.3f} after {STEPS} steps", flush=True)
    return params


def read(path: str | pathlib.Path) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray]]:
    """``(params, (inputs, labels))`` in NumPy."""
    params: dict[str, Any] = {}
    with np.load(path) as file:
        for key in file.files:
            if key.startswith("param:"):
                *outer, last = key.removeprefix("param:").split(".")
                node = params
                for part in outer:
                    node = node.setdefault(part, {})
                node[last] = file[key]
        return params, (file["inputs"], file["labels"])


def _flat(params: Any, path: str = "") -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for key, value in params.items():
        here = f"{path}.{key}" if path else key
        out |= _flat(value, here) if isinstance(value, dict) else {here: np.asarray(value)}
    return out


def jax_operators(name: str, params: Any, batch: Any) -> dict[str, Any]:
    """The Hessian and the Gauss-Newton matrix of flatjax, and the mean loss of which they are."""
    import flatjax

    network = module(name)
    loss = flatjax.softmax_cross_entropy(per=network.PER)

    def loss_fn(params, batch):
        return loss.mean(network.apply(params, batch[0]), batch[1])

    return {
        "loss": lambda p: loss(network.apply(p, batch[0]), batch[1]).mean(),
        "hessian": flatjax.hessian(loss_fn, params, batch),
        "ggn": flatjax.ggn(network.apply, loss, params, batch),
    }
