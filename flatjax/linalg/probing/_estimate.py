"""Monte-Carlo estimates with a standard error and a confidence interval."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _reading as reading
from flatjax.linalg.krylov._certificates import underflow

CONFIDENCE = 0.95
# Beside the sampling error there is rounding: a few units of the size of a typical sample.
_ROUNDING = 4.0
# What `converged` means where the caller names no tolerance.
DEFAULT_RTOL = 0.05


@reading.readable
class Estimate(NamedTuple):
    """A number (or an array of numbers) estimated from random probes.

    Attributes:
      value: the estimate, unbiased unless the method says otherwise.
      standard_error: its standard error, from the spread of n probes, rounding included. It counts
        that the spread itself is estimated: the standard deviation of Student's t, larger by
        sqrt((n - 1)/(n - 3)) than the textbook's.
      interval: a 95 % confidence interval, low and high along the first axis: Student's t, and
        wider on one side where the samples are skewed, as quadratic forms dominated by a few
        eigenvalues are.
      num_products: the number of products spent, those of a deflation included.
      converged: whether the standard error is at most ``rtol`` times the value
        in magnitude; 5 % of it where no ``rtol`` was given.
      stopped: why it was stopped early, ``"callback"``, ``"max_seconds"`` or ``"interrupt"``: then
        it has not converged. ``None`` otherwise.
    """

    value: jax.Array
    standard_error: jax.Array
    interval: jax.Array
    num_products: int
    converged: jax.Array
    stopped: str | None = None

    __float__ = reading.as_float


def quiet() -> np.errstate:
    """What is not finite is said by the result's fields, not by a warning of NumPy."""
    return np.errstate(invalid="ignore", over="ignore", divide="ignore")


@quiet()
def from_samples(
    samples: Any, exact: Any, size: Any, num_products: int, rtol: float | None, dtype: Any
) -> Estimate:
    """The estimate ``exact + mean(samples)`` of independent samples, along their first axis.

    Args:
      samples: ``(n, ...)``, n >= 2: NumPy, reduced in float64, or traced.
      exact: what is known without sampling.
      size: the magnitude of the terms that were added, which sets the rounding error.
      num_products: the products spent.
      rtol: the relative standard error that counts as converged, or ``None``.
      dtype: the dtype of the result.

    Returns:
      An `Estimate`.

    References:
      Hall, "On the removal of skewness by transformation", J. R. Statist. Soc. B 1992.
    """
    xp = np if isinstance(samples, np.ndarray) else jnp
    n = samples.shape[0]
    value = exact + xp.mean(samples, axis=0)
    # Two passes, scaled: samples of 1e-30 must not square to zero.
    centred = samples - xp.mean(samples, axis=0)[None]
    largest = xp.max(xp.abs(centred), axis=0)
    safe = xp.where(largest > 0, largest, 1)
    unit = centred / safe[None]
    second, third = xp.mean(unit**2, axis=0), xp.mean(unit**3, axis=0)
    base = largest * xp.sqrt(second / (n - 1))
    safe = xp.where(second > 0, second, 1)
    skewness = third / safe**1.5
    # With few probes Student's t covers 89 % (one dominant eigenvalue, 20 probes) where the
    # skewness is large and Hall's transformation 94 %; where the tails are long on both sides it is
    # the other way round. So both.
    t = student(n - 1)
    low = value - base * xp.maximum(t, _hall(t, skewness, n, xp))
    high = value + base * xp.maximum(t, -_hall(-t, skewness, n, xp))
    error = base * math.sqrt((n - 1) / max(n - 3, 1))
    return _estimate(value, error, low, high, size, num_products, rtol, dtype)


def _hall(t: float, skewness: Any, n: int, xp: Any) -> Any:
    """The inverse of the monotone cubic transformation of Student's statistic (Hall 1992)."""
    some = xp.abs(skewness) > 1e-3
    a = xp.where(some, skewness, 1) / math.sqrt(n)
    return xp.where(some, 3 / a * (xp.cbrt(1 + a * (t - a / 6)) - 1), t)


