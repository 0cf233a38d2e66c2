"""The only module that knows axis names and collectives.

Inside ``jax.pmap``, ``shard_map(check_vma=True)`` and ``shard_map(check_vma=False)`` one idiom is
right in all three: cast the replicated params (and tangents) to varying, take the *local* product,
then add up over the axis explicitly. Without the cast, ``grad`` with respect to replicated params
already sums over devices under ``check_vma=True``, and a later mean is silently wrong by the
number of devices.

An ``axis_name`` is a name, a tuple of names, or ``None`` for a single device.
"""

import math
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

AxisName = Hashable | tuple[Hashable, ...] | None


def names(axis_name: AxisName) -> tuple[Hashable, ...]:
    """The axis names as a tuple; empty for ``None``."""
    if axis_name is None:
        return ()
    return axis_name if isinstance(axis_name, tuple) else (axis_name,)


def varying_axes(x: Any) -> frozenset[Hashable]:
    """The mesh axes over which an array varies, by its type; none outside ``shard_map``.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import _collectives as collectives
      >>> collectives.varying_axes(jnp.ones(1))
      frozenset()
    """
    # JAX takes no shapes that vary over some of the axes of a mesh.
    kind = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    manual = getattr(kind, "manual_axis_type", None)
    return getattr(kind, "vma", frozenset()) if manual is None else manual.varying


def axes_of(tree: Any) -> frozenset[Hashable]:
    """The mesh axes over which any leaf varies; leaves that are no arrays are passed over."""
    arrays = [a for a in jax.tree.leaves(tree) if isinstance(a, jax.Array | jax.ShapeDtypeStruct)]
    return frozenset().union(*map(varying_axes, arrays))


def axes_of_all(tree: Any) -> frozenset[Hashable]:
    """The mesh axes over which every array of a tree varies."""
    arrays = [a for a in jax.tree.leaves(tree) if isinstance(a, jax.Array)]
    return frozenset.intersection(*map(varying_axes, arrays)) if arrays else frozenset()


def check_named(params: Any, data: Any, axis_name: AxisName) -> None:
    """Raise if data vary over a mesh axis that nobody names and the params are alike on.

    JAX adds a derivative with respect to such params up over the devices: the answer would be as
    many times too large as there are. Params that vary over the axis themselves (an ensemble, or a
    cast) have an answer on every device. Known inside ``shard_map(check_vma=True)`` only: without
    the check, and in ``pmap``, types say nothing.

    Args:
      params: a pytree of arrays that is differentiated by.
      data: a pytree of what else the function takes; leaves that are no arrays are passed over.
      axis_name: the axes over which the answer is averaged.

    Raises:
      ValueError: with the names of the axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import _collectives as collectives
      >>> collectives.check_named(jnp.ones(1), jnp.ones(1), None)  # outside of shard_map
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return

    unnamed = axes_of(data) - axes_of_all(params) - frozenset(names(axis_name))
    _refuse_unnamed("the batch, weights or *args vary", unnamed)


def check_result(params: Any, result: Any, axis_name: AxisName, name: str) -> None:
    """Raise if a function of the params varies over another set of mesh axes than it should.

    What it captures may vary over an axis that nobody names, as in `check_named`; or it may add up
    over a named axis itself, and its derivative with respect to params that vary is then a part of
    the local one, which is averaged once more.

    Args:
      params: the params as the function is given them, varying over the named axes.
      result: what it returns, arrays or ``jax.ShapeDtypeStruct``.
      axis_name: the axes over which the answer is averaged.
      name: of the function.

    Raises:
      ValueError: with the names of the axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import _collectives as collectives
      >>> collectives.check_result(jnp.ones(1), jnp.ones(1), None, "loss_fn")  # no shard_map
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return
    given, seen = axes_of_all(params), axes_of(result)
    _refuse_unnamed(f"{name} returns, or captures, what varies", seen - given)
    within = frozenset(names(axis_name)) & given - seen
    if within:
        one = sorted(within, key=str)[0]
        raise ValueError(
            f"{name} adds up over the mesh axis {one!r} itself (lax.pmean, lax.psum), and so does "
            f"axis_name={one!r}: let it return the loss of this device's examples."
        )


def _refuse_unnamed(what: str, unnamed: frozenset[Hashable]) -> None:
    if unnamed:
        listed = ", ".join(sorted(map(repr, unnamed)))
        one = sorted(unnamed, key=str)[0]
        raise ValueError(
            f"{what} over the mesh axes {listed}, which axis_name= does not name: the answer would "
            f"be added up over the devices. Pass axis_name={one!r}, or for an answer of its own on "
            f"every device params that vary too: jax.lax.pcast(params, {one!r}, to='varying')."
        )


def explicit_axes(tree: Any) -> tuple[str, ...]:
    """The mesh axes of type Explicit over which any array of a tree is split, sorted.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import _collectives as collectives
      >>> collectives.explicit_axes({"w": jnp.ones(1)})
      ()
    """
    found = set()
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, jax.Array):
            continue
        sharding = jax.typeof(leaf).sharding
        for part in sharding.spec:
            found.update(str(axis) for axis in names(part) if axis in sharding.mesh.explicit_axes)
    return tuple(sorted(found))


