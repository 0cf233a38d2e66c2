"""What calls cost: the numbers of products are those of the calls themselves."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax.linalg import _trace
from flatjax.linalg.probing import _missing
from flatjax.preflight._calls import CallCost, calls
from tests.problems import zoo

KEY = jax.random.key(0)
ROOMY = 10_000  # a dimension above all limits


def default(fn, name):
    return inspect.signature(fn).parameters[name].default


def test_the_most_are_those_of_the_defaults():
    cost = calls(ROOMY, None)
    assert cost["trace(op)"][:2] == (_trace._NUM, _trace._NUM)
    density = flatjax.spectral_density
    steps = default(density, "num_steps")
    products = 2 * steps + default(density, "num_probes") * steps
    assert cost["spectral_density(op)"][:2] == (products, products)
    spectrum = flatjax.spectrum
    most = default(spectrum, "max_steps") + 30 * default(spectrum, "num_probes")
    most += default(spectrum, "max_trace_products") + _missing.MOST
    assert cost["spectrum(op)"].max_products == most


@pytest.mark.parametrize("k", [1, 5, 10])
def test_eigsh_stays_within(k):
    p, name = zoo("network", size=600), f"eigsh(op, {k})"
    # Noise in place of an operator: nothing converges, and all products are spent.
    noise = flatjax.operators.as_operator(
        lambda v: jax.tree.map(lambda a: jnp.sin(1e4 * a), v), structure=p.structure
    )
    assert flatjax.eigsh(noise, k, key=KEY).num_products <= calls(600, None)[name].max_products
    usual = flatjax.eigsh(p.op, k, key=KEY, structure=p.structure).num_products
    assert usual / 2 <= calls(600, None)[name].num_products <= 2 * usual


@pytest.mark.parametrize("size", [40, 70])
def test_small_dimensions_are_multiplied_with_every_unit_vector(size):
    d = jnp.linspace(1.0, 2.0, size)
    cost = calls(size, None)
    found = {
        "trace(op)": flatjax.trace(lambda v: d * v, key=KEY, structure=d),
        "spectrum(op)": flatjax.spectrum(lambda v: d * v, key=KEY, structure=d),
    }
    for name, result in found.items():
        assert result.num_products == cost[name].num_products == cost[name].max_products
    assert cost["trace(op)"].num_products == 40
    assert cost["spectrum(op)"][:2] == (size, size)
    assert calls(71, None)["spectrum(op)"].num_products == 72
    assert calls(8, None)["eigsh(op, 10)"].num_products == 9


def test_seconds_are_those_of_the_products():
    assert calls(ROOMY, 0.5)["trace(op)"] == CallCost(40, 40, 20.0, 20.0)
    for cost in calls(ROOMY, 2.0).values():
        np.testing.assert_allclose(cost[2:], 2 * np.asarray(cost[:2]))
    assert calls(ROOMY, None)["trace(op)"].seconds is None
