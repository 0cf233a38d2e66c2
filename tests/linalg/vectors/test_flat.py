"""Packed vectors: the same numbers, where packing is right, and fewer programs of fewer parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flatjax
from flatjax.linalg.vectors import _flat as packing

KEY = jax.random.key(0)


def losses_fn(params, x):
    return (jnp.tanh(x @ params["a"]).sum(axis=1) * params["c"] + x @ params["b"]) ** 2


@pytest.fixture(scope="module")
def op():
    k = jax.random.split(KEY, 3)
    params = {
        "a": jax.random.normal(k[0], (4, 5)),
        "b": jax.random.normal(k[1], (4,)),
        "c": jnp.float32(0.5),
    }
    return flatjax.hessian(losses_fn, params, jax.random.normal(k[2], (32, 4)))


def test_products_and_round_trips(op):
    packed = packing.packed(op)
    assert [(a.shape, a.dtype) for a in packed.structure] == [((25,), jnp.float32)]
    v = op.params
    flat = packing.pack(packed, v)
    np.testing.assert_array_equal(
        flat[0], jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(v)])
    )
    jax.tree.map(np.testing.assert_array_equal, packing.unpack(packed, flat), v)
    # Another fusion, another order of the sums: a few units of rounding.
    got = packing.unpack(packed, packed @ flat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, op @ v)
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), v)
    again = packing.unpack(packed, packing.pack(packed, stacked))
    jax.tree.map(np.testing.assert_array_equal, again, stacked)


def test_one_array_a_dtype():
    with jax.enable_x64(True):
        params = {
            "a": jnp.ones(3, jnp.float64),
            "b": jnp.ones((2, 2), jnp.float32),
            "c": jnp.ones(2),
        }
        op = flatjax.hessian(lambda p, x: (p["a"].sum() * x) ** 2, params, jnp.ones(4))
        packed = packing.packed(op)
        assert [a.shape for a in packed.structure] == [(5,), (4,)]
        jax.tree.map(
            np.testing.assert_array_equal,
            packing.unpack(packed, packing.pack(packed, params)),
            params,
        )


def test_sharded_and_traced_operators_are_left_alone(op):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(jnp.ones((8, 5)), NamedSharding(mesh, PartitionSpec("model")))
    params = {"a": sharded, "b": jnp.ones(8)}
    other = flatjax.hessian(lambda p, x: x @ p["a"] @ jnp.ones(5), params, jnp.ones((2, 8)))
    assert packing.packed(other) is other
    seen = []

    def look(op):
        seen.append(packing.packed(op) is op)
        return jnp.zeros(())

    jax.jit(look)(op)
    one_leaf = flatjax.hessian(lambda w, x: x @ w**2, jnp.ones(3), jnp.ones((2, 3)))
    seen.append(packing.packed(one_leaf) is one_leaf)
    assert seen == [True, True]


def test_more_numbers_than_an_int32_counts_stay_apart():
    def packed(*sizes):
        structure = [jax.ShapeDtypeStruct((n,), jnp.float32) for n in sizes]
        op = flatjax.operators.as_operator(lambda v: v, structure)
        return packing.packed(op) is not op

    assert packed(2**31 - 2, 1)
    assert not packed(2**31 - 2, 2)


def test_pairs_are_those_of_the_unpacked_run(op):
    found = flatjax.eigsh(op, 3, key=KEY)
    traced = jax.jit(lambda op: flatjax.eigsh(op, 3, key=KEY))(op)
    assert jax.tree.structure(found.vectors) == jax.tree.structure(op.params)
    np.testing.assert_allclose(found.values, traced.values, rtol=1e-4)  # converged to 1e-3 of gaps
    given = flatjax.eigsh(op, 3, v0=op.params)
    np.testing.assert_allclose(given.values, found.values, rtol=1e-4)


def test_a_spectrum_goes_on_from_a_state_of_either_kind(op):
    plain = flatjax.spectrum(op, key=KEY, k=2, num_bottom=1, num_steps=8, by="leaf")
    packed = flatjax.spectrum(op, key=KEY, k=2, num_bottom=1, num_steps=8)
    np.testing.assert_allclose(plain.top.values, packed.top.values, rtol=1e-4)
    for state, options in ((plain.state, {}), (packed.state, {"by": "leaf"})):
        longer = flatjax.spectrum(
            op, key=KEY, k=2, num_bottom=1, num_steps=25, resume=state, **options
        )
        exact = np.linalg.eigvalsh(np.asarray(op.to_dense(), np.float64))
        np.testing.assert_allclose(longer.top.values, exact[::-1][:2], rtol=1e-4)
