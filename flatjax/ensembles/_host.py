"""What the user gives as NumPy arrays in float64, in which everything of this room is solved."""

from typing import Any

import numpy as np

from flatjax import _loops as loops


def as_float64(name: str, value: Any, ndim: int) -> np.ndarray:
    """``value`` as a float64 array with ``ndim`` axes, or a clear error."""
    check_concrete(name, value)
    array = np.asarray(value, np.float64)
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, got shape {array.shape}.")
    return array


def check_concrete(name: str, value: Any) -> None:
    """Raise where ``value`` is traced."""
    if loops.is_traced(value):
        raise TypeError(f"{name} is traced, and this is solved on the host: call it outside jit.")
