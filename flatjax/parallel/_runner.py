"""A function of params and batches, run over the devices of a mesh."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flatjax import _checks as checks
from flatjax.parallel import _batches as bat
from flatjax.parallel import _meshes as meshes

Mode = Literal["jit", "eager", "shard_map"]


def data_parallel(
    fn: Callable[..., Any],
    mesh: Mesh,
    *,
    batch_argnums: int | tuple[int, ...] = 1,
    weights: str | None = None,
    mode: Mode = "jit",
    axis_name: meshes.Axis = "data",
    out_specs: Any = None,
    check_vma: bool = True,
) -> Callable[..., Any]:
    """Run a function of params and batches over the devices of a mesh.

    The batches among its arguments are split over the mesh, all other arrays that are not on the
    mesh yet are replicated, and ``fn`` is called

    - ``mode="jit"``: compiled as a whole, in global view: ``fn`` is written as for one device.
      Params sharded by [`shard_params`][] stay so.
    - ``mode="eager"``: the same without compiling the whole, so that an estimator stops when it has
      converged and solves its small problems in float64 on the host.
    - ``mode="shard_map"``: on each device with its part of the batch. ``fn`` passes
      ``axis_name=`` on to operators and transforms, which hand out global answers. For functions
      with their own collectives.

    Args:
      fn: ``fn(params, batch, ...)``, a function of arrays.
      mesh: the mesh; its Explicit axes are taken as Auto ones.
      batch_argnums: the arguments to split; they share a leading axis.
      weights: the keyword under which ``fn`` takes per-example weights. It then gets weights that
        are zero for padding; without it the batch must divide over the devices.
      mode: see above.
      axis_name: the mesh axis, or a tuple of them.
      out_specs: for ``"shard_map"``, how the results are put together; default replicated.
      check_vma: for ``"shard_map"``, whether JAX checks that replicated results are so.

    Returns:
      A function of the same arguments. Batches are this process's own (see [`shard_batch`][]), or
      already placed.

    Raises:
      ValueError: for an unknown mode or axis, or, when called, a batch that does not divide.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> from flatjax import parallel
      >>> def loss_fn(w, x):
      ...     return 0.5 * (x @ w) ** 2
      >>> def top(w, x, weights):
      ...     H = flatjax.hessian(loss_fn, w, x, weights=weights, axis_name="data")
      ...     return H.mv(jnp.array([0.0, 1.0]))
      >>> mesh = parallel.make_mesh(1)
      >>> run = parallel.data_parallel(top, mesh, weights="weights", mode="shard_map")
      >>> run(jnp.zeros(2), jnp.array([[1.0, 0.0], [0.0, 2.0]])).tolist()
      [0.0, 2.0]
    """
    checks.check_choice("mode", mode, ("jit", "eager", "shard_map"))
    argnums = (batch_argnums,) if isinstance(batch_argnums, int) else tuple(batch_argnums)
    auto, parts = meshes.auto(mesh, axis_name), meshes.axis_size(mesh, axis_name)

    def called(batches, mask, rest, kwargs):
        args = list(rest)
        for place, batch in sorted(zip(argnums, batches, strict=True), key=lambda pair: pair[0]):
            args.insert(place, batch)
        return fn(*args, **(kwargs if weights is None else {**kwargs, weights: mask}))

    run = called
    if mode == "shard_map":
        split, whole = PartitionSpec(axis_name), PartitionSpec()
        run = jax.shard_map(
            called,
            mesh=auto,
            in_specs=(split, split, whole, whole),
            out_specs=whole if out_specs is None else out_specs,
            check_vma=check_vma,
        )
    if mode != "eager":
        run = jax.jit(run)

    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        if max(argnums) >= len(args):
            raise TypeError(f"batch_argnums={batch_argnums}, but {len(args)} arguments were given.")
        given = None if weights is None else kwargs.pop(weights, None)
        sharded, padded = bat.shard_with_flag(
            tuple(args[i] for i in argnums), mesh, axis_name, given
        )
        if padded and weights is None:
            raise ValueError(
                f"the examples do not divide over {parts} devices: let fn take per-example weights "
                'and name their keyword, data_parallel(fn, mesh, weights="weights").'
            )
        rest = [a for i, a in enumerate(args) if i not in argnums]
        rest, kwargs = jax.tree.map(lambda a: _on_mesh(a, auto, mode), (rest, kwargs))
        return run(sharded.batch, sharded.weights, rest, kwargs)

    return wrapper


def _on_mesh(a, mesh, mode):
    """An argument on the devices of the mesh: where it is there already, as it is placed."""
    if not isinstance(a, (jax.Array, np.ndarray)):
        return a
    whole = NamedSharding(mesh, PartitionSpec())
    if not isinstance(a, jax.Array) or a.sharding.device_set != whole.device_set:
        return meshes.place(a, whole)
    if mode == "shard_map" and not a.sharding.is_fully_replicated:
        raise ValueError(
            'mode="shard_map" replicates the params, and these are sharded: use mode="jit".'
        )
    if isinstance(a.sharding, NamedSharding):
        return jax.device_put(a, NamedSharding(meshes.auto(a.sharding.mesh), a.sharding.spec))
    return a
