"""Whether a loss that returns a plain scalar returns the mean over its examples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _loops as loops
from flatjax.operators._arguments import matmul_precision
from flatjax.operators._differences import equations
from flatjax.operators._terms import MEAN

_MOST = 16  # examples looked at


def check_operators(first: Any, last: Any) -> None:
    """Look once that the scalar loss of two operators is a mean over examples.

    Takes a few examples from each, and compares their loss with those of their halves: the user's
    function is called eagerly, five times, on at most 16 examples, and traced once. Nothing is
    looked at where there are fewer than two examples, where it returns no plain scalar, or under
    tracing. The two operators may be one.

    Raises:
      ValueError: naming ``Mean``.
    """
    if getattr(first, "form", None) != MEAN or not first.n or loops.is_traced(first, last):
        return
    loss_fn = first.loss_fn.original
    if loss_fn is None:
        return
    addressable = (getattr(a, "is_fully_addressable", True) for a in jax.tree.leaves(first))
    if not all(addressable):
        return
    examples = _sample(first, last)
    if examples is None:
        return
    with matmul_precision(first.precision):
        check_mean(lambda batch: loss_fn(first.params, batch, *first.args), examples)


def check_mean(fn: Callable[[Any], Any], batch: Any) -> None:
    """Raise unless the loss of a batch is the mean of the losses of its halves.

    Both the first half and every other example make a half.
    """
    n = jax.tree.leaves(batch)[0].shape[0]
    try:
        whole = float(fn(batch))
        halves = [
            [(float(fn(_take(batch, rows))), len(rows)) for rows in split] for split in _splits(n)
        ]
    except Exception:  # a loss of batches of one size only: as good as one that cannot be split
        return
    tol = _tolerance(fn, batch)
    for split in halves:
        mean = sum(value * size for value, size in split) / n
        scale = max(abs(whole), *(abs(value) for value, _ in split))
        if abs(whole - mean) > tol * scale:  # not where a loss is NaN
            raise ValueError(
                f"loss_fn returns a scalar that is not the mean over the examples of its batch: "
                f"{whole:.6g} for {n} examples, where the mean over their halves is {mean:.6g}. "
                "Chunks and batches would be weighed wrongly. Return the per-example losses, shape "
                "(n,), or for a loss with another normaliser (tokens, a mask, class weights) "
                "flatjax.Mean(total, weight); pass check=False if the loss draws numbers or has "
                "batch statistics on purpose."
            )


def _splits(n: int) -> list[list[np.ndarray]]:
    rows = np.arange(n)
    return [[rows[: n // 2], rows[n // 2 :]], [rows[::2], rows[1::2]]]


def _take(batch: Any, rows: np.ndarray) -> Any:
    return jax.tree.map(lambda a: a[rows], batch)


def _sample(first: Any, last: Any) -> Any:
    """A few examples of each of two batches, far from each other; ``None`` without two."""

    def spread(op, most):
        return _take(op.batch, np.unique(np.linspace(0, op.n - 1, min(op.n, most)).astype(int)))

    if last is not first:
        try:
            parts = spread(first, _MOST // 2), spread(last, _MOST // 2)
            return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *parts)
        except (TypeError, ValueError):  # batches of other shapes, as of sequences by length
            pass
    return spread(first, _MOST) if first.n > 1 else None


def _tolerance(fn: Callable[[Any], Any], batch: Any) -> float:
    """What rounding may make of a mean over 16 examples, relative to the larger loss.

    Sums in another order and other matrix kernels change a loss by some units in the last place of
    the lowest precision it is computed in: by at most 4 of them in bfloat16 and float16, where
    examples are rounded one by one, and in float32 and float64 by far fewer than 1,000, also where
    terms of ten times its size cancel. A mean over the tokens of sequences of unequal lengths is
    off by percents.
    """
    jaxpr = jax.make_jaxpr(fn)(batch).jaxpr
    made = (v for equation in equations(jaxpr) for v in equation.outvars)
    lowest = 0.0
    for variable in (*jaxpr.invars, *jaxpr.constvars, *made):
        dtype: Any = getattr(variable.aval, "dtype", None)
        if jnp.issubdtype(dtype, jnp.floating):
            eps = float(jnp.finfo(dtype).eps)
            lowest = max(lowest, 1000 * eps if eps < 1e-5 else 4 * eps)
    return lowest
