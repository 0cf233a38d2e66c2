"""Tiny networks of every kind, with the rules of their symmetries; weights drawn by NumPy.

Drawing them by JAX would compile a program for every shape.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import flatjax


class Case(NamedTuple):
    model_fn: Callable[..., Any]
    params: Any
    rules: dict[str, Any]
    inputs: Any
    sizes: dict[str, int] | None = None

    @property
    def spec(self):
        return flatjax.spec_of(self.params, self.rules, sizes=self.sizes)


def drawn(tree, seed=0, dtype=np.float32):
    """A tree of normal numbers of these shapes; variances, by their name, are positive."""
    rng = np.random.default_rng(seed)

    def leaf(path, a):
        values = rng.normal(size=a.shape)
        return (np.abs(values) + 0.5 if "var" in jax.tree_util.keystr(path) else values).astype(
            dtype
        )

    return jax.tree_util.tree_map_with_path(leaf, tree)


def linen(module, inputs, rules, sizes=None, seed=0):
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)
    params = drawn(dict(shapes), seed)
    return Case(lambda tree, x: module.apply(tree, x), params, rules, inputs, sizes)


def mlp(hidden=(6, 5), dtype=np.float32, seed=0):
    """Two hidden layers, as plain arrays."""
    sizes = (4, *hidden, 3)
    shapes = {
        f"layer_{i}": {
            "kernel": jax.ShapeDtypeStruct((m, n), dtype),
            "bias": jax.ShapeDtypeStruct((n,), dtype),
        }
        for i, (m, n) in enumerate(itertools.pairwise(sizes))
    }

    def model_fn(params, x):
        for i in range(len(params)):
            x = x @ params[f"layer_{i}"]["kernel"] + params[f"layer_{i}"]["bias"]
            x = jnp.tanh(x) if i < len(params) - 1 else x
        return x

    last = len(hidden)
    rules: dict[str, Any] = {}
    for i in range(last + 1):
        before, after = f"h{i - 1}" if i else None, f"h{i}" if i < last else None
        rules[f"layer_{i}/kernel"] = before, after
        rules[f"layer_{i}/bias"] = (after,)
    x = np.random.default_rng(1).normal(size=(8, 4)).astype(dtype)
    return Case(model_fn, drawn(shapes, seed, dtype), rules, x)


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (2, 2))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.relu(nn.Conv(5, (2, 2))(x))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def conv_net():
    """Batch norm, and a dense layer on flattened images."""
    rules = {
        "params/Conv_0/kernel": (None, None, None, "c0"),
        r"params/(Conv_0/bias|BatchNorm_0/.*)": ("c0",),
        r"batch_stats/BatchNorm_0/.*": ("c0",),
        "params/Conv_1/kernel": (None, None, "c0", "c1"),
        "params/Conv_1/bias": ("c1",),
        "params/Dense_0/kernel": ((None, "c1"), None),
        "params/Dense_0/bias": None,
    }
    return linen(ConvNet(), images(), rules)


def images(channels=2):
    return np.random.default_rng(2).normal(size=(3, 3, 3, channels)).astype(np.float32)


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6)(x)
        for _ in range(2):
            y = nn.relu(nn.Dense(7)(nn.LayerNorm()(x)))
            x = x + nn.Dense(6)(y)
        return nn.Dense(3)(x)


def residual():
    """One stream, written to twice; the layers by a regular expression, Dense_1 and Dense_3."""
    rules: dict[str, Any] = {
        "params/Dense_0/kernel": (None, "stream"),
        r"params/(Dense_[024]/bias|LayerNorm_\d/.*)": ("stream",),
        r"params/Dense_([13])/kernel": ("stream", r"h\1"),
        r"params/Dense_([13])/bias": (r"h\1",),
        "params/Dense_2/kernel": ("h1", "stream"),
        "params/Dense_4/kernel": ("h3", "stream"),
        r"params/Dense_5/kernel": ("stream", None),
        r"params/Dense_5/bias": None,
    }
    x = np.random.default_rng(3).normal(size=(8, 4)).astype(np.float32)
    return linen(Residual(), x, rules)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(7, 6, name="embed")
        x = embed(tokens)
        x = x + nn.MultiHeadDotProductAttention(2, qkv_features=8, deterministic=True, name="att")(
            nn.LayerNorm()(x)
        )
        return embed.attend(x)


def attention():
    """Heads and their units, and an embedding that is tied to the last layer."""
    inner = {"query": "qk", "key": "qk", "value": "v"}
    rules: dict[str, Any] = {
        "params/embed/embedding": (None, "d"),
        "params/LayerNorm_0/.*": ("d",),
        "params/att/out/kernel": ("heads", "heads/v", "d"),
        "params/att/out/bias": ("d",),
    }
    for name, units in inner.items():
        rules[f"params/att/{name}/kernel"] = ("d", "heads", f"heads/{units}")
        rules[f"params/att/{name}/bias"] = ("heads", f"heads/{units}")
    tokens = np.random.default_rng(4).integers(0, 7, size=(3, 5))
    return linen(Attention(), tokens, rules)


class Grouped(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (1, 1))(x))
        x = nn.relu(nn.Conv(8, (2, 2), feature_group_count=2)(x))
        return nn.Dense(3)(x.mean((1, 2)))


def grouped():
    """A convolution of two groups, each from 3 channels to 4."""
    rules = {
        "params/Conv_0/kernel": (None, None, None, ("g", "g/in")),
        "params/Conv_0/bias": (("g", "g/in"),),
        "params/Conv_1/kernel": (None, None, "g/in", ("g", "g/out")),
        "params/Conv_1/bias": (("g", "g/out"),),
        "params/Dense_0/kernel": (("g", "g/out"), None),
        "params/Dense_0/bias": None,
    }
    return linen(Grouped(), images(3), rules, {"g": 2})


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Dense(6, name="in")(x)
        again = nn.Dense(6, name="again")
        for _ in range(2):
            h = jnp.tanh(again(h))
        return nn.Dense(3, name="out")(h)


def recurrent():
    """A leaf with one group on both axes."""
    rules = {
        "params/in/kernel": (None, "h"),
        "params/(in|again)/bias": ("h",),
        "params/again/kernel": ("h", "h"),
        "params/out/kernel": ("h", None),
        "params/out/bias": None,
    }
    return linen(Recurrent(), np.random.default_rng(5).normal(size=(8, 4)), rules)


def of_nnx():
    """A state of nnx: paths end in ``value``."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)])

        def __call__(self, x):
            return self.layers[1](jnp.tanh(self.layers[0](x)))

    graph, state = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(0))), nnx.Param)
    rules = {
        "layers/0/kernel/value": (None, "h"),
        "layers/0/bias/value": ("h",),
        "layers/1/kernel/value": ("h", None),
        "layers/1/bias/value": None,
    }
    x = np.random.default_rng(6).normal(size=(8, 4)).astype(np.float32)
    return Case(lambda s, x: nnx.merge(graph, s)(x), drawn(state), rules, x)


def of_equinox():
    """A module of equinox: attributes and indices; kernels are (outputs, inputs)."""
    made = eqx.filter_eval_shape(eqx.nn.MLP, 4, 3, 6, 1, key=jax.random.key(0))
    params, static = eqx.partition(made, lambda a: isinstance(a, jax.ShapeDtypeStruct))
    rules = {
        "layers/0/weight": ("h", None),
        "layers/0/bias": ("h",),
        "layers/1/weight": (None, "h"),
        "layers/1/bias": None,
    }
    x = np.random.default_rng(7).normal(size=(8, 4)).astype(np.float32)
    return Case(lambda p, x: jax.vmap(eqx.combine(p, static))(x), drawn(params), rules, x)


CASES = {
    "mlp": mlp,
    "conv_net": conv_net,
    "residual": residual,
    "attention": attention,
    "grouped": grouped,
    "recurrent": recurrent,
    "nnx": of_nnx,
    "equinox": of_equinox,
}
