"""Layers in a scan, their activations recomputed, batches in parts: the model's business alone."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.flatten_util import ravel_pytree

from tests.models import NETWORKS, affine
from tests.operators import references

LAYERS, WIDTH = 3, 2


def attention(x, layer):
    """A block with a residual connection, of one head and an MLP."""
    q, k, v = (x @ layer[name] for name in ("query", "key", "value"))
    mixed = jax.nn.softmax(jnp.einsum("nid,njd->nij", q, k))
    x = x + jnp.einsum("nij,njd->nid", mixed, v)
    return x + jnp.tanh(x @ layer["mlp"])


def in_a_row(block, params, x):
    """The blocks one after the other."""
    for i in range(LAYERS):
        x = block(x, {name: a[i] for name, a in params["layers"].items()})
    return affine(params["out"], x)


def scanned(block, params, x):
    """The blocks in a scan over their stacked params."""
    x = jax.lax.scan(lambda x, layer: (block(x, layer), None), x, params["layers"])[0]
    return affine(params["out"], x)


FORMS = {
    "in a row": (in_a_row, attention, None),
    "scan of remat, in parts": (scanned, jax.checkpoint(attention), 3),
    "scan": (scanned, attention, None),
    "scan of remat that keeps products": (
        scanned,
        jax.checkpoint(attention, policy=jax.checkpoint_policies.dots_saveable),
        None,
    ),
    "remat in a row": (in_a_row, jax.checkpoint(attention), None),
}


def problem():
    _, batch = NETWORKS["attention"].cast()
    keys = jax.random.split(jax.random.key(0), 6)
    names = ("query", "key", "value", "mlp")
    layers = {
        name: jax.random.normal(key, (LAYERS, WIDTH, WIDTH), jnp.float64)
        for name, key in zip(names, keys, strict=False)
    }
    kernel = jax.random.normal(keys[4], (WIDTH, 3), jnp.float64)
    params = {"layers": layers, "out": {"kernel": kernel, "bias": jnp.ones(3)}}
    return (
        params,
        batch,
        jax.tree.map(lambda a: jax.random.normal(keys[5], a.shape, a.dtype), params),
    )


@functools.cache
def products(form):
    """Every operator's product, plain and linearised, by kind."""
    network, block, size = FORMS[form]
    apply = functools.partial(network, block)

    def all_kinds(params, batch, v):
        found = {}
        for kind in references.OPERATORS:
            op = references.make(kind, apply, params, batch, chunk_size=size)
            found[kind] = [op.mv(v), op.linearize().mv(v)] if size is None else [op.mv(v)] * 2
        return found

    return jax.jit(all_kinds)(*problem())


SLOW = [pytest.param(form, marks=pytest.mark.slow) for form in list(FORMS)[2:]]


@pytest.mark.parametrize("form", ["scan of remat, in parts", *SLOW])
def test_every_operator(form, x64):
    wanted, found = products("in a row"), products(form)
    for kind, pair in found.items():
        for a, b in zip(pair, wanted[kind], strict=True):
            # Sums of some hundred terms of order one, in another order.
            references.assert_close(ravel_pytree(a)[0], ravel_pytree(b)[0], 1e-12)
