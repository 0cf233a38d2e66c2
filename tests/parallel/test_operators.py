"""Products over four devices are those of one, padding included.

tests/operators has the same of each operator on batches that divide; here the batch is padded.
"""

import jax
import jax.numpy as jnp
import pytest

import flatjax
from flatjax.operators._precondition import preconditioned
from tests.parallel.problems import (
    RUNNERS,
    assert_close,
    loss_fn,
    mlp,
    model_fn,
    one_device,
    over_devices,
    vector,
)

LOSS = flatjax.softmax_cross_entropy


def operators(params, batch, weights, axis_name):
    """Every operator over a batch, by name."""
    options = {"weights": weights, "axis_name": axis_name}
    key = jax.random.key(0)
    H = flatjax.hessian(loss_fn, params, batch, **options)
    G = flatjax.ggn(model_fn, LOSS, params, batch, **options)
    diagonal = jax.tree.map(lambda a: 1 + jnp.abs(a), params)
    return {
        "hessian": H,
        "ggn": G,
        "fisher exact": flatjax.fisher(model_fn, LOSS, params, batch, **options),
        "fisher sampled": flatjax.fisher(
            model_fn, LOSS, params, batch, kind="sampled", key=key, num_samples=2, **options
        ),
        "fisher empirical": flatjax.fisher(
            model_fn, LOSS, params, batch, kind="empirical", **options
        ),
        "covariance": flatjax.gradient_covariance(loss_fn, params, batch, **options),
        "second moment": flatjax.gradient_covariance(
            loss_fn, params, batch, centered=False, **options
        ),
        "preconditioned": preconditioned(H, diagonal),
        "sum": H - 0.5 * G,
    }


def products(params, batch, weights, axis_name):
    v = vector(params)
    ops = operators(params, batch, weights, axis_name)
    return {name: op.mv(v) for name, op in ops.items()}


def linearized(params, batch, weights, axis_name):
    v = vector(params)
    ops = operators(params, batch, weights, axis_name)
    kept = {name: ops[name].linearize() for name in ("hessian", "ggn", "covariance")}
    return {name: op.mv(v) for name, op in kept.items()}


@pytest.fixture(scope="module")
def references():
    with jax.enable_x64(True):
        params, batch = mlp()
        return one_device(products, params, batch), one_device(linearized, params, batch)


def runners(*fast):
    slow = pytest.mark.slow
    return [r if r in fast else pytest.param(r, marks=slow) for r in RUNNERS]


@pytest.mark.parametrize("runner", runners("auto", "shard_map", "pmap"))
def test_products(runner, x64, references):
    """1e-10: float64 sums in another order."""
    actual = over_devices(runner, products, *mlp())
    assert_close(actual, references[0], 1e-10)


@pytest.mark.parametrize("runner", runners("shard_map"))
def test_linearized_products(runner, x64, references):
    actual = over_devices(runner, linearized, *mlp())
    assert_close(actual, references[1], 1e-10)
