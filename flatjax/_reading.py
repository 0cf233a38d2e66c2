"""How results read: short texts, tables in notebooks, numbers for ``float`` and ``format``."""

import dataclasses
import html
from typing import Any, NamedTuple, TypeVar

import numpy as np

from flatjax import _texts as texts

T = TypeVar("T")
_ROWS = 8  # of a table
_WIDTH = 88  # of a result on one line
_MOST = 1980  # characters of a result


def readable(cls: type[T]) -> type[T]:
    """Class decorator: a named tuple or dataclass that reads well, in a terminal and in a notebook.

    Fields with one entry for each of ``values`` (or ``value``), arrays or dictionaries, are a
    table. A number and its standard error are one fact. Vectors and trees are shapes, ``None`` is
    left out. ``format`` of a result with a ``value`` has the standard error, too. A method
    ``_picture`` gives an SVG.

    Args:
      cls: the class; that of a number also has ``__float__ = as_float`` in its body, for the sake
        of type checkers.

    Returns:
      The class.

    Example:
      >>> from typing import Any, NamedTuple
      >>> import numpy as np
      >>> from flatjax import _reading as reading
      >>> @reading.readable
      ... class Found(NamedTuple):
      ...     value: Any
      ...     standard_error: Any
      ...     vector: Any
      >>> found = Found(1.2345678, 0.0123, {"w": np.ones((300, 2)), "b": np.ones(2)})
      >>> found
      Found(value=1.2346 ± 0.012, vector=<2 leaves, 602 numbers, float64>)
      >>> f"{found:.3f}, {found}"
      '1.235 ± 0.012, 1.2346 ± 0.012'
    """
    methods: dict[str, Any] = {"__repr__": _shown, "_repr_html_": _html, "_readable": True}
    if "value" in _names(cls):
        methods["__format__"] = _formatted
        if hasattr(cls, "_fields"):  # of which Python would make a longer tuple
            methods |= dict.fromkeys(("__add__", "__mul__", "__rmul__"), _no_arithmetic)
    for name, method in methods.items():
        setattr(cls, name, method)
    return cls


def _no_arithmetic(result: Any, other: Any) -> Any:
    del other
    raise TypeError(f"{type(result).__name__} is no number: calculate with its .value.")


def as_float(result: Any) -> float:
    """The value of a result as a Python number."""
    return float(result.value)


def _names(cls: Any) -> tuple[str, ...]:
    fields = getattr(cls, "_fields", None)
    return tuple(f.name for f in dataclasses.fields(cls)) if fields is None else fields


class _Read(NamedTuple):
    """What is read of a result: the columns of a table, facts, and results inside of it."""

    columns: dict[str, list[str]]
    facts: dict[str, str]
    inner: dict[str, Any]


def _read(result: Any) -> _Read:
    fields = {name: getattr(result, name) for name in _names(result)}
    columns = _columns(fields)
    errors = {
        name: _error_of(name)
        for name, value in fields.items()
        if _is_number(value) and _is_number(fields.get(_error_of(name)))
    }
    facts, inner = {}, {}
    for name, value in fields.items():
        if value is None or name in columns or name in errors.values():
            continue
        if _reads(value):
            inner[name] = value
        elif isinstance(value, dict) and value and all(map(_reads, value.values())):
            facts[name] = f"{{{texts.listed([str(key) for key in value])}}}"
        else:
            facts[name] = texts.text(value, name)
            if name in errors:
                facts[name] += f" ± {texts.text(fields[errors[name]], 'error')}"
    return _Read(columns, facts, inner)


def _reads(value: Any) -> bool:
    return getattr(type(value), "_readable", False)


def _error_of(name: str) -> str:
    return "standard_error" if name == "value" else f"{name}_standard_error"


def _is_number(value: Any) -> bool:
    host = texts.numbers(value)
    return host is not None and host.ndim == 0


