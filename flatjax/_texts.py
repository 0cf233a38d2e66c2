"""Values on one line, out of shapes and few numbers.

Vectors and trees are shapes; so are tracers, ``jax.ShapeDtypeStruct``, what lies on other hosts and
what was donated. Nothing larger than a few thousand numbers is copied to the host.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LISTED = 6  # entries of an array or a dictionary that are written out
_READ = 4096  # entries of the largest array that is looked into
_LINE = 300  # characters
_DIGITS, _FEW = 5, 2  # of a number, and of one that says how far others can be trusted
_TRUST = ("error", "residual", "noise", "drift", "toler")
# The seconds below which a unit is used, and its size.
_UNITS = (
    (1e-3, 1e-6, "us"),
    (1, 1e-3, "ms"),
    (100, 1, "s"),
    (6000, 60, "min"),
    (math.inf, 3600, "h"),
)


def text(value: Any, name: str = "") -> str:
    """A value on one line.

    Args:
      value: anything.
      name: of the field that holds it: a number that says how far others can be trusted, by its
        name, has fewer digits.

    Returns:
      The text.

    Example:
      >>> import numpy as np
      >>> from flatjax import _texts as texts
      >>> texts.text(np.array([1234.5678, 1e-7])), texts.text(np.float32(0.1234), "standard_error")
      ('[1234.6, 1e-07]', '0.12')
      >>> texts.text({"w": np.ones((300, 2)), "b": np.ones(2)})
      '<2 leaves, 602 numbers, float64>'
    """
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return shortened(repr(value))
    host = numbers(value)
    if host is not None and host.ndim == 0:
        return number(host[()], name)
    if isinstance(value, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        return _array(value, host, name)
    if isinstance(value, dict) and value and all(_is_small(v) for v in value.values()):
        return f"{{{listed([f'{k}: {text(v, name)}' for k, v in value.items()])}}}"
    if isinstance(value, tuple | list) and all(_is_small(v) for v in value):
        return f"[{listed([text(v, name) for v in value])}]"
    return _tree(value)


def numbers(value: Any) -> np.ndarray | None:
    """What is at hand of a number or an array of few numbers, else ``None``.

    Integers and booleans as they are, all others in float64.

    Example:
      >>> import jax
      >>> from flatjax import _texts as texts
      >>> texts.numbers(2), texts.numbers(jax.ShapeDtypeStruct((), "float32"))
      (array(2), None)
    """
    if isinstance(value, jax.Array):
        if isinstance(value, jax.core.Tracer) or value.is_deleted():
            return None
        if jnp.issubdtype(value.dtype, jax.dtypes.extended) or not value.is_fully_addressable:
            return None
    elif not isinstance(value, np.ndarray | np.generic | int | float):
        return None
    if np.size(value) > _READ:
        return None
    host = np.asarray(value)
    if host.dtype.kind in "biu":
        return host
    return host.astype(np.float64) if jnp.issubdtype(host.dtype, jnp.floating) else None


def number(value: Any, name: str = "") -> str:
    """A number by the name of what holds it, cf. [`text`][]."""
    if isinstance(value, bool | np.bool_):
        return str(value)
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    digits = _FEW if any(word in name for word in _TRUST) else _DIGITS
    if 1 <= abs(value) < 1e6:  # an error of 377 is no 3.8e+02
        digits = max(digits, int(math.log10(abs(value))) + 1)
    return f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would take.

    Example:
      >>> from flatjax._texts import duration
      >>> duration(2.5e-4), duration(0.84), duration(75.0), duration(400.0), duration(7200.0)
      ('250 us', '840 ms', '75 s', '6.7 min', '2 h')
    """
    _, size, unit = next(row for row in _UNITS if seconds < row[0])
    return f"{seconds / size:{'.2g' if seconds < 10 * size else '.0f'}} {unit}"


def listed(parts: Sequence[str]) -> str:
    """The first of some parts, and how many more there are."""
    more = len(parts) - _LISTED
    return shortened(", ".join([*parts[:_LISTED], *([f"... {more:,} more"] if more > 0 else [])]))


def shortened(line: str, most: int = _LINE) -> str:
    """A line of at most so many characters."""
    return line if len(line) <= most else f"{line[: most - 27]} [...] {line[-20:]}"


def _is_small(value: Any) -> bool:
    if isinstance(value, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        return value.shape == ()
    return value is None or isinstance(value, str | int | float | np.generic)


def _array(a: Any, host: np.ndarray | None, name: str) -> str:
    kind = f"{a.dtype}[{','.join(map(str, a.shape))}]"
    if host is None or host.ndim != 1 or not host.size:
        return kind
    if host.size <= _LISTED:
        return f"[{', '.join(number(x, name) for x in host)}]"
    if host.dtype == bool:
        return f"{kind}, {host.sum():,} of them True"
    finite = host[np.isfinite(host)]
    ends = [number(end, name) for end in (finite.min(), finite.max())] if finite.size else []
    lost = host.size - finite.size
    said = [f"{' to '.join(ends)}"] if ends else []
    return ", ".join([kind, *said, *([f"{lost:,} not finite"] if lost else [])])


def _tree(tree: Any) -> str:
    """The number of leaves and of their entries, and the dtypes."""
    leaves = jax.tree.leaves(tree)
    if not leaves or leaves[0] is tree:
        return f"<{type(tree).__name__}>"
    dtypes = dict.fromkeys(str(getattr(a, "dtype", type(a).__name__)) for a in leaves)
    total = sum(math.prod(getattr(a, "shape", ())) for a in leaves)
    count = "1 leaf" if len(leaves) == 1 else f"{len(leaves):,} leaves"
    return f"<{count}, {total:,} numbers, {listed(list(dtypes))}>"
