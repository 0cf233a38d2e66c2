"""In float32 a deep network over four devices agrees with one to 1e-4, padding included.

The other tests of this room compare float64 numbers to 1e-10, which would not show sums that a
deep network amplifies: here are products, estimators and transforms of 14 layers in the dtype that
people train in.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
import flatjax.transforms as ft
from flatjax import _collectives as collectives
from tests.parallel.problems import RUNNERS, assert_close, one_device, over_devices, vector

LOSS = flatjax.softmax_cross_entropy
LAYERS, WIDTH, CLASSES = 14, 4, 3
KEY = jax.random.key(0)


def network(examples):
    """Params of orthogonal layers, whose gradients neither vanish nor explode, and a batch."""
    rng = np.random.default_rng(3)
    kernels = [np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0] for _ in range(LAYERS - 1)]
    params = [
        {"kernel": jnp.float32(1.2 * k), "bias": jnp.float32(0.1 * rng.normal(size=WIDTH))}
        for k in kernels
    ]
    head = {"kernel": jnp.float32(rng.normal(size=(WIDTH, CLASSES))), "bias": jnp.zeros(CLASSES)}
    inputs = jnp.float32(rng.normal(size=(examples, WIDTH)))
    return [*params, head], (inputs, jnp.asarray(rng.integers(0, CLASSES, examples)))


def model_fn(params, x):
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def loss_fn(params, batch):
    """Per-example losses."""
    return LOSS(model_fn(params, batch[0]), batch[1])


def products(params, batch, weights, axis_name):
    options = {"weights": weights, "axis_name": axis_name}
    H = flatjax.hessian(loss_fn, params, batch, **options)
    operators = {
        "hessian": H,
        "ggn": flatjax.ggn(model_fn, LOSS, params, batch, **options),
        "fisher": flatjax.fisher(model_fn, LOSS, params, batch, kind="sampled", key=KEY, **options),
        "covariance": flatjax.gradient_covariance(loss_fn, params, batch, **options),
    }
    v = vector(params)
    return {name: op.mv(v) for name, op in operators.items()}


def estimates(params, batch, weights, axis_name):
    options = {"weights": weights, "axis_name": axis_name}
    H = flatjax.hessian(loss_fn, params, batch, **options)
    G = flatjax.ggn(model_fn, LOSS, params, batch, **options)
    return {
        "top": flatjax.eigsh(H, 2, key=KEY, max_products=24).values,
        "trace": flatjax.trace(G, key=KEY, num_products=4).value,
    }


def updates(params, batch, weights, axis_name):
    """Of batches that divide: a transform takes the user's own gradients, which know of padding."""
    del weights
    local = collectives.varying(params, axis_name)
    grad_fn = lambda p: jax.grad(lambda p: loss_fn(p, batch).mean())(p)  # noqa: E731
    transforms = {
        "sam": ft.sam(0.3, axis_name=axis_name),
        "fisher_penalty": ft.fisher_penalty(model_fn, LOSS, coef=0.3, axis_name=axis_name),
    }
    g = grad_fn(local)
    return {
        name: tx.update(g, tx.init(params), params, grad_fn=grad_fn, batch=batch)[0]
        for name, tx in transforms.items()
    }


CHAINS = {"products": (products, 10), "estimates": (estimates, 10), "updates": (updates, 12)}
CASES = [(name, runner) for name in CHAINS for runner in RUNNERS if runner != "eager"]
FAST = [("products", "shard_map")]


@pytest.fixture(scope="module")
def references():
    """What one device gives, computed when it is asked for."""
    found = {}

    def reference(name):
        if name not in found:
            chain, examples = CHAINS[name]
            found[name] = one_device(chain, *network(examples))
        return found[name]

    return reference


@pytest.mark.parametrize(
    ("name", "runner"),
    [c if c in FAST else pytest.param(*c, marks=pytest.mark.slow) for c in CASES],
)
def test_float32_of_a_deep_network(name, runner, references):
    """1e-4 of the largest entry of every layer: a thousand roundings of float32."""
    chain, examples = CHAINS[name]
    found = over_devices(runner, chain, *network(examples))
    leaves = jax.tree.leaves(found)
    assert all(a.dtype == np.float32 for a in leaves)
    assert min(float(np.abs(a).max()) for a in leaves) > 1e-6  # nothing has vanished
    assert_close(found, references(name), 1e-4)