def _columns(fields: dict[str, Any]) -> dict[str, list[str]]:
    """The fields with one entry for each of the values, written out."""
    entries = {name: _entries(value) for name, value in fields.items()}
    name = "values" if entries.get("values") else "value"
    lead = entries.get(name)
    if lead is None:
        return {}
    keys, values = lead
    found = {n: e[1] for n, e in entries.items() if e is not None and e[0] == keys}
    columns = {n: [texts.number(x, n) for x in e[:_ROWS]] for n, e in found.items()}
    for row, known in enumerate(found.get("resolved", [])[:_ROWS]):
        if not known and not np.isnan(found[name][row]):  # not even the sign says anything
            columns[name][row] = "< floor"
    if isinstance(keys, tuple):
        columns = {"": [texts.shortened(str(key), 40) for key in keys[:_ROWS]], **columns}
    if len(values) > _ROWS:
        columns = {n: [*column, "..."] for n, column in columns.items()}
    return columns


def _entries(value: Any) -> tuple[Any, list] | None:
    """The keys of a dictionary of numbers and these, the length of an array and its entries."""
    if isinstance(value, dict) and value and all(map(_is_number, value.values())):
        return tuple(value), [texts.numbers(a)[()] for a in value.values()]  # type: ignore[index]
    host = texts.numbers(value)
    return (len(host), list(host)) if host is not None and host.ndim == 1 and host.size else None


def _shown(result: Any, *, inside: bool = False) -> str:
    read, name = _read(result), type(result).__name__
    facts = [f"{key}={fact}" for key, fact in read.facts.items()]
    line = f"{name}({', '.join(facts)})"
    if not read.columns and not read.inner and (inside or len(line) <= _WIDTH):
        return texts.shortened(line, 2 * _WIDTH)
    lines = []
    if read.columns:
        table = [[head, *column] for head, column in read.columns.items()]
        widths = [max(map(len, column)) for column in table]
        lines += [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in zip(*table, strict=True)
        ]
    lines += [f"{key}={_shown(inner, inside=True)}" for key, inner in read.inner.items()]
    body = "\n".join([*lines, *facts]).replace("\n", "\n  ")
    return texts.shortened(f"{name}(\n  {body}\n)", _MOST)


def _html(result: Any, name: str = "") -> str:
    read, picture = _read(result), _picture(result)
    rows, sections = dict(read.facts), []
    for key, inner in read.inner.items():
        if _read(inner).columns or _picture(inner):
            sections.append(_html(inner, f"{key}: "))
        else:
            rows[key] = _shown(inner, inside=True)
    facts = _table(rows.items())
    if picture:
        facts = f"<details><summary>fields</summary>{facts}</details>"
    columns = _table(zip(*([k, *column] for k, column in read.columns.items()), strict=True))
    title = f"<b>{name}{type(result).__name__}</b>"
    return f"<div>{title}{picture}{columns}{facts}{''.join(sections)}</div>"


def _picture(result: Any) -> str:
    return result._picture() if hasattr(result, "_picture") else ""


def _table(rows: Any) -> str:
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>" if cells else ""


def _formatted(result: Any, spec: str) -> str:
    value, error = (texts.numbers(getattr(result, n, None)) for n in ("value", "standard_error"))
    if not spec:
        if value is None or value.ndim:  # as of every object
            return str(result)
        line = texts.text(value, "value")
        return line if error is None else f"{line} ± {texts.text(error, 'error')}"
    if value is None:
        return texts.text(result.value)
    return _with_error(value, error, spec)


def _with_error(value: np.ndarray, error: np.ndarray | None, spec: str) -> str:
    if value.ndim:
        errors = [None] * len(value) if error is None else error
        return (
            f"[{', '.join(_with_error(*pair, spec) for pair in zip(value, errors, strict=True))}]"
        )
    line = format(value.item(), spec)
    return line if error is None else f"{line} ± {format(error.item(), spec)}"
