"""Checks of what users pass: ``TypeError`` for a wrong type, ``ValueError`` for a wrong value."""

import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sized
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ENDLESS = 1 << 40  # batches; what repeats without end has the largest integer for its length


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise unless ``value`` is a concrete integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def check_array(name: str, leaf: Any) -> None:
    """Raise for functions, text and the arrays of other libraries among the leaves of a tree.

    Args:
      name: what the user calls it, such as ``params['w']``.
      leaf: the leaf of a tree.

    Raises:
      TypeError: with what to do, by what the leaf is.
    """
    known = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct, bool, int, float, complex)
    if isinstance(leaf, known) or hasattr(leaf, "__jax_array__"):
        return
    if isinstance(leaf, (str, bytes)):
        raise TypeError(f"{name} is text ({leaf!r}): leave it out, JAX holds numbers only.")
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        raise TypeError(
            f"{name} is a {type(leaf).__module__}.{type(leaf).__qualname__}, no array of JAX: "
            "convert it, for instance with jax.numpy.asarray(tensor.detach().cpu().numpy())."
        )
    if callable(leaf) and name.isidentifier():
        raise TypeError(f"{name} is a function: the order is (function, params, batch).")
    if callable(leaf):
        raise TypeError(
            f"{name} must be a real floating array, got {type(leaf).__name__}: split the functions "
            "off, as of an equinox module with arrays, rest = equinox.partition(model, "
            "equinox.is_inexact_array), and join them in the loss with equinox.combine(arrays, "
            "rest)."
        )


def check_collections(params: Any) -> None:
    """Raise if ``params`` are the variables of a flax.linen module, statistics among them.

    The statistics would be differentiated by, and moved by an optimizer.

    Raises:
      ValueError: with what to pass.
    """
    if isinstance(params, Mapping) and {"params", "batch_stats"} <= set(params):
        raise ValueError(
            "params are the variables of a module, whose batch_stats are no parameters: pass "
            "variables['params'], and the statistics through *args, as in "
            "loss_fn(params, batch, batch_stats)."
        )


def check_batches(batches: Any, user: str, *, again: bool = True) -> None:
    """Raise unless ``batches`` can be iterated over and is not one batch.

    One batch would be taken apart row by row, and its rows used as if they were batches.

    Args:
      batches: what the user gave.
      user: what passes over them, such as ``every product``.
      again: whether it does so more than once.

    Raises:
      TypeError: for an array, a dict, a tuple that holds an array, something without an iterator,
        or, if ``again``, a one-shot iterator.
      ValueError: for one that repeats without end, where its length says so.
    """
    held = batches if isinstance(batches, tuple) else (batches,)
    if isinstance(batches, Mapping) or any(hasattr(part, "shape") for part in held):
        raise TypeError(
            f"batches must be a re-iterable of batches, and this {type(batches).__name__} is one "
            "batch: pass [batch], or a list, for batches that are arrays."
        )
    if isinstance(batches, Sized) and len(batches) > _ENDLESS:
        raise ValueError(
            f"batches has {len(batches):,} of them, as what repeats without end does: leave "
            ".repeat() out, a pass over the data needs an end."
        )
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"batches must be a re-iterable of batches, got {type(batches).__name__}: pass a list."
        )
    if again and iter(batches) is batches:
        raise TypeError(
            f"batches is a one-shot iterator, but {user} needs a pass over the data: pass a list "
            "or another object that can be iterated again."
        )


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    # An array, which is not hashable, has no truth value when it is compared.
    if not isinstance(value, Hashable) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_scalar(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    infinite: bool = False,
    schedule: bool = False,
) -> None:
    """Raise unless ``value`` is a finite number in range; what is traced passes.

    Args:
      name: what the user calls it.
      value: a number or an array without axes.
      minimum: the smallest value.
      maximum: the largest value.
      above: what the value must exceed.
      below: what the value must stay under.
      infinite: whether infinity is a value.
      schedule: whether a function of the step count will do, too.

    Raises:
      TypeError: if ``value`` is no number.
      ValueError: if it is not finite or out of range.
    """
    if isinstance(value, jax.core.Tracer) or (schedule and callable(value)):
        return
    try:
        if isinstance(value, (bool, str)) or np.ndim(value) != 0:
            raise TypeError
        number = float(value)
    except (TypeError, ValueError) as error:
        wanted = "a number or a schedule (a function of the step count)" if schedule else "a number"
        got = getattr(value, "shape", None)
        got = type(value).__name__ + (f" of shape {got}" if got else "")
        raise TypeError(f"{name} must be {wanted}, got {got}.") from error
    if math.isnan(number) or (math.isinf(number) and not infinite):
        raise ValueError(f"{name} must be finite, got {number}.")
    bounds = [
        (minimum, f"at least {minimum}", lambda bound: number >= bound),
        (maximum, f"at most {maximum}", lambda bound: number <= bound),
        (above, f"above {above}", lambda bound: number > bound),
        (below, f"below {below}", lambda bound: number < bound),
    ]
    given = [(bound, words, holds) for bound, words, holds in bounds if bound is not None]
    if not all(holds(bound) for bound, _, holds in given):
        wanted = " and ".join(words for _, words, _ in given)
        raise ValueError(f"{name} must be {wanted}, got {number}.")


def check_tolerance(tol: Any, name: str = "tol") -> None:
    """Raise unless ``tol`` is a concrete number that is not negative; infinity is one."""
    if isinstance(tol, bool) or not isinstance(tol, (int, float, np.number)):
        raise TypeError(f"{name} must be a Python number, got {type(tol).__name__}.")
    if not tol >= 0:
        raise ValueError(f"{name} must not be negative, got {tol}.")


def check_key(key: Any) -> jax.Array:
    """The key as a typed one, with a clear error where it is missing or no key."""
    if key is None:
        raise ValueError("key is missing: pass key=jax.random.key(seed).")
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    raw = hasattr(key, "dtype") and key.dtype == jnp.uint32 and key.ndim == 1
    if not (typed and key.shape == ()) and not raw:
        raise TypeError(f"key must be one PRNG key such as jax.random.key(0), got {key!r}.")
    return key if typed else jax.random.wrap_key_data(key)
