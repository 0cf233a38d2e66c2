"""Sharded params through orbax: restored to as many devices, to fewer, and to one."""

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from flatjax import parallel

PARAMS = {"kernel": np.arange(96.0, dtype=np.float32).reshape(8, 12), "bias": np.ones(3, "f4")}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saved from params that are split over four devices."""
    folder = tmp_path_factory.mktemp("orbax") / "params"
    params = parallel.shard_params(PARAMS, parallel.make_mesh(4), min_size=8)
    assert params["kernel"].sharding.spec == jax.P(None, "data")
    ocp.save(folder, params)
    return folder


@pytest.mark.parametrize("devices", [4, 2, 1])
def test_params_are_restored_to_another_number_of_devices(saved, devices):
    mesh = parallel.make_mesh(devices)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), PARAMS)
    layout = parallel.param_shardings(shapes, mesh, min_size=8)
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, layout
    )
    params = ocp.load(saved, abstract)
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
    assert params["kernel"].sharding == layout["kernel"]
    assert len(params["kernel"].addressable_shards) == devices
    assert params["kernel"].addressable_shards[0].data.size == PARAMS["kernel"].size // devices
