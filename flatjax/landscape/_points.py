"""A loss, or a tree of metrics, at many points of parameter space: one program for all of them.

Points are driven from the host, one after the other. Where everything lies whole on the devices of
a mesh, each device takes points of its own; where the batch is split, all work on every point.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flatjax import _collectives as collectives
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax._watching import SILENT, Watch
from flatjax.losses import Mean
from flatjax.measures import _objective as objective
from flatjax.operators._arguments import as_arrays, check_arguments
from flatjax.operators._base import operator, static
from flatjax.operators._callables import check_function, follow
from flatjax.operators._terms import LossOperator, form_of
from flatjax.operators._weighting import size_of, with_copies

# ``place(params, shared, row)``: the point that a row of numbers names.
Place = Callable[[Tree, Any, Any], Tree]


@operator
class Points:
    """What a user's function says at points; made by [`points_of`][].

    Attributes:
      op: its data, and the function with what it captures.
      forms: for every metric, in what form it comes.
    """

    op: LossOperator
    forms: tuple[str, ...] = static()

    def at(self, params: Tree) -> Tree:
        """The mean of every metric over all devices' examples, in at least float32."""
        found: dict[int, Any] = {}

        def one(k, params, batch, *args):
            # All metrics come of one call of the function for each batch.
            if id(batch) not in found:
                found[id(batch)] = _metrics(self.op.loss_fn(params, batch, *args)), batch
            return found[id(batch)][0][k]

        values = [
            objective.value(
                dataclasses.replace(self.op, loss_fn=functools.partial(one, k), form=form), params
            )
            for k, form in enumerate(self.forms)
        ]
        return jax.tree.unflatten(jax.tree.structure(self.op.loss_fn.out, is_leaf=_is_mean), values)


def _is_mean(a):
    return isinstance(a, Mean)


def _metrics(out):
    """The metrics of a tree; flags and integers, such as hits, count as numbers."""

    def real(a):
        whole = not _is_mean(a) and (a.dtype == bool or jnp.issubdtype(a.dtype, jnp.integer))
        return a.astype(jnp.float32) if whole else a

    return [real(a) for a in jax.tree.leaves(out, is_leaf=_is_mean)]


def points_of(
    loss_fn: Callable[..., Any],
    params: Tree,
    batch: Any,
    args: tuple,
    *,
    args_fn: Callable[[Tree], Any] | None,
    weights: Any,
    axis_name: collectives.AxisName,
) -> Points:
    """A user's function of params and data, its arguments checked.

    Its params, and all points formed from them, are in at least float32.

    Raises:
      TypeError: for params, a function or a metric of another kind.
      ValueError: for data that do not fit, a metric that is neither a scalar nor one number an
        example, or a function that returns nothing.
    """
    check_function(loss_fn, "loss_fn", params)
    params = objective.widened(params)
    batch, args = as_arrays((batch, args))
    fn = loss_fn
    if args_fn is not None:
        check_function(args_fn, "args_fn")

        def fn(params, batch):
            made = args_fn(params)
            return loss_fn(params, batch, *(made if isinstance(made, tuple) else (made,)))

        args = ()
    checked = check_arguments(params, batch, weights, axis_name, None, args=args)
    given = params, batch, args
    if not loops.is_traced(given) and mesh_of(given) is not None:
        # Each device will run the program by itself, so it must not name the mesh.
        given = jax.tree.map(_alone, given)
    followed = follow(fn, "loss_fn", *given, axis_name=axis_name)
    named = jax.tree_util.tree_leaves_with_path(followed.out, is_leaf=_is_mean)
    if not named:
        raise ValueError("loss_fn returns nothing: return the loss, or a tree of metrics.")
    metrics = jax.eval_shape(_metrics, followed.out)
    forms = []
    for (path, _), metric in zip(named, metrics, strict=True):
        try:
            forms.append(form_of(metric, checked, scalar_allowed=True))
        except (TypeError, ValueError) as error:
            if not path:
                raise
            raise type(error)(f"metric{jax.tree_util.keystr(path)}: {error}") from error
    op = LossOperator(
        params, with_copies(batch, checked.weights), args, checked.weights, followed, forms[0],
        checked.n, axis_name, None, size_of(checked.weights),
    )  # fmt: skip
    return Points(op, tuple(forms))


def _alone(a):
    """What this device holds of an array that lies whole on all: the same one, without a mesh."""
    return a.addressable_data(0) if isinstance(a, jax.Array) else a


def coordinates(name: str, positions: Any, params: Tree) -> Any:
    """Positions along a line, shape ``(m,)``: on the host unless they are traced."""
    dtype = trees.dtype(params)
    traced = loops.is_traced(positions)
    positions = jnp.asarray(positions, dtype) if traced else np.array(positions, dtype)
    if positions.ndim != 1 or not positions.size:
        raise ValueError(
            f"{name} must have shape (m,), at least one number, got {positions.shape}."
        )
    return positions


