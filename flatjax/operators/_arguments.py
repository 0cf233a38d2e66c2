"""What a factory is given: checked at the door, with the fix in the message."""

import contextlib
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax.operators import _weighting as weighting


def as_arrays(tree: Any) -> Any:
    """``tree`` with its NumPy leaves on the device, once and not at every product.

    A copy: the caller may reuse the buffers of a batch.

    Raises:
      TypeError: for an array of text or objects, or something to iterate over.
    """

    def leaf(path, a):
        if _is_loader(a):
            raise TypeError(
                f"a batch must be a tree of arrays, got something to iterate over ({type(a)}): "
                "take one of its batches, next(iter(loader)), or for all of them see "
                "flatjax.over_batches(lambda batch: ..., batches)."
            )
        if not isinstance(a, np.ndarray):
            return a
        if a.dtype.kind in "USOMm":
            raise TypeError(
                f"an array (at {jax.tree_util.keystr(path)}) has dtype {a.dtype}, which JAX cannot "
                "hold: leave text, ids and objects out of the batch."
            )
        return jnp.array(a)

    return jax.tree_util.tree_map_with_path(leaf, tree, is_leaf=lambda a: isinstance(a, Iterator))


def _is_loader(a):
    """Whether this is a generator or a data loader."""
    return isinstance(a, Iterable) and not isinstance(a, (str, bytes)) and not hasattr(a, "shape")


def matmul_precision(precision: str | None) -> contextlib.AbstractContextManager[Any]:
    """``jax.default_matmul_precision``, or nothing for ``None``."""
    if precision is None:
        return contextlib.nullcontext()
    return jax.default_matmul_precision(precision)


class Checked(NamedTuple):
    """What a factory learns of its arguments."""

    n: int | None  # examples; none of a batch without leaves
    weights: jax.Array | None


def check_arguments(
    params: Any,
    batch: Any,
    weights: Any,
    axis_name: Any,
    precision: Any,
    *,
    args: Any = (),
    token_weights: bool = False,
) -> Checked:
    """Check what every factory takes, with the fix in the message.

    Args:
      params: the trainable params.
      batch: a pytree whose leaves share a leading axis.
      weights: per-example weights or a padding mask, or ``None``.
      axis_name: a mesh axis name, a tuple of them, or ``None``.
      precision: a matmul precision, or ``None``.
      args: the further arguments of the user's function.
      token_weights: whether weights may have more axes than the first.

    Raises:
      TypeError: for params that are not floating, or an ``axis_name`` that is no name.
      ValueError: for empty params, an empty batch, unequal leading axes, arrays split over Explicit
        mesh axes or over an axis of ``shard_map`` that ``axis_name`` does not name, weights of
        another shape or a total of zero, or an unknown precision.
    """
    check_params(params)
    n = num_examples(batch)
    check_mesh((params, batch, weights))
    if weights is not None:
        weights = jnp.asarray(as_arrays(weights))
        shape = weights.shape[:1] if token_weights else weights.shape
        if n is None or shape != (n,):
            raise ValueError(
                f"weights must have one entry an example, shape ({n},), got {weights.shape}."
            )
        if not (
            jnp.issubdtype(weights.dtype, jnp.floating)
            or jnp.issubdtype(weights.dtype, jnp.integer)
            or weights.dtype == jnp.bool_
        ):
            raise TypeError(f"weights must be real numbers or a mask, got dtype {weights.dtype}.")
        weights = weights.astype(trees.dtype(params))
        weighting.check_total(weights)
    for name in collectives.names(axis_name):
        if not isinstance(name, Hashable):
            raise TypeError(f"axis_name must be a name or a tuple of names, got {axis_name!r}.")
    collectives.check_named(params, (batch, args, weights), axis_name)
    allowed = (None, "default", "high", "highest", "bfloat16", "tensorfloat32", "float32")
    checks.check_choice("precision", precision, allowed)
    return Checked(n, weights)


def check_mesh(tree: Any) -> None:
    """Raise if an array is split over an Explicit mesh axis, the default of ``jax.make_mesh``.

    Derivatives of most models do not trace there: JAX asks for the ``out_sharding`` of a
    contraction or a reshape somewhere inside.
    """
    axes = collectives.explicit_axes(tree)
    if axes:
        raise ValueError(
            f"an array is split over the Explicit mesh axes {axes}, under which derivatives of a "
            "model do not trace: build the mesh with "
            "jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto,) * number_of_axes), or "
            "work inside jax.shard_map with axis_name=."
        )


def check_params(params: Any) -> None:
    """Raise unless ``params`` is a non-empty tree of real floating arrays."""
    checks.check_collections(params)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in leaves:
        checks.check_array(f"params{jax.tree_util.keystr(path)}", leaf)
    for path, leaf in leaves:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            kind = type(leaf).__name__ if dtype is None else f"dtype {dtype}"
            advice = "pass counters, keys and model state through *args."
            if dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating):
                advice = (
                    "pass the real and the imaginary part as two leaves, and join them in the loss."
                )
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} must be a real floating array, got {kind}: "
                f"{advice}"
            )
    if trees.size(params) == 0:
        raise ValueError("params has no entries: pass a pytree of floating arrays.")


def check_output(name: str, out: Any) -> None:
    """Raise unless a user's function returns one real floating array."""
    if not hasattr(out, "shape") or not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(
            f"{name} must return one real floating array, got {out}: drop model state and "
            "auxiliary outputs."
        )


def num_examples(batch: Any) -> int | None:
    """The shared leading axis of a batch; ``None`` for a batch without leaves."""
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        checks.check_array(f"batch{jax.tree_util.keystr(path)}", leaf)
        if not getattr(leaf, "shape", ()):
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} has no leading example axis: pass values that "
                "are not per example through *args."
            )
        sizes[jax.tree_util.keystr(path)] = leaf.shape[0]
    if not sizes:
        return None
    if len(set(sizes.values())) > 1:
        several = ""
        if looks_like_batches(batch):
            several = " For a list of batches see flatjax.over_batches."
        raise ValueError(
            f"the leaves of batch must share a leading axis, got {sizes}. Sets of unequal sizes "
            "(points in the interior and on the boundary, nodes and edges) go through *args with "
            f"batch=None: loss_fn(params, _, *sets).{several}"
        )
    n = next(iter(sizes.values()))
    if n == 0:
        raise ValueError("batch is empty: it needs at least one example.")
    return n


def split_batch(batch: Any) -> tuple[Any, Any]:
    """``(inputs, targets)`` of a batch, or a clear error."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        several = ""
        if looks_like_batches(batch):
            several = " For several batches see flatjax.over_batches(lambda batch: ..., batches)."
        raise TypeError(
            "batch must be a pair (inputs, targets) where a model_fn and an output loss are used, "
            f"got {type(batch).__name__}.{several}"
        )
    return batch[0], batch[1]


def looks_like_batches(batch: Any) -> bool:
    """Whether a batch may be a list of batches: a list, or a tuple of containers of one kind."""
    if not isinstance(batch, (list, tuple)) or not batch:
        return False
    kinds = {jax.tree.structure(part) for part in batch}
    rows = {tuple(jnp.shape(a)[1:] for a in jax.tree.leaves(part)) for part in batch}
    contained = all(not jax.tree_util.all_leaves([part]) for part in batch)
    return len(kinds) == len(rows) == 1 and (contained or isinstance(batch, list))
