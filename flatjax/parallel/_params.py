"""Params replicated over a mesh, or sharded over one of its axes."""

import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flatjax._trees import Tree
from flatjax.parallel import _meshes as meshes


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """A copy of every array on every device of the mesh.

    Args:
      tree: a pytree of arrays, the same on every process.
      mesh: the mesh.

    Returns:
      The tree as global arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import parallel
      >>> parallel.replicate(jnp.ones(2), parallel.make_mesh(1)).sharding.is_fully_replicated
      True
    """
    sharding = NamedSharding(meshes.auto(mesh), PartitionSpec())
    return jax.tree.map(lambda a: meshes.place(a, sharding), tree)


def param_shardings(
    params: Tree, mesh: Mesh, *, axis_name: meshes.Axis = "data", min_size: int = 1024
) -> Tree:
    """How [`shard_params`][] places each array.

    Args:
      params: a pytree of arrays or ``jax.ShapeDtypeStruct``.
      mesh: the mesh.
      axis_name: the mesh axis, or a tuple of them.
      min_size: arrays of fewer entries are replicated.

    Returns:
      A tree of ``NamedSharding``, for ``jax.jit(init, out_shardings=...)`` or a checkpoint's
      abstract tree.

    Raises:
      ValueError: for an unknown axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import parallel
      >>> mesh = parallel.make_mesh(1)
      >>> parallel.param_shardings(jnp.ones((3, 7)), mesh, min_size=0).spec
      P(None, 'data')
    """
    mesh, parts = meshes.auto(mesh, axis_name), meshes.axis_size(mesh, axis_name)

    def sharding(a):
        best = None
        for axis, length in enumerate(a.shape):
            if length % parts == 0 and (best is None or length > a.shape[best]):
                best = axis
        if best is None or math.prod(a.shape) < min_size or 0 in a.shape:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, PartitionSpec(*(None,) * best, axis_name))

    return jax.tree.map(sharding, params)


def shard_params(
    params: Tree, mesh: Mesh, *, axis_name: meshes.Axis = "data", min_size: int = 1024
) -> Tree:
    """Split every array over a mesh axis along its largest axis that divides (FSDP).

    Fully sharded data parallelism (Rajbhandari et al. 2020, arXiv:1910.02054): a device holds its
    part of the params, of every vector and of every Krylov basis, and the compiler gathers one
    layer at a time while it is used. Batches are split over the same axis.

    Args:
      params: a pytree of arrays, the same on every process.
      mesh: the mesh.
      axis_name: the mesh axis, or a tuple of them.
      min_size: arrays of fewer entries are replicated: gathering them costs more than they hold.

    Returns:
      The tree as global arrays.

    Raises:
      ValueError: for an unknown axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import parallel
      >>> mesh = parallel.make_mesh(1)
      >>> params = {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}
      >>> placed = parallel.shard_params(params, mesh)
      >>> placed["kernel"].sharding.spec, placed["bias"].sharding.spec
      (P('data',), P())
    """
    shardings = param_shardings(params, mesh, axis_name=axis_name, min_size=min_size)
    return jax.tree.map(meshes.place, params, shardings)
