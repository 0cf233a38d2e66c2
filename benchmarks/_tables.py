"""Numbers and tables in Markdown."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

TITLES = {
    "flatjax": "flatjax",
    "pyhessian": "PyHessian",
    "curvlinops": "curvlinops",
    "eigenthings": "hessian-eigenthings",
    "matfree": "matfree",
    "traceax": "traceax",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def seconds(value: float | None) -> str:
    """Seconds with two digits or three."""
    if value is None:
        return "not reached"
    return (
        f"{value:.3f} s" if value < 0.0995 else f"{value:.2f} s" if value < 10 else f"{value:.0f} s"
    )


def timed(summary: dict[str, float] | None) -> str:
    """Median and spread."""
    if not summary:
        return "not reached"
    low, high = (seconds(summary[k]).removesuffix(" s") for k in ("low", "high"))
    return f"{seconds(summary['median'])} ({low} to {high})"


def megabytes(value: float) -> str:
    """Bytes as MB."""
    return f"{value / 1e6:.0f} MB"


def mean_and_error(counts: Any) -> str:
    """The mean and its standard error."""
    error = statistics.stdev(counts) / len(counts) ** 0.5
    return f"{statistics.mean(counts):.1f} ± {error:.1f}"


def off_by(errors: dict[str, float]) -> str:
    """Errors of the eigenvalues, of the trace, of the density."""
    pairs = 100 * max(errors["top"], errors["bottom"])
    shown = "< 0.01 %" if pairs < 0.01 else f"{pairs:.2g} %"
    return f"{shown}, {100 * errors['trace']:.1f} %, {errors['density']:.3f}"
