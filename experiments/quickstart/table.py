"""The quickstart's one table: the same rows for trained networks and for a given checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.lib.verdicts.report import Table


class Run(NamedTuple):
    """A trained and measured network.

    Attributes:
      arm: how it was trained: `sgd`, `sam`, or `checkpoint`.
      seed: its seed.
      final: the measurements of its final state, `step` among them.
      evaluations: the rows of its evaluations, the final one last.
      curvature: the rows of its curvature before the final state.
    """

    arm: str
    seed: int
    final: Mapping[str, Any]
    evaluations: Sequence[Mapping[str, Any]]
    curvature: Sequence[Mapping[str, Any]]


class Value(NamedTuple):
    """A measured number.

    Attributes:
      value: the number, or None where it was not measured.
      error: what stands beside it, if anything.
      kind: what the error is: `residual`, `standard error`; or `floor`: the number itself is only
        known to be smaller in magnitude than `value`.
    """

    value: float | None
    error: float | None = None
    kind: str = ""


class Row(NamedTuple):
    """One quantity of all arms.

    Attributes:
      key: its name in `summary.json`.
      label: its name in the table.
      values: by arm.
      ratio: the last arm over the first, where that says something.
    """

    key: str
    label: str
    values: Mapping[str, Value]
    ratio: float | None


_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")

NOTES = (
    "r: norm of the residual |Hv - λv|, with v of length one; an eigenvalue lies within r of the "
    "number. ±: one standard error. <: below the noise floor of the products, so smaller in "
    "magnitude than this."
)


def rows(runs: Sequence[Run]) -> list[Row]:
    """The table of some runs, arms in order of appearance, seeds of an arm averaged."""
    arms = list(dict.fromkeys(run.arm for run in runs))
    first = runs[0]
    table = []
    for key, label, compared, get in _quantities(first):
        values = {arm: _average([get(run) for run in runs if run.arm == arm]) for arm in arms}
        ratio = _ratio(values[arms[0]], values[arms[-1]]) if compared and len(arms) > 1 else None
        table.append(Row(key, label, values, ratio))
    return table


_Getter = Callable[[Run], Value]


def _quantities(example: Run) -> list[tuple[str, str, bool, _Getter]]:
    """Key, label, whether arms are compared, and how a run's value is had."""
    last = example.evaluations[-1]
    found: list[tuple[str, str, bool, _Getter]] = [
        ("steps", "updates", False, lambda run: Value(run.final["step"])),
    ]
    for name, label in (
        ("train_loss", "training loss"),
        ("train_accuracy", "training accuracy"),
        ("train_memorized", "wrong labels learned"),
        ("test_loss", "test loss"),
        ("test_accuracy", "test accuracy"),
    ):
        if name in last:
            found.append((name, label, False, _evaluated(name)))
    hessian = example.final["hessian"]
    for i in range(len(hessian["top"]["values"])):
        place = "largest" if i == 0 else str(i + 1).translate(_SUBSCRIPTS)
        label = "λ₁(H), largest eigenvalue" if i == 0 else f"λ{place}(H)"
        found.append((f"hessian_top_{i + 1}", label, True, _pair("hessian", "top", i)))
    count = len(hessian["bottom"]["values"])
    for i in range(count):
        rank = count - 1 - i
        label = "smallest eigenvalue of H" if rank == 0 else f"smallest but {rank}"
        found.append((f"hessian_bottom_{rank + 1}", label, False, _pair("hessian", "bottom", i)))
    found += [
        ("hessian_trace", "tr(H)", True, _trace("hessian")),
        ("covariance_top", "λ₁(K), gradient covariance", True, _pair("covariance", "top", 0)),
        ("covariance_trace", "tr(K)", True, _trace("covariance")),
        ("fisher_trace", "tr(F), Fisher information", True, _trace("fisher")),
    ]
    return found


def _evaluated(name: str) -> _Getter:
    return lambda run: Value(run.evaluations[-1].get(name))


def _pair(matrix: str, end: str, index: int) -> _Getter:
    def get(run: Run) -> Value:
        pairs = run.final[matrix][end]
        if not pairs["resolved"][index]:
            return Value(pairs["noise_floor"], kind="floor")
        return Value(pairs["values"][index], pairs["residual_norms"][index], "residual")

    return get


def _trace(matrix: str) -> _Getter:
    def get(run: Run) -> Value:
        estimate = run.final[matrix]["trace"]
        return Value(estimate["value"], estimate["standard_error"], "standard error")

    return get


