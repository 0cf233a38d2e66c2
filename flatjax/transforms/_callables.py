"""The caller's functions, looked at where they enter.

Each of them is wrapped once, and what it returns is compared with what it should: all of it while
tracing, at no cost at run time.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax import losses
from flatjax._trees import Tree
from flatjax.losses._own import FunctionLoss
from flatjax.operators import _callables as theirs
from flatjax.operators import _weighting as weighting
from flatjax.transforms import _prng as prng

Gradient = Callable[[Tree], Tree]


def gradient_function(
    name: str,
    grad_fn: Gradient | None,
    value_fn: Callable[[Tree], Any] | None,
    axis_name: collectives.AxisName = None,
) -> Gradient:
    """``grad_fn``, or the gradient of ``value_fn``, checked."""
    if grad_fn is not None:
        called = explained(f"{name}: grad_fn", grad_fn)
        what = f"{name}: grad_fn returned"
        return lambda params: check_gradient(what, _bare(called(params), params), params)
    if value_fn is not None:
        return jax.grad(value_function(name, value_fn, axis_name))
    raise ValueError(
        f"{name} evaluates gradients of its own: call update(updates, state, params, "
        "grad_fn=lambda p: jax.grad(loss_fn)(p, batch)), or pass value_fn=, the loss as a "
        "function of the params. (flax's TrainState.apply_gradients does not forward extra "
        "arguments: class State(flatjax.ForwardExtraArgs, TrainState) does, and the oracle "
        "flatjax.sam_value_and_grad needs none. Nor does optax.lookahead: "
        f"put it behind, optax.chain(flatjax.{name}(...), optax.lookahead(optimizer, ...)).)"
    )


def value_function(
    name: str, value_fn: Callable[[Tree], Any], axis_name: collectives.AxisName = None
) -> Callable[[Tree], jax.Array]:
    """``value_fn``, which has to return a scalar or a ``Mean``.

    Over the devices of ``axis_name`` it is averaged equally, beside an incoming gradient that the
    caller took, so that a ``Mean`` would lose its weight there.
    """
    called = explained(f"{name}: value_fn", value_fn)

    def value(params):
        loss = called(params)
        if isinstance(loss, losses.Mean):
            if axis_name is not None:
                raise ValueError(
                    f"{name}: value_fn returned a flatjax.Mean, but with axis_name= the devices' "
                    "losses and gradients are averaged equally, whatever their weights. Use the "
                    "oracles sam_value_and_grad or penalty_value_and_grad, which weigh the "
                    "devices; or, where all weights are equal, return its .value."
                )
            return loss_and_weight(f"{name}: value_fn", loss)[0]
        _check_loss(f"{name}: value_fn", loss)
        if jnp.shape(loss) != ():
            raise ValueError(
                f"{name}: value_fn must return a scalar, got shape {jnp.shape(loss)}: take the "
                "mean over the examples, value_fn=lambda p: loss_fn(p, batch).mean()."
            )
        return jnp.asarray(loss)

    return value


def loss_and_aux(loss_fn: Callable[..., Any], has_aux: bool = False) -> Callable[..., Any]:
    """``fn(params, args, kwargs) -> (loss, aux)`` of a loss function; no aux is ``None``."""
    loss_fn = prng.cloning(loss_fn)
    called = explained("loss_fn", lambda params, args, kwargs: loss_fn(params, *args, **kwargs))

    def call(params, args, kwargs):
        out = called(params, args, kwargs)
        return _pair(out) if has_aux else (out, None)

    return call


def mean_and_aux(fn: Callable[..., Any]) -> Callable[..., tuple[jax.Array, Any]]:
    """``(params, args, kwargs) -> mean, (weight, aux)`` of a ``loss_and_aux``."""

    def mean(params, args, kwargs):
        loss, aux = fn(params, args, kwargs)
        counted = counted_rows(loss, args[0]) if args else None
        if counted is not None:
            again, aux = fn(params, (counted, *args[1:]), kwargs)
            loss = losses.Mean(again.total, loss.weight)
        value, weight = loss_and_weight("loss_fn", loss)
        return value, (weight, aux)

    return mean


def mean_loss(loss_fn: Callable[..., Any]) -> Callable[..., tuple[jax.Array, Any]]:
    """``loss_fn(params, batch, *args)`` as a mean and its weight, see ``loss_and_weight``."""
    mean = mean_and_aux(loss_and_aux(loss_fn))

    def mean_and_weight(params, *args):
        value, (weight, _) = mean(params, args, {})
        return value, weight

    return mean_and_weight


def counted_rows(loss: Any, batch: Tree) -> Tree | None:
    """The batch for a second call, where ``loss`` is a ``Mean`` of rows, else ``None``.

    Copies stand in the places of the examples of weight zero, whose derivative may be no number.
    Of the first call a compiled program keeps the weights alone.
    """
    if not isinstance(loss, losses.Mean) or jnp.ndim(loss.weight) != 1:
        return None
    leaves, weight = jax.tree.leaves(batch), jnp.asarray(loss.weight)
    if any(jnp.shape(a)[:1] != weight.shape for a in leaves) or collectives.explicit_axes(batch):
        return None
    return weighting.replaced(batch, jax.lax.stop_gradient(weight) != 0)


def loss_and_weight(what: str, loss: Any) -> tuple[jax.Array, Any]:
    """What a loss function returned, as a mean and by what it counts among those of other parts.

    The weight is that of a ``Mean``, a constant of any derivative in at least float32, or ``None``
    for a scalar or one loss per example: of these all parts have as many. The mean of weight zero
    is no number.
    """
    _check_loss(what, loss)
    if isinstance(loss, losses.Mean):
        total, weight = _checked_mean(what, loss)
        weight = jax.lax.stop_gradient(weight.astype(trees.compute_dtype(total.dtype)))
        rest = (weight == 0) & (weight.sum() != 0)  # examples that do not count beside others
        total = jnp.where(rest, jnp.zeros_like(total), total)
        return losses.Mean(total, weight).value, weight.sum()
    loss = jnp.asarray(loss)
    if loss.ndim > 1:
        raise ValueError(
            f"{what} must return a scalar or one loss per example, shape (n,), got {loss.shape}."
        )
    return loss.mean(), None


def _checked_mean(what, mean):
    total, weight = jnp.asarray(mean.total), jnp.asarray(mean.weight)
    if not jnp.issubdtype(total.dtype, jnp.floating):
        raise TypeError(
            f"{what} returned a flatjax.Mean with a total of dtype {total.dtype}: it must be real "
            "and floating."
        )
    if jnp.issubdtype(weight.dtype, jnp.complexfloating):
        raise TypeError(f"{what} returned a flatjax.Mean with a weight of dtype {weight.dtype}.")
    if total.shape != weight.shape or total.ndim > 1:
        raise ValueError(
            f"{what} returned a flatjax.Mean with a total of shape {total.shape} and a weight of "
            f"{weight.shape}: both must be scalars, or have one entry per example, shape (n,)."
        )
    return total, weight


def _check_loss(what, loss):
    if loss is None:
        raise TypeError(f"{what} returned None: does the function return its result?")
    if isinstance(loss, tuple | list | dict):
        raise TypeError(
            f"{what} returned a {type(loss).__name__} of length {len(loss)}, where the loss alone "
            "is expected: return the loss only, as in lambda p: loss_fn(p, batch)[0]; the oracles "
            "sam_value_and_grad and penalty_value_and_grad take a pair (loss, aux) with "
            "has_aux=True."
        )


def _pair(out):
    """What a ``loss_fn`` with ``has_aux=True`` returned.

    The weights of every ``Mean`` in the aux are floating: averaged over parts like its totals, they
    leave its ``value`` right, which integers, expected to agree, would not.
    """
    if isinstance(out, tuple | list) and len(out) == 2:
        return out[0], jax.tree.map(_with_floating_weight, out[1], is_leaf=_is_mean)
    raise TypeError(
        "has_aux=True, but loss_fn did not return a pair (loss, aux): return both, or leave out "
        "has_aux."
    )


def _is_mean(a):
    return isinstance(a, losses.Mean)


def _with_floating_weight(a):
    if not _is_mean(a):
        return a
    total = jnp.asarray(a.total)
    dtype = trees.compute_dtype(total.dtype)
    return losses.Mean(total.astype(dtype), jnp.asarray(a.weight).astype(dtype))


def model_function(
    name: str, model_fn: Callable[..., Any], loss: losses.OutputLoss
) -> Callable[..., Any]:
    """``model_fn``, which has to return the outputs alone where ``loss`` is one of this package."""
    called = explained(f"{name}: model_fn", prng.cloning(model_fn))

    def outputs(*args):
        out = called(*args)
        if isinstance(out, tuple | list | dict) and not isinstance(loss, FunctionLoss):
            raise TypeError(
                f"{name}: model_fn returned a {type(out).__name__}, where the outputs alone are "
                "expected: leave out the new model state, as in "
                "model_fn=lambda params, inputs, *args: apply(params, inputs, *args)[0]."
            )
        return out

    return outputs


def check_params(name: str, params: Tree) -> None:
    """Raise unless ``params`` are floating arrays, of which a gradient can be taken."""
    checks.check_collections(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        where = f"{name}: params{jax.tree_util.keystr(path)}"
        if not hasattr(leaf, "dtype"):
            raise TypeError(
                f"{where} is no array but {type(leaf).__name__}. Hand over the arrays of the model "
                f"alone: with equinox {theirs.PARTITION}; with flax.nnx {theirs.SPLIT}."
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{where} has dtype {leaf.dtype}, of which no gradient can be taken: keep counters "
                "and keys out of the params (eqx.is_inexact_array in place of eqx.is_array)."
            )


def check_gradient(what: str, gradient: Tree, params: Tree) -> Tree:
    """The gradient itself, if it looks like the params.

    ``what`` is the beginning of the message, such as "sam: grad_fn returned".
    """
    if jax.tree.structure(gradient) != jax.tree.structure(params):
        raise TypeError(f"{what} {_other_structure(gradient, params)}")
    named = jax.tree_util.tree_leaves_with_path(gradient)
    for (path, leaf), like in zip(named, jax.tree.leaves(params), strict=True):
        where = jax.tree_util.keystr(path) or "an array"
        if jnp.shape(leaf) != like.shape:
            raise ValueError(
                f"{what} {where} of shape {jnp.shape(leaf)} where the params have {like.shape}: it "
                "must be the gradient with respect to the params (see argnums of jax.grad), summed "
                "or averaged over the examples."
            )
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            kind = getattr(leaf, "dtype", type(leaf).__name__)
            raise TypeError(f"{what} {where} of type {kind}, which is no floating array.")
    return gradient


def _other_structure(gradient, params):
    """What was handed over in place of a gradient, and what to do about it."""

    def fits(tree):
        return jax.tree.structure(tree) == jax.tree.structure(params)

    if gradient is None:
        return "None: does the function return its result?"
    if isinstance(gradient, tuple) and len(gradient) == 2:
        if fits(gradient[1]):
            return (
                "a pair (value, gradient), as jax.value_and_grad does: hand over the gradient "
                "alone, grad_fn=lambda p: jax.grad(loss_fn)(p, batch), or take [1] of the pair."
            )
        if fits(gradient[0]):
            return (
                "a pair (gradient, aux), as jax.grad(..., has_aux=True) does: hand over the "
                "gradient alone, grad_fn=lambda p: jax.grad(loss_fn, has_aux=True)(p, batch)[0]."
            )
    hint = "it must be the gradient with respect to the params, in their tree structure."
    kinds = {type(gradient).__module__.split(".")[0], type(params).__module__.split(".")[0]}
    if theirs.is_nnx(gradient) or theirs.is_nnx(params):
        hint = f"hand over both as flax.nnx.State: {theirs.SPLIT}."
    elif "equinox" in kinds or theirs.has_none(gradient) or theirs.has_none(params):
        hint = f"partition the model once for both: {theirs.PARTITION}."
    return (
        f"another tree than the params: {hint}\n  gradient: {jax.tree.structure(gradient)}\n"
        f"  params:   {jax.tree.structure(params)}"
    )


def explained(what: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn(params, ...)``; params called as if they were a model raise what to do instead."""

    def call(params, *args, **kwargs):
        try:
            return fn(params, *args, **kwargs)
        except (TypeError, AttributeError) as error:
            advice = theirs.no_model(params, error)
            if advice is None:
                raise
            raise TypeError(
                f"{what} is called with the params, {advice[0]}. Write {advice[1]}, and "
                f"differentiate that loss: grad_fn={advice[2]}."
            ) from error

    return call


def _bare(gradient, params):
    """The gradient of ``nnx.grad``, variables that hold arrays, as the arrays alone.

    ``nnx.Optimizer`` hands the params over so, and whoever merges them into a model and calls
    ``nnx.grad`` gets variables back.
    """
    if jax.tree.structure(gradient) == jax.tree.structure(params):
        return gradient
    is_variable = lambda a: hasattr(a, "get_value") and hasattr(a, "get_metadata")  # noqa: E731
    value = lambda a: a.get_value() if is_variable(a) else a  # noqa: E731
    return jax.tree.map(value, gradient, is_leaf=is_variable)
