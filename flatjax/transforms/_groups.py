"""Averages over groups of a batch (m-sharpness), independent of the number of devices.

The global batch is cut into ``groups`` contiguous, equal groups. On one device, and under ``jit``
with a sharded batch, they are an axis that is mapped over. Inside ``shard_map`` and ``pmap`` a
device holds whole groups, or a group spans whole devices; either way the same examples meet.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from flatjax import _collectives as collectives
from flatjax import _loops as loops
from flatjax._trees import Tree
from flatjax.transforms import _means as means

GroupMode = Literal["auto", "vmap", "loop"]


def split(tree: Tree, parts: int, name: str = "groups") -> Tree:
    """Cut the leading axis into ``parts`` equal parts: ``(n, ...)`` to ``(parts, n/parts, ...)``.

    Raises:
      ValueError: if ``n`` is not divisible by ``parts``.
    """

    def leaf(a):
        if a.shape[0] % parts:
            raise ValueError(
                f"a batch of {a.shape[0]} examples is not divisible into {name}={parts}."
            )
        return a.reshape(parts, a.shape[0] // parts, *a.shape[1:])

    return jax.tree.map(leaf, tree)


def map_groups(fn: Callable[..., Tree], tree: Tree, parts: int, mode: GroupMode) -> Tree:
    """``fn(index, part)`` for every part of a split ``tree``, results stacked.

    - ``"vmap"``: all at once, ``parts`` times the memory, and spread over devices where the batch
      is.
    - ``"loop"``: one after another, an XLA loop when traced.
    - ``"auto"``: a loop where there is only one CPU device, which gains nothing from doing all at
      once (16 groups of a small convolutional network: three times as fast, a tenth of the memory),
      else all at once.
    """
    if mode == "auto":
        mode = "loop" if jax.default_backend() == "cpu" and jax.device_count() == 1 else "vmap"
    if mode == "vmap":
        return jax.vmap(fn)(jnp.arange(parts), tree)
    if loops.on_device(tree):
        return loops.scan(lambda _, pair: (None, fn(*pair)), None, (jnp.arange(parts), tree))[1]
    results = [fn(i, jax.tree.map(lambda a, i=i: a[i], tree)) for i in range(parts)]
    return jax.tree.map(lambda *r: jnp.stack(r), *results)


def mean_over_groups(
    fn: Callable[[jax.Array, Tree, Callable[..., Tree]], tuple[Tree, Any, Tree]],
    batch: Tree,
    groups: int,
    axis_name: collectives.AxisName,
    mode: GroupMode = "auto",
) -> tuple[Tree, Tree, bool]:
    """The mean over all groups of ``fn``, on every device.

    Args:
      fn: ``fn(index, batch_part, within) -> (tree, weight, extra)``: the global index of the group,
        this device's part of its examples, and a function ``within(tree, weight)`` that averages
        over the devices that share the group. ``tree`` must be such an average: ``within`` applied
        to what is local. ``weight`` is that of the local part, ``None`` where all count equally.
      batch: this device's examples.
      groups: the number of groups of the global batch.
      axis_name: the mesh axes the batch is split over, or ``None``.
      mode: see ``map_groups``.

    Returns:
      The mean of ``tree``, the same on every device; ``extra``, local to the device; and whether
      ``extra`` has a leading axis of this device's groups.

    Raises:
      ValueError: if the groups do not divide the batch, or fit the devices.
    """
    if groups == 1:
        tree, _, extra = fn(jnp.asarray(0), batch, lambda t, w: means.average(t, axis_name, w))
        return tree, extra, False
    devices = collectives.axis_size(axis_name)
    if groups % devices == 0 and groups > devices:
        local = groups // devices
        first = 0 if axis_name is None else local * lax.axis_index(axis_name)
        stacked, weights, extra = map_groups(
            lambda i, part: fn(first + i, part, lambda t, _: t), split(batch, local), local, mode
        )
        weight = None if weights is None else weights.sum()
        mean = means.mean_of_stacked(stacked, weights)
        return means.average(mean, axis_name, weight), extra, True
    if groups == devices:
        tree, weight, extra = fn(lax.axis_index(axis_name), batch, lambda t, _: t)
        return means.average(tree, axis_name, weight), extra, False
    if devices % groups == 0:
        span = devices // groups
        index = lax.axis_index(axis_name) // span

        def total(a):
            # Sub-groups of an axis have no collective under shard_map, hence one slot a group.
            a = collectives.varying(a, axis_name)
            slots = jnp.zeros((groups, *a.shape), a.dtype).at[index].set(a)
            return collectives.total(slots, axis_name)[index]

        def within(tree, weight):
            if weight is None:
                return jax.tree.map(lambda a: total(a) / jnp.asarray(span, a.dtype), tree)
            return jax.tree.map(total, means.shares(tree, weight, total(weight)))

        # Each of the devices brings its part of the weight of their group.
        tree, weight, extra = fn(index, batch, within)
        return means.average(tree, axis_name, weight), extra, False
    raise ValueError(
        f"groups={groups} and {devices} devices must divide one another, so that a device holds "
        "whole groups or a group spans whole devices."
    )
