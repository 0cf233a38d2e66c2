"""The user's functions at the door of an operator: followed, with hints where they raise."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from flatjax import _collectives as collectives
from flatjax import _functions as functions
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax import losses
from flatjax.operators._arguments import looks_like_batches, matmul_precision
from flatjax.operators._base import operator, static
from flatjax.operators._selection import Selection

SPLIT = (
    "graph, params, rest = flax.nnx.split(model, flax.nnx.Param, ...), and inside the loss "
    "model = flax.nnx.merge(graph, params, rest)"
)
PARTITION = (
    "params, static = eqx.partition(model, eqx.is_inexact_array), and inside the loss "
    "model = eqx.combine(params, static)"
)


def check_function(fn: Any, name: str, params: Any = None) -> None:
    """Raise unless ``fn`` is a function."""
    if not callable(fn):
        swapped = ": the order is (loss_fn, params, batch)" if callable(params) else ""
        raise TypeError(f"{name} must be a function, got {type(fn).__name__}{swapped}.")


@operator
class PartFunction:
    """A followed function of params as one of a part of them."""

    fn: Any
    selection: Selection = static()

    @property
    def name(self):
        """What to call the user's function."""
        return self.fn.name

    @property
    def original(self):
        """The user's function in the same way; ``None`` where it is lost."""
        return None if self.fn.original is None else PartFunction(self.fn.original, self.selection)

    def takes(self, selected, batch, rest, *args):
        """Whether it was followed at arguments like these."""
        return self.fn.takes(self.selection.merge(selected, rest), batch, *args)

    def at(self, selected, batch, rest, *args):
        """The same function, to be called at these arguments, too."""
        fn = self.fn.at(self.selection.merge(selected, rest), batch, *args)
        return PartFunction(fn, self.selection)

    def __call__(self, selected, batch, rest, *args):
        return self.fn(self.selection.merge(selected, rest), batch, *args)


def of_part(op: Any, name: str, selection: Selection) -> Any:
    """An operator over some of its params: the others become arguments of its function.

    By the chain rule: a restricted derivative is cheaper than a product with a vector of zeros, and
    is itself an operator over data that streams and chunks. ``name`` is the field of the function.
    """
    fn = PartFunction(getattr(op, name), selection)
    args = (selection.rest(op.params), *op.args)
    return dataclasses.replace(op, params=selection.select(op.params), args=args, **{name: fn})


def follow(
    fn: Callable[..., Any],
    name: str,
    params: Any,
    batch: Any,
    args: tuple,
    *,
    axis_name: collectives.AxisName = None,
    precision: str | None = None,
    whole: Any = None,
) -> functions.Followed:
    """A user's function of params and data, with what it captures as leaves.

    Params in low precision are followed in float32, too, where differences are taken. ``axis_name``
    are the mesh axes over which they will vary, ``name`` what to call the function in a message,
    ``whole`` the user's batch where the function takes a part of it.
    """
    check_function(fn, name, params)
    params = collectives.varying(params, axis_name)
    given = (params, batch, *args)
    with matmul_precision(precision):
        try:
            followed = functions.follow(fn, given, *_in_float32(fn, given))
        except Exception as error:
            _explain(error, name, params, batch, args, batch if whole is None else whole)
            raise
    if isinstance(followed.out, losses.LinearHead):
        followed.out.check()
    collectives.check_result(params, followed.out, axis_name, name)
    return followed


def for_examples(
    fn: Any, params: Any, batch: Any, args: tuple, size: int, precision: str | None
) -> Any:
    """A followed function of a batch, to be called with ``size`` of its examples, too.

    The params vary over devices as the function sees them.
    """
    part = first_examples(batch, size)
    with matmul_precision(precision):
        for given in (params, trees.cast(params, trees.structure_of(params))):
            if fn.takes(given, batch, *args):
                fn = fn.at(given, part, *args)
    return fn


def first_examples(batch: Any, size: int) -> Any:
    """The first examples of a batch for a signature; of arrays that are at hand the shapes."""
    take = lambda batch: jax.tree.map(lambda a: a[:size], batch)  # noqa: E731
    return take(batch) if loops.is_traced(batch) else jax.eval_shape(take, batch)


def _in_float32(fn, given):
    """The signature with float32 params, where theirs are others and the function takes them."""
    params, *rest = given
    wide = trees.cast(params, trees.structure_of(params))
    if all(a.dtype == b.dtype for a, b in zip(*map(jax.tree.leaves, (params, wide)), strict=True)):
        return []
    try:
        jax.eval_shape(lambda *args: fn(*args), wide, *rest)
    except Exception:
        return []
    return [(wide, *rest)]


def no_model(params: Any, error: Exception) -> tuple[str, str, str] | None:
    """What params are that were called as if they were the model; what to write; its ``grad_fn``.

    ``None`` where the error is another one.
    """
    text = str(error)
    if not isinstance(error, (TypeError, AttributeError)):
        return None
    if is_nnx(params) and "State" in text:
        what = f"a flax.nnx.State, which is no model ({text})"
        # Of a copy: what nnx splits off is shared with the model, whose keys and statistics go on.
        grad_fn = (
            "lambda p: flax.nnx.grad(loss)(flax.nnx.merge(graph, p, rest, copy=True), batch), with "
            "graph and rest of flax.nnx.clone(model), split before the clean pass"
        )
        return what, SPLIT, grad_fn
    if has_none(params) and "NoneType" in text:
        what = "which hold the arrays of the model alone: what eqx.filter left out is None"
        return (
            f"{what} ({text})",
            PARTITION,
            "lambda p: eqx.filter_grad(loss)(eqx.combine(p, static), batch)",
        )
    return None


def is_nnx(tree: Any) -> bool:
    """Whether a tree is one of flax.nnx."""
    return type(tree).__module__.startswith("flax.nnx")


def has_none(tree: Any) -> bool:
    """Whether ``None`` stands for a leaf that was left out."""
    return any(a is None for a in jax.tree.leaves(tree, is_leaf=lambda a: a is None))


def _explain(error: Exception, name: str, params: Any, batch: Any, args: tuple, whole: Any) -> None:
    """Raise what says more than the error of a user's function, or add notes to it."""
    if (advice := no_model(params, error)) is not None:
        raise TypeError(
            f"{name} is called with the params, {advice[0]}. Write {advice[1]}."
        ) from error
    flags = [a for a in jax.tree.leaves(args) if isinstance(a, (bool, int, str, bytes))]
    concrete = isinstance(error, jax.errors.ConcretizationTypeError)
    concrete = concrete or "concrete value" in str(error)
    if flags and (concrete or any(isinstance(a, str) for a in flags)):
        raise TypeError(
            f"{name} looks at the value of a further argument ({flags[0]!r} is one), and *args "
            "are traced like arrays: bind flags and names in the function instead, "
            f"lambda params, batch: {name}(params, batch, {flags[0]!r})."
        ) from error
    if looks_like_batches(whole):
        raise TypeError(
            f"{name} raised on a batch that is a list of {len(whole)} trees of one kind. For "
            "several batches see flatjax.over_batches(lambda batch: ..., batches). Its "
            f"message: {error}"
        ) from error
    error.add_note(
        f"flatjax: {name} was called with params, batch"
        f"{', *args' if args else ''}, where batch has the shapes {_shapes(batch)}."
    )


def _shapes(tree):
    return jax.tree.map(lambda a: tuple(jax.numpy.shape(a)), tree)