def values(
    points: Points,
    place: Place,
    shared: Any,
    rows: Any,
    shape: tuple[int, ...] | None = None,
    watch: Watch = SILENT,
) -> Tree:
    """The metrics at the points that rows of numbers name.

    Args:
      points: from [`points_of`][].
      place: a function of a module, static: ``place(params, shared, row)``.
      shared: what it is given for all points, a pytree.
      rows: what it is given for each, a pytree with leading axis ``m``.
      shape: of the results, with m entries; ``None`` for ``(m,)``.
      watch: what may stop it; told the metrics so far.

    Returns:
      The tree of metrics, each of this shape; after a stop NaN at the points to come.
    """
    m = jax.tree.leaves(rows)[0].shape[0]
    mesh = None if loops.is_traced((points, shared, rows)) else mesh_to_share(points, shared)
    points, shared = on_all((points, shared), mesh)
    devices = 1 if mesh is None else mesh.size
    rows = padded(rows, devices)
    at = lambda part: metrics_at(points, shared, part, place=place, mesh=mesh)  # noqa: E731
    if watch.on:
        found = _watched(at, rows, devices, m, watch)
    else:
        found = loops.map_chunks(at, rows, devices, on_host=True)

    def arranged(a):
        a = a if a.shape[0] == m else a[:m]
        return on_device(a if shape is None else a.reshape(shape))

    return jax.tree.map(arranged, found)


def _watched(at, rows, devices, m, watch):
    """The metrics of all points, chunk by chunk; NaN where a stop has come before."""
    found: Any = None
    with loops.device(False):  # a loop of the device has no end before its end
        for begin, after in watch.chunks(-(-m // devices)):
            begin, after = begin * devices, after * devices
            part = jax.tree.map(lambda a, b=begin, c=after: a[b:c], rows)
            new = jax.device_get(loops.map_chunks(at, part, devices, on_host=True))
            if found is None:
                found = jax.tree.map(lambda a: np.full((m,), np.nan, a.dtype), new)
            done = min(after, m)
            for whole, a in zip(jax.tree.leaves(found), jax.tree.leaves(new), strict=True):
                whole[begin:done] = a[: done - begin]
            if watch.wants():
                so_far = jax.tree.map(lambda a, n=done: a[:n].copy(), found)
                watch.report(done, so_far, left=m - done)
    return found


def on_device(a: Any) -> jax.Array:
    """An array of the host on the device, for which ``jnp.asarray`` compiles a program."""
    return jax.device_put(a) if isinstance(a, np.ndarray) else a


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh on whose devices everything lies whole; ``None`` where there is no such mesh."""
    arrays = [a for a in jax.tree.leaves(tree) if isinstance(a, jax.Array)]
    meshes: set[Any] = {s.mesh for s in map(trees.sharding_of, arrays) if s is not None}
    whole = all(a.is_fully_replicated for a in arrays)
    return meshes.pop() if whole and len(meshes) == 1 else None


def mesh_to_share(points: Points, shared: Any) -> Mesh | None:
    """The mesh whose devices take points of their own; ``None`` where all work on every point.

    A program of a function that captures arrays of a mesh names it, so it runs on all of it.
    """
    captured = jax.tree.leaves(points.op.loss_fn)
    return None if any(map(trees.sharding_of, captured)) else mesh_of((points, shared))


def on_all(tree: Any, mesh: Mesh | None) -> Any:
    """The tree with all its arrays on every device of the mesh."""
    if mesh is None:
        return tree
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda a: jax.device_put(a, whole) if isinstance(a, jax.Array) else a, tree)


def padded(rows: Any, devices: int) -> Any:
    """Rows on the host, the last one repeated until every device has as many."""
    if devices == 1:
        return rows
    return jax.tree.map(
        lambda a: np.concatenate([a, np.repeat(a[-1:], -len(a) % devices, 0)]), rows
    )


@functools.partial(jax.jit, static_argnames=("place", "mesh"))
def metrics_at(points: Points, shared: Any, rows: Any, *, place: Place, mesh: Mesh | None) -> Tree:
    """The metrics at one point for each device of the mesh, at a single one without."""

    def one(points, shared, rows):
        row = jax.tree.map(lambda a: a[0], rows)
        found = points.at(place(points.op.params, shared, row))
        return jax.tree.map(lambda a: a[None], found)

    if mesh is None:
        return one(points, shared, rows)

    def everywhere(*given):
        return jax.lax.all_gather(one(*given), mesh.axis_names, tiled=True)

    whole, split = PartitionSpec(), PartitionSpec(mesh.axis_names)
    # Replication is not checked: the program of the user's function was traced outside.
    return jax.shard_map(
        everywhere, mesh=mesh, in_specs=(whole, whole, split), out_specs=whole, check_vma=False
    )(points, shared, rows)


def only_loss(name: str, points: Points) -> None:
    """Raise unless the function returns one loss, and no tree of metrics."""
    if jax.tree.structure(points.op.loss_fn.out, is_leaf=_is_mean) != jax.tree.structure(0):
        raise ValueError(f"{name} needs one loss: loss_fn must not return a tree of metrics.")