def varying(tree: Any, axis_name: AxisName) -> Any:
    """Cast every leaf to varying over the named mesh axes: gradients are then local.

    A leaf that already varies over an axis is left alone there (a second cast raises), and so are
    the axes of ``vmap``, which have no notion of replication.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import _collectives as collectives
      >>> collectives.varying(jnp.ones(1), None)
      Array([1.], dtype=float32)
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    axes = tuple(axis for axis in names(axis_name) if axis in manual)
    if not axes:
        return tree

    def leaf(x):
        missing = tuple(axis for axis in axes if axis not in varying_axes(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(leaf, tree)


def total(tree: Any, axis_name: AxisName) -> Any:
    """The sum of a tree over the named axes (``psum``), the same on every device.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flatjax import _collectives as collectives
      >>> jax.vmap(lambda x: collectives.total(x, "i"), axis_name="i")(jnp.arange(3.0)).tolist()
      [3.0, 3.0, 3.0]
    """
    if axis_name is None:
        return tree
    return lax.psum(varying(tree, axis_name), axis_name)


def weighted_mean(tree: Any, weight: Any, axis_name: AxisName) -> Any:
    """``psum(tree) / psum(weight)`` of local weighted sums: the mean over all devices' examples.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import _collectives as collectives
      >>> float(collectives.weighted_mean(jnp.float32(6.0), jnp.float32(3.0), None))
      2.0
    """
    tree, weight = total((tree, weight), axis_name)
    return jax.tree.map(lambda a: a / weight.astype(a.dtype), tree)


def axis_size(axis_name: AxisName) -> int:
    """How many devices the named axes have.

    Example:
      >>> from flatjax import _collectives as collectives
      >>> collectives.axis_size(None)
      1
    """
    return math.prod(lax.axis_size(name) for name in names(axis_name))


def gathered(rows: jax.Array, axis_name: AxisName) -> jax.Array:
    """The rows of all devices one after another, the same on every device.

    As a sum of arrays that are zero but for the own rows, which JAX knows to be the same
    everywhere, and which sends twice what an all-gather does: for small arrays.

    Args:
      rows: this device's rows, shape ``(n, ...)``, as many as on the others.
      axis_name: the axes.

    Returns:
      An array of shape ``(n * axis_size, ...)``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flatjax import _collectives as collectives
      >>> rows = jnp.array([[1, 2], [3, 4]])  # of two devices
      >>> jax.vmap(lambda r: collectives.gathered(r, "i"), axis_name="i")(rows).tolist()
      [[1, 2, 3, 4], [1, 2, 3, 4]]
    """
    if axis_name is None:
        return rows
    everywhere = jnp.zeros((axis_size(axis_name), *rows.shape), rows.dtype)
    placed = everywhere.at[lax.axis_index(axis_name)].set(rows)
    return total(placed, axis_name).reshape(-1, *rows.shape[1:])


def rows_to_columns(rows: jax.Array, axis_name: AxisName) -> jax.Array:
    """A matrix that is split by rows over the devices, split by columns instead.

    Sums over columns, such as all inner products of its rows, are then local sums and a
    [`total`][]. One all-to-all, in which a device sends its rows once, however many devices there
    are.

    Args:
      rows: this device's rows, shape ``(n, columns)``, as many as on the others.
      axis_name: the axes.

    Returns:
      This device's columns of the rows of all devices, in their order, shape
      ``(n * axis_size, ceil(columns / axis_size))``; columns that are missing are zero.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flatjax import _collectives as collectives
      >>> rows = jnp.array([[[1, 2, 3]], [[4, 5, 6]]])  # one row on each of two devices
      >>> split = jax.vmap(lambda r: collectives.rows_to_columns(r, "i"), axis_name="i")(rows)
      >>> split.tolist()
      [[[1, 2], [4, 5]], [[3, 0], [6, 0]]]
    """
    if axis_name is None:
        return rows
    missing = -rows.shape[1] % axis_size(axis_name)
    padded = varying(jnp.pad(rows, ((0, 0), (0, missing))), axis_name)
    return lax.all_to_all(padded, axis_name, split_axis=1, concat_axis=0, tiled=True)


def example_index(n: int, axis_name: AxisName) -> jax.Array:
    """The global index of each of ``n`` local examples, an integer array of shape ``(n,)``.

    For keys that ignore the number of devices; ``n`` is the same on all of them.

    Example:
      >>> from flatjax import _collectives as collectives
      >>> collectives.example_index(3, None).tolist()
      [0, 1, 2]
    """
    index = jnp.arange(n, dtype=jnp.int32)  # the dtype of axis_index, with 64-bit types too
    if axis_name is None:
        return index
    return index + n * lax.axis_index(axis_name)
