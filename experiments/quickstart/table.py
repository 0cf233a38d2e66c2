"""The quickstart's one table: the same rows for trained networks and for a given checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.lib.lab import Runs, Table
from experiments.lib.training.curvature import NUMBERS
from experiments.lib.verdicts.statistics import mean_and_error

if TYPE_CHECKING:
    from experiments.quickstart import Config

RECORDS = {
    "epoch": "epochs",
    "train_loss": "training loss",
    "train_accuracy": "training accuracy",
    "noisy_fit": "wrong labels learned",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
}
TRACES = {"trace": "tr(H)", "trace_K": "tr(K)", "trace_fisher": "tr(F), Fisher information"}
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def table(runs: Runs, config: Config) -> Table:
    """What the arms end with, and of the curvature the last over the first."""
    example = next(iter(runs.values()))
    rows = [
        (label, *(_cell(records[name][:, -1]) for records in runs.values()), "")
        for name, label in RECORDS.items()
        if name in example and (name != "noisy_fit" or config.noise)
    ]
    top, bottom = (example[name].shape[2] for name in ("top", "bottom"))
    for i in range(top):
        label = "λ₁(H), largest eigenvalue" if i == 0 else f"λ{i + 1}(H)".translate(_SUBSCRIPTS)
        rows.append(_row(label, runs, "top", i))
    for i in range(bottom):
        rank = bottom - 1 - i
        label = f"smallest but {rank}" if rank else "smallest eigenvalue of H"
        rows.append((*_row(label, runs, "bottom", i)[:-1], ""))
    rows.append(_row("λ₁(K), gradient covariance", runs, "lambda_K", 0))
    rows += [_row(label, runs, name, 0) for name, label in TRACES.items()]
    columns = ("", *runs, f"{[*runs][-1]} / {next(iter(runs))}")
    if len(runs) == 1:
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table(columns, rows, _caption(runs, config))


def _row(label: str, runs: Runs, name: str, place: int) -> tuple[str, ...]:
    """A row of the curvature: a number of every arm, and the last one over the first."""
    found = [
        records[name][:, -1].reshape(len(records[name]), -1, 2)[:, place]
        for records in runs.values()
    ]
    sign = "±" if name in TRACES else "r"
    cells = [_cell(values[:, 0], values[0, 1], sign) for values in found]
    first, last = (values[:, 0].mean() for values in (found[0], found[-1]))
    return (label, *cells, f"{last / first:.2f}" if first else "")


def _cell(values: np.ndarray, error: float | None = None, sign: str = "±") -> str:
    """Several seeds with the error of their mean, a single one with its own."""
    mean, spread = mean_and_error(values)
    if spread is not None:
        return f"{mean:.4g} ± {spread:.2g}"
    if error is None:
        return f"{mean:.4g}"
    return f"{mean:.4g} ± {error:.2g}" if sign == "±" else f"{mean:.4g} (r {error:.1g})"


def _caption(runs: Runs, config: Config) -> str:
    examples = min(config.curvature.examples, config.train_size)
    wrong = "their wrong labels included, " if config.noise else ""
    text = (
        f"H, K and F are those of the mean loss over {examples} training examples, {wrong}"
        "with dropout off and batch norm at its running averages. r: norm of the "
        "residual |Hv - λv|, with v of length one; an eigenvalue lies within r of the number, "
        "up to rounding. ±: one standard error, of several seeds over them."
    )
    late = [arm for arm, records in runs.items() if not np.all(records.get("reached", True))]
    if late:
        text += (
            f" {' and '.join(late)} ran out of epochs before the training loss {config.stop_loss:g}"
            ", so this is no comparison at the same loss: allow more with --recipe.epochs."
        )
    return text


def ends(runs: Runs, config: Config) -> dict[str, Any]:
    """The same numbers of every seed, for the summary."""
    del config
    found = {}
    for arm, records in runs.items():
        found[arm] = {name: records[name][:, -1] for name in RECORDS if name in records}
        for name in NUMBERS:
            error = "standard_error" if name in TRACES else "residual_norms"
            both = np.moveaxis(records[name][:, -1], -1, 0)
            found[arm][name] = dict(zip(("value", error), both, strict=True))
    return found