@quiet()
def so_far(samples: np.ndarray, exact: float) -> tuple[np.float64, np.float64]:
    """The value and the standard error that `from_samples` gives but for rounding, for a report."""
    n = len(samples)
    # A deviation from the mean of one probe says nothing.
    error = samples.std() / math.sqrt(max(n - 3, 1)) if n > 1 else math.inf
    return np.float64(exact + samples.mean()), np.float64(error)


@quiet()
def from_spread(
    value: Any,
    standard_error: Any,
    degrees: int,
    size: Any,
    num_products: int,
    rtol: float | None,
    dtype: Any,
) -> Estimate:
    """An estimate from its value and sampling error with so many degrees of freedom."""
    half = student(degrees) * standard_error
    low, high = value - half, value + half
    return _estimate(value, standard_error, low, high, size, num_products, rtol, dtype)


def _estimate(value, error, low, high, size, num_products, rtol, dtype) -> Estimate:
    xp = jnp if isinstance(value, jax.Array) else np
    limit = float(jnp.finfo(dtype).max)
    rounding = _ROUNDING * float(jnp.finfo(dtype).eps) * size
    error = xp.hypot(error, rounding)
    interval = xp.stack([xp.asarray(low - 2 * rounding), xp.asarray(high + 2 * rounding)])
    # What is not finite in the result's dtype is no estimate, and an infinite error no small one.
    fits = (xp.abs(value) <= limit) & (error <= limit)
    converged = fits & (error <= (DEFAULT_RTOL if rtol is None else rtol) * xp.abs(value))
    return Estimate(
        value=cast(value, dtype),
        standard_error=cast(error, dtype),
        interval=cast(interval, dtype),
        num_products=num_products,
        converged=jnp.asarray(converged),
    )


def cast(value: Any, dtype: Any) -> jax.Array:
    """An array of this dtype; infinite, without a warning, where a number does not fit."""
    with np.errstate(over="ignore"):
        # A conversion on the device would be a program to compile.
        return jnp.asarray(
            value if isinstance(value, jax.Array) else np.asarray(value, dtype), dtype
        )


def rooted(square: Estimate, unit: float, rtol: float | None, size: int) -> Estimate:
    """A Frobenius norm from an estimate of its square, by the delta method.

    Args:
      square: the estimate of the square, in squared units.
      unit: the unit of the norm, a power of two.
      rtol: the relative standard error that counts as converged.
      size: the dimension.

    Returns:
      The estimate; the ends of its interval are the roots of those of the square.
    """
    dtype = square.value.dtype
    numbers = (square.value, square.standard_error, square.interval)
    value, error, ends = (np.asarray(a, np.float64) for a in numbers)
    value, ends = np.sqrt(np.maximum(value, 0)), np.sqrt(np.maximum(ends, 0))
    error = error / (2 * value) if value > 0 else error
    found = Estimate(
        value=cast(unit * value, dtype),
        standard_error=cast(unit * error, dtype),
        interval=cast(unit * ends, dtype),
        num_products=square.num_products,
        converged=jnp.asarray(error <= (DEFAULT_RTOL if rtol is None else rtol) * value),
    )
    return resolved(found, cast(size**0.5 * unit * value, dtype), size)


def resolved(found: Estimate, bound: Any, size: int) -> Estimate:
    """An estimate that has not converged where underflow may have taken it.

    Args:
      found: the estimate.
      bound: what is at least ``size`` times the operator's mean eigenvalue in magnitude.
      size: the dimension.

    Returns:
      The estimate.
    """
    return found._replace(converged=_resolved(found._replace(num_products=0), bound, size))


@functools.partial(jax.jit, static_argnums=2)
def _resolved(found, bound, size):
    fits = jnp.isfinite(found.value) & jnp.isfinite(found.standard_error)
    return found.converged & fits & ~lost(bound, size)


def lost(bound: jax.Array, size: int) -> jax.Array:
    """Whether underflow may have taken an operator; see `resolved`. Zero is taken for zero."""
    return (bound != 0) & (jnp.abs(bound) < size * underflow(size, bound.dtype))


@functools.cache
def student(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The two-sided quantile of Student's t; infinite without a degree of freedom.

    Example:
      >>> from flatjax.linalg.probing._estimate import student
      >>> round(student(9), 3)
      2.262
    """
    # Imported here: it would be a third of the time that importing the package takes.
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + confidence) / 2)) if degrees > 0 else math.inf
