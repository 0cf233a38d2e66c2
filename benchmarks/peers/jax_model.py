"""A task as a JAX function, for the systems on JAX."""

import functools

import jax
import jax.numpy as jnp

from benchmarks import _networks
from benchmarks.peers.adapter import Task


def model_of(task: Task):
    """``(model_fn, params, batch)`` of a task, params a pytree."""
    params: dict = {}
    for name, value in task.params.items():
        *path, last = name.split(".")
        node = params
        for key in path:
            node = node.setdefault(key, {})
        node[last] = jnp.asarray(value)
    model_fn = {
        "mlp": _networks.mlp_model,
        "cnn": _networks.cnn_model,
        "transformer": functools.partial(_networks.transformer_model, heads=task.heads),
    }[task.kind]
    return model_fn, _lists(params), (jnp.asarray(task.inputs), jnp.asarray(task.labels))


def mean_loss(model_fn, params, batch):
    """The mean cross-entropy over examples and tokens."""
    logits = model_fn(params, batch[0])
    chosen = jnp.take_along_axis(logits, batch[1][..., None], axis=-1)[..., 0]
    return (jax.nn.logsumexp(logits, axis=-1) - chosen).mean()


def _lists(node):
    """Dictionaries with the keys 0, 1, ... are lists."""
    if not isinstance(node, dict):
        return node
    if all(key.isdigit() for key in node):
        return [_lists(node[str(i)]) for i in range(len(node))]
    return {key: _lists(value) for key, value in node.items()}
