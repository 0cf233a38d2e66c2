"""The same answers under jit, vmap, shard_map and pmap, and on device loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from flatjax import _collectives as collectives
from flatjax import loops
from flatjax.linalg import eigsh, trace
from tests.problems import spectra, zoo

KEY = jax.random.key(0)
P = PartitionSpec


@pytest.mark.parametrize("which", ["LA", "BE", "LM"])
def test_jit(which):
    p = zoo("network")

    @jax.jit
    def traced(op):
        return eigsh(op, 3, which=which, key=KEY, structure=p.structure, max_products=64)

    found = traced(p.op)
    np.testing.assert_allclose(found.values, p.wanted(3, which), atol=1e-4)
    assert np.asarray(found.converged).all()
    assert np.asarray(found.resolved).all()
    assert int(found.num_products) == 64


def test_jit_says_what_has_not_converged():
    p = zoo("network")
    found = jax.jit(
        lambda op: eigsh(op, 3, key=KEY, structure=p.structure, max_products=9, tol=1e-5)
    )(p.op)
    assert not np.asarray(found.converged).all()
    assert int(found.num_products) == 9


def test_vmap_over_a_value_that_the_operator_closes_over():
    d = jnp.asarray(spectra()["network"], jnp.float32)

    def top(scale):
        return eigsh(lambda v: scale * d * v, 2, which="LM", key=KEY, structure=d).values

    found = jax.vmap(top)(jnp.array([1.0, -3.0]))
    expected = np.sort(np.asarray(d, float))[::-1][:2]
    np.testing.assert_allclose(found, [expected, -3 * expected[::-1]], rtol=1e-4)


def test_device_loops():
    p = zoo("network")
    with loops.device():
        found = eigsh(p.op, 3, key=KEY, structure=p.structure)
    np.testing.assert_allclose(found.values, p.spectrum[:3], rtol=1e-4)


ROWS = np.random.default_rng(0).standard_normal((32, 20)).astype(np.float32)
COVARIANCE = ROWS.T.astype(float) @ ROWS / 32


def over_devices(rows, axis_name):
    """The product with a matrix whose rows lie on several devices."""

    def op(v):
        v = collectives.varying(v, axis_name)
        local = jnp.matmul(rows.T, jnp.matmul(rows, v, precision="highest"), precision="highest")
        return lax.psum(local, axis_name) / 32

    return op


def estimates(rows, axis_name):
    """Its top pairs and its trace."""
    op, like = over_devices(rows, axis_name), jnp.zeros(20)
    pairs = eigsh(op, 2, key=KEY, structure=like)
    total = trace(op, key=KEY, structure=like, num_products=12)
    return pairs.values, pairs.converged, total.value, total.standard_error


def assert_right(values, converged, total, error):
    np.testing.assert_allclose(values, np.linalg.eigvalsh(COVARIANCE)[::-1][:2], rtol=1e-5)
    assert np.asarray(converged).all()
    assert abs(float(total) - np.trace(COVARIANCE)) <= 5 * float(error)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(check_vma):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    body = jax.shard_map(
        lambda rows: estimates(rows, "data"),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P(),
        check_vma=check_vma,
    )
    assert_right(*jax.jit(body)(jnp.asarray(ROWS)))


def test_pmap():
    body = jax.pmap(lambda rows: estimates(rows, "data"), axis_name="data")
    out = body(jnp.asarray(ROWS.reshape(4, 8, 20)))
    assert_right(*(np.asarray(a)[0] for a in out))
