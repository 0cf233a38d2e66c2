"""The networks of the comparison: built and trained once by JAX, kept as NumPy arrays.

They are trained until their spectrum is that of a network in use, outliers over a bulk, with a
tenth of the labels wrong so that the loss does not vanish.
"""

import pathlib
from typing import Any

import numpy as np

from benchmarks.peers.adapter import Task

# Three sizes each, about 3 000, 30 000 and 150 000 params. The smallest have a dense reference.
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "mlp": {
        "small": {"width": 32, "examples": 256},
        "medium": {"width": 96, "examples": 256},
        "large": {"width": 224, "examples": 256},
    },
    "cnn": {
        "small": {"channels": 8, "examples": 32, "image": 12},
        "medium": {"channels": 20, "examples": 32, "image": 12},
        "large": {"channels": 48, "examples": 32, "image": 12},
    },
    "transformer": {
        "small": {"width": 8, "heads": 2, "vocabulary": 64, "positions": 16, "examples": 32},
        "medium": {"width": 32, "heads": 4, "vocabulary": 128, "positions": 32, "examples": 16},
        "large": {"width": 64, "heads": 4, "vocabulary": 256, "positions": 32, "examples": 16},
    },
}
NAMES = [f"{kind}-{size}" for size in ("small", "medium", "large") for kind in SIZES]
TRAINING_STEPS, LEARNING_RATE, WRONG = 60, 3e-3, 0.1


def create(name: str) -> Task:
    """Build and train the network ``"kind-size"``."""
    import jax
    import jax.numpy as jnp
    import optax

    from benchmarks import _networks

    kind, size = name.split("-")
    options = SIZES[kind][size]
    problem = _networks.PROBLEMS[kind](**options)
    inputs, labels = problem.batch
    inputs, labels = _learnable(kind, np.asarray(inputs), np.asarray(labels))
    tx = optax.adam(LEARNING_RATE)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(mean_loss)(params)
        updates, state = tx.update(gradient, state)
        return optax.apply_updates(params, updates), state

    def mean_loss(params):
        logits = problem.model_fn(params, jnp.asarray(inputs))
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()

    params, state = problem.params, tx.init(problem.params)
    for _ in range(TRAINING_STEPS):
        params, state = step(params, state)
    leaves = {leaf_name(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(params)}
    return Task(kind, options.get("heads", 0), leaves, inputs, labels)


def leaf_name(path) -> str:
    """``layers.0.up`` for the path of a leaf."""
    return ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)


def _learnable(kind, inputs, labels):
    """Data with something to learn: classes with means of their own, or a chain of tokens."""
    generator = np.random.default_rng(0)
    if kind == "transformer":
        ids = np.concatenate([inputs, labels[:, -1:]], axis=1)
        vocabulary = int(ids.max()) + 1
        for t in range(1, ids.shape[1]):
            follow = generator.random(len(ids)) < 0.8
            ids[:, t] = np.where(follow, (5 * ids[:, t - 1] + 3) % vocabulary, ids[:, t])
        return ids[:, :-1].astype(np.int32), ids[:, 1:].astype(np.int32)
    means = generator.normal(size=(10, *inputs.shape[1:])).astype(np.float32)
    inputs = (0.5 * inputs + 0.5 * means[labels]).astype(np.float32)
    wrong = generator.random(labels.shape) < WRONG
    labels = np.where(wrong, generator.integers(0, 10, labels.shape), labels).astype(np.int32)
    return inputs, labels


def save(path: pathlib.Path, task: Task) -> None:
    """Write a task."""
    path.parent.mkdir(parents=True, exist_ok=True)
    params = {f"param:{name}": value for name, value in task.params.items()}
    meta = {"kind": np.asarray(task.kind), "heads": np.asarray(task.heads)}
    np.savez(path, inputs=task.inputs, labels=task.labels, **meta, **params)


def read(path: pathlib.Path) -> Task:
    """Read a task."""
    with np.load(path) as file:
        params = {n.removeprefix("param:"): file[n] for n in file.files if n.startswith("param:")}
        kind, heads = str(file["kind"]), int(file["heads"])
        return Task(kind, heads, params, file["inputs"], file["labels"])


def num_params(task: Task) -> int:
    """The number of params."""
    return sum(value.size for value in task.params.values())