def _average(values: Sequence[Value]) -> Value:
    """The mean over seeds with its standard error; one seed's value as it is."""
    if len(values) == 1:
        return values[0]
    numbers = [v.value for v in values]
    if any(x is None for x in numbers):
        return Value(None)
    if any(v.kind == "floor" for v in values):
        return Value(max(abs(x) for x in numbers), kind="floor")
    mean = math.fsum(numbers) / len(numbers)
    squares = math.fsum((x - mean) ** 2 for x in numbers)
    return Value(mean, math.sqrt(squares / (len(numbers) - 1) / len(numbers)), "standard error")


def _ratio(first: Value, last: Value) -> float | None:
    if first.kind == "floor" or last.kind == "floor" or not first.value or last.value is None:
        return None
    return last.value / first.value


def text(value: Value) -> str:
    """A number as it stands in the table: with as many digits as its error allows."""
    if value.value is None or not math.isfinite(value.value):
        return "n/a"
    if value.kind == "floor":
        return f"< {value.value:.2g}"
    if isinstance(value.value, int):
        return f"{value.value:,}"
    if value.kind == "standard error" and value.error is not None and math.isfinite(value.error):
        digits = _decimals(value.error, 2)
        return f"{_plain(value.value, digits)} ± {_plain(value.error, digits)}"
    number = _plain(value.value, _decimals(value.value, 4))
    if value.kind == "residual" and value.error is not None:
        return f"{number} (r {value.error:.1g})"
    return number


def _plain(number: float, decimals: int) -> str:
    """Fixed decimals where that is short, else an exponent."""
    if decimals > 6 or abs(number) >= 1e6:
        return f"{number:.2e}"
    return f"{number:.{decimals}f}"


def _decimals(number: float, significant: int) -> int:
    """Decimals that show so many significant digits."""
    if not number:
        return 1
    return max(significant - 1 - math.floor(math.log10(abs(number))), 0)


NAMES = {"sgd": "SGD", "sam": "SAM", "checkpoint": "checkpoint"}


def as_table(table: Sequence[Row]) -> Table:
    """The rows as text."""
    arms = list(table[0].values)
    columns = ["", *(NAMES[arm] for arm in arms)]
    compared = len(arms) > 1
    if compared:
        columns.append(f"{NAMES[arms[-1]]} / {NAMES[arms[0]]}")
    body = []
    for row in table:
        cells = [row.label, *(text(row.values[arm]) for arm in arms)]
        if compared:
            cells.append("" if row.ratio is None else f"{row.ratio:.2f}")
        body.append(cells)
    return Table(columns, body, NOTES)


def as_json(table: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as JSON values."""
    return [
        {
            "key": row.key,
            "label": row.label,
            "values": {arm: value._asdict() for arm, value in row.values.items()},
            "ratio": row.ratio,
        }
        for row in table
    ]


def from_json(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The inverse of `as_json`."""
    return [
        Row(r["key"], r["label"], {a: Value(**v) for a, v in r["values"].items()}, r["ratio"])
        for r in rows
    ]


def sentence(table: Sequence[Row], runs: Sequence[Run]) -> str:
    """What came out, in words made from the numbers."""
    by_key = {row.key: row for row in table}

    def both(key: str, form: str) -> str:
        return " and ".join(format(v.value, form) for v in by_key[key].values.values())

    arms = list(table[0].values)
    if len(arms) == 1:
        return f"One state, measured on {runs[0].final['examples']} training examples."
    first, last = NAMES[arms[0]], NAMES[arms[-1]]
    top, trace = by_key["hessian_top_1"].ratio, by_key["hessian_trace"].ratio
    parts = [
        f"Stopped at training losses of {both('train_loss', '.3f')}, {first} and {last} reach test "
        f"accuracies of {both('test_accuracy', '.1%')}."
    ]
    if top is not None and trace is not None:
        parts.append(
            f"The largest Hessian eigenvalue after {last} is {top:.2f} times that after {first}, "
            f"the trace {trace:.2f} times."
        )
    late = {run.arm for run in runs if run.final["stopped_by"] == "steps"}
    if late:
        names = " and ".join(NAMES[arm] for arm in arms if arm in late)
        parts.append(
            f"{names} ran out of updates before the training loss asked for, so this is no "
            "comparison at the same loss: allow more with --train.steps."
        )
    return " ".join(parts)
