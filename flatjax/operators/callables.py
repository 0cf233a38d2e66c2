"""The user's functions at the door of an operator: followed, with hints where they raise."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from flatjax import collectives, functions, loops, trees
from flatjax.operators.arguments import looks_like_batches, matmul_precision


def check_function(fn: Any, name: str, params: Any = None) -> None:
    """Raise unless ``fn`` is a function."""
    if not callable(fn):
        swapped = ": the order is (loss_fn, params, batch)" if callable(params) else ""
        raise TypeError(f"{name} must be a function, got {type(fn).__name__}{swapped}.")


def follow(
    fn: Callable[..., Any],
    name: str,
    params: Any,
    batch: Any,
    args: tuple,
    *,
    axis_name: collectives.AxisName = None,
    precision: str | None = None,
    sizes: Sequence[int | None] = (),
) -> functions.Followed:
    """A user's function of params and data, with what it captures as leaves.

    Args:
      fn: the function.
      name: what to call it in a message.
      params: the params; those in low precision are followed in float32, too, where differences
        are taken.
      batch: the batch, or the inputs of a model.
      args: the further arguments.
      axis_name: the mesh axes over which the params will vary.
      precision: matmul precision.
      sizes: other numbers of examples that it will be called with; ``None`` is passed over.

    Returns:
      The function.
    """
    check_function(fn, name, params)
    params = collectives.varying(params, axis_name)
    signatures = [(params, batch, *args)]
    n = jax.tree.leaves(batch)[0].shape[0] if sizes and jax.tree.leaves(batch) else 0
    # Other sizes are refused later, or come to the whole batch.
    sizes = [size for size in dict.fromkeys(sizes) if size is not None and 1 <= size < n]
    signatures += [(params, first_examples(batch, size), *args) for size in sizes]
    with matmul_precision(precision):
        try:
            return functions.follow(fn, *signatures, *_in_float32(fn, signatures))
        except Exception as error:
            _explain(error, name, batch, args)
            raise


def first_examples(batch, size):
    """The first examples of a batch for a signature; of arrays that are at hand the shapes."""
    take = lambda batch: jax.tree.map(lambda a: a[:size], batch)  # noqa: E731
    return take(batch) if loops.is_traced(batch) else jax.eval_shape(take, batch)


def _in_float32(fn, signatures):
    """The signatures with float32 params, where theirs are others and the function takes them."""
    params = signatures[0][0]
    wide = trees.cast(params, trees.structure_of(params))
    if all(a.dtype == b.dtype for a, b in zip(*map(jax.tree.leaves, (params, wide)), strict=True)):
        return []
    wider = [(wide, *rest) for _, *rest in signatures]
    try:
        jax.eval_shape(lambda *args: fn(*args), *wider[0])
    except Exception:
        return []
    return wider


def _explain(error: Exception, name: str, batch: Any, args: tuple) -> None:
    """Raise what says more than the error of a user's function, or add notes to it."""
    flags = [a for a in jax.tree.leaves(args) if isinstance(a, (bool, int, str, bytes))]
    concrete = isinstance(error, jax.errors.ConcretizationTypeError)
    concrete = concrete or "concrete value" in str(error)
    if flags and (concrete or any(isinstance(a, str) for a in flags)):
        raise TypeError(
            f"{name} looks at the value of a further argument ({flags[0]!r} is one), and *args "
            "are traced like arrays: bind flags and names in the function instead, "
            f"lambda params, batch: {name}(params, batch, {flags[0]!r})."
        ) from error
    if looks_like_batches(batch):
        raise TypeError(
            f"{name} raised on a batch that is a list of {len(batch)} trees of one kind. For "
            "several batches see flatjax.over_batches(lambda batch: ..., batches). Its "
            f"message: {error}"
        ) from error
    error.add_note(
        f"flatjax: {name} was called with params, batch"
        f"{', *args' if args else ''}, where batch has the shapes {_shapes(batch)}."
    )


def _shapes(tree):
    return jax.tree.map(lambda a: tuple(jax.numpy.shape(a)), tree)
