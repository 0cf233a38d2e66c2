"""Batches split over a mesh axis, padded where they do not divide."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flatjax import _checks as checks
from flatjax import _reading as reading
from flatjax._trees import Tree
from flatjax.operators._arguments import num_examples
from flatjax.parallel import _meshes as meshes


@reading.readable
class ShardedBatch(NamedTuple):
    """A batch on a mesh; made by [`shard_batch`][].

    Attributes:
      batch: global arrays, split along their leading axis, padded with copies of an example.
      weights: one weight an example: the caller's or 1, and 0 for padding. Pass it as ``weights=``.
    """

    batch: Tree
    weights: jax.Array


def shard_batch(
    batch: Tree,
    mesh: Mesh,
    *,
    axis_name: meshes.Axis = "data",
    weights: Any = None,
    rows: int | None = None,
) -> ShardedBatch:
    """Split a batch over a mesh axis, padding what does not divide.

    With the weights, any operator gives the answer of the unpadded batch. Padding is a copy of a
    real example, not zeros: a model may be infinite or NaN at zeros, and 0 * NaN is NaN.

    With several processes every process passes *its own* examples, and the batch is theirs one
    after another, each padded to the longest (the processes agree on it in one small exchange,
    spared by ``rows``).

    Args:
      batch: a pytree of arrays that share a leading axis.
      mesh: the mesh; its Explicit axes are taken as Auto ones.
      axis_name: the mesh axis, or a tuple of them.
      weights: per-example weights or a mask, as operators take them; default 1.
      rows: the number of rows of the global batch: a multiple of the axis. Default: the smallest.
        Name it to give all batches of a data set one shape, so that nothing compiles twice.

    Returns:
      A [`ShardedBatch`][].

    Raises:
      TypeError: under tracing; place batches before ``jit``.
      ValueError: for an empty batch (on all processes), unequal leading axes, an unknown axis, or
        ``rows`` that are too few or do not divide.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> from flatjax import parallel
      >>> mesh = parallel.make_mesh(1)
      >>> batch, weights = parallel.shard_batch(jnp.array([1.0, 2.0, 3.0]), mesh, rows=4)
      >>> batch.tolist(), weights.tolist()
      ([1.0, 2.0, 3.0, 3.0], [1.0, 1.0, 1.0, 0.0])
      >>> H = flatjax.hessian(lambda w, x: x * w**2 / 2, jnp.ones(()), batch, weights=weights)
      >>> float(H @ jnp.ones(()))
      2.0
    """
    return shard_with_flag(batch, mesh, axis_name, weights, rows)[0]


def shard_with_flag(batch, mesh, axis_name, weights=None, rows=None):
    """The sharded batch, and whether any process padded."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((batch, weights))):
        raise TypeError("shard_batch places arrays on devices: call it outside jit.")
    sharding = NamedSharding(meshes.auto(mesh, axis_name), PartitionSpec(axis_name))
    n = num_examples(batch)
    if n is None:
        raise ValueError("shard_batch needs a batch of examples, got one without leaves.")
    if weights is None:
        weights = np.ones(n, np.float32)
    elif np.shape(weights)[:1] != (n,):
        raise ValueError(f"weights must have shape ({n},), got {np.shape(weights)}.")
    if rows in (None, n) and all(meshes.is_placed(a, sharding) for a in jax.tree.leaves(batch)):
        # Not as they are: arrays of an Explicit mesh get the Auto axes.
        return ShardedBatch(
            *jax.tree.map(lambda a: meshes.place(a, sharding), (batch, weights))
        ), False
    parts, processes = meshes.axis_size(mesh, axis_name), meshes.num_processes(sharding)
    local, padded = _local_rows(n, parts, processes, rows)

    def place(a, copy):
        if n < local:
            xp = jnp if isinstance(a, jax.Array) else np
            a = xp.asarray(a)
            last = a[-1:] if copy else xp.zeros_like(a[-1:])
            a = xp.concatenate([a, xp.broadcast_to(last, (local - n, *a.shape[1:]))])
        if processes == 1:
            return jax.device_put(a, sharding)
        shape = (local * processes, *a.shape[1:])
        return jax.make_array_from_process_local_data(sharding, np.asarray(a), shape)

    batch = jax.tree.map(lambda a: place(a, True), batch)
    return ShardedBatch(batch, place(weights, False)), padded


def _local_rows(n, parts, processes, rows):
    """How many rows this process brings, padding included, and whether any process pads."""
    local_parts = parts // processes
    counts = np.array([n])
    if rows is None:
        if processes > 1:
            counts = np.asarray(multihost_utils.process_allgather(np.int32(n)))
        local = -(-int(counts.max()) // local_parts) * local_parts
        return local, bool((counts != local).any())
    if rows < 1 or rows % parts:
        raise ValueError(f"rows must be a multiple of the axis, {parts}, got {rows}.")
    local = rows // processes
    if n > local:
        raise ValueError(f"{n} examples do not fit into rows={rows} ({local} a process).")
    return local, n < local


class ShardedBatches:
    """A data set sharded by process, as batches on a mesh; made by [`shard_batches`][]."""

    def __init__(self, batches, mesh, axis_name, rows):
        self._batches, self._mesh, self._axis_name, self._rows = batches, mesh, axis_name, rows

    def __iter__(self) -> Iterator[ShardedBatch]:
        """One pass, with the same number of batches on every process."""
        axis = self._axis_name
        sharding = NamedSharding(meshes.auto(self._mesh, axis), PartitionSpec(axis))
        several, last = meshes.num_processes(sharding) > 1, None
        for batch in _until_all_end(iter(self._batches), several):
            weights = None
            if batch is not None:
                last = batch
            elif last is None:
                raise ValueError("this process has no batch: give every process at least one.")
            else:
                # Others have more batches: take part in their collectives without weight.
                batch, weights = last, np.zeros(num_examples(last) or 0, np.float32)
            yield shard_with_flag(batch, self._mesh, axis, weights, self._rows)[0]


def _until_all_end(batches, several):
    """This process's batches, then ``None`` for as long as another process has more."""
    while True:
        batch = next(batches, None)
        more = batch is not None
        if several:
            more = bool(multihost_utils.process_allgather(np.int32(more)).any())
        if not more:
            return
        yield batch


def shard_batches(
    batches: Iterable[Tree], mesh: Mesh, *, axis_name: meshes.Axis = "data", rows: int | None = None
) -> ShardedBatches:
    """A data set whose batches are sharded over a mesh as they are asked for.

    With several processes every process passes *its own* batches. Processes with fewer batches
    than others go on with examples of weight zero, so that no collective waits for them.

    Args:
      batches: a re-iterable of batches; not a generator.
      mesh: the mesh.
      axis_name: the mesh axis, or a tuple of them.
      rows: the rows of every global batch, see [`shard_batch`][].

    Returns:
      A re-iterable of [`ShardedBatch`][], for [`over_batches`][].

    Raises:
      TypeError: for one batch or a one-shot iterator.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> from flatjax import parallel
      >>> batches = [jnp.array([1.0, 2.0]), jnp.array([6.0])]
      >>> sharded = parallel.shard_batches(batches, parallel.make_mesh(1), rows=2)
      >>> loss_fn = lambda w, x: x * w**2 / 2
      >>> make = lambda b: flatjax.hessian(loss_fn, jnp.ones(()), b.batch, weights=b.weights)
      >>> float(flatjax.over_batches(make, sharded) @ jnp.ones(()))
      3.0
    """
    checks.check_batches(batches, "every product")
    return ShardedBatches(batches, mesh, axis_name, rows)
