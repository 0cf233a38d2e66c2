"""Meshes with Auto axes, and arrays put in place on them."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Axis = str | tuple[str, ...]


def make_mesh(
    shape: int | Mapping[str, int] | None = None, *, devices: Iterable[jax.Device] | None = None
) -> Mesh:
    """A mesh with Auto axes over the devices of all processes.

    ``jax.make_mesh`` makes Explicit axes unless it is told otherwise; under these, per-example
    gradients and micro-batches of most models do not trace.

    Args:
      shape: the number of devices along the axis ``"data"``, or the sizes of named axes in order;
        one of them may be -1, the rest. ``None``: all devices along ``"data"``.
      devices: the devices; by default the first ones of ``jax.devices()`` that are needed.

    Returns:
      The mesh.

    Raises:
      ValueError: if there are too few devices, or they cannot be divided.

    Example:
      >>> from flatjax import parallel
      >>> dict(parallel.make_mesh(1).shape)
      {'data': 1}
      >>> import jax
      >>> parallel.make_mesh({"data": 1, "model": -1}, devices=jax.devices()[:1]).axis_names
      ('data', 'model')
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": len(devices)} if shape is None else shape
    sizes = dict(sizes) if isinstance(sizes, Mapping) else {"data": sizes}
    known = math.prod(size for size in sizes.values() if size != -1)
    unknown = [name for name, size in sizes.items() if size == -1]
    if len(unknown) > 1 or known < 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"mesh sizes must be positive, at most one of them -1, got {sizes}.")
    if unknown:
        if len(devices) % known:
            raise ValueError(f"{len(devices)} devices do not divide into {sizes}.")
        sizes[unknown[0]] = len(devices) // known
    count = math.prod(sizes.values())
    if count > len(devices):
        raise ValueError(
            f"a mesh of {sizes} needs {count} devices and there are {len(devices)}. On a CPU make "
            'more with jax.config.update("jax_num_cpu_devices", n) before the first computation.'
        )
    auto = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=auto, devices=devices[:count]
    )


def auto(mesh: Any, axis_name: Axis = ()) -> Mesh:
    """The mesh with Auto axes, or a clear error if it lacks an axis."""
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {type(mesh).__name__}.")
    for name in _names(axis_name):
        if name not in mesh.axis_names:
            raise ValueError(f"the mesh has axes {mesh.axis_names} and no {name!r}.")
    if all(kind == AxisType.Auto for kind in mesh.axis_types):
        return mesh
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def _names(axis_name):
    return axis_name if isinstance(axis_name, tuple) else (axis_name,)


def axis_size(mesh: Any, axis_name: Axis) -> int:
    """The number of devices along the named axes."""
    return math.prod(mesh.shape[name] for name in _names(axis_name))


def num_processes(sharding: NamedSharding) -> int:
    """Over how many processes the leading axis is split."""
    rows = (axis_size(sharding.mesh, sharding.spec[0]),)
    starts = {i[0].start for i in sharding.devices_indices_map(rows).values() if i}
    mine = {i[0].start for i in sharding.addressable_devices_indices_map(rows).values() if i}
    return len(starts) // max(len(mine), 1)


def is_placed(a: Any, sharding: NamedSharding) -> bool:
    """Whether an array is global already, split as ``sharding`` says."""
    return isinstance(a, jax.Array) and a.sharding.is_equivalent_to(sharding, a.ndim)


def place(a: Any, sharding: NamedSharding) -> jax.Array:
    """A global array of an array that is the same on every process."""
    if sharding.is_fully_addressable or is_placed(a, sharding):
        return jax.device_put(a, sharding)
    if isinstance(a, jax.Array):
        if not a.is_fully_addressable:
            return jax.device_put(a, sharding)
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            data = jax.random.key_data(a)
            spec = PartitionSpec(*sharding.spec, *(None,) * (data.ndim - len(sharding.spec)))
            data = place(data, NamedSharding(sharding.mesh, spec))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(a))
    a = np.asarray(a)
    return jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])
