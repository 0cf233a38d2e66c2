"""Curves and points over seeds: the mean, with two standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.lib.verdicts.figures import style
from experiments.lib.verdicts.statistics import mean_and_error

_WORDS = {
    "hessian_eigenvalue": r"$\lambda_1(H)$",
    "sharpness": r"$\lambda_1(H)$",
    "trace": r"tr $H$",
    "trace_fisher": r"tr $F$",
    "noisy_fit": "wrong labels fitted",
    "clean_fit": "right labels fitted",
    "noisy_recovered": "wrong labels corrected",
    "norm": r"$|w|$",
    "sam_sharpness": "SAM sharpness",
    "frobenius": r"$\|H\|_F$",
    "eta*": r"$\eta^*$",
    "GP_x": r"GP$_x$",
    "GP_r": r"GP$_r$",
    "lambda_H": r"$\lambda_H$",
    "lambda_K": r"$\lambda_K$",
    "trace_K": "tr $K$",
    "lambda_B": r"$\lambda_K$ of batch gradients",
    "trace_B": "tr $K$ of batch gradients",
    "accuracy": "training accuracy",
    "time": "steps times learning rate",
    "train_loss": "training loss",
    "train_accuracy": "training accuracy",
}


def words(record: str) -> str:
    """What the axis of a record says, or the legend of an arm."""
    return _WORDS.get(record, record.replace("_", " "))


def curve(axes: Any, x: Any, values: Any, number: int, label: str = "", **options: Any) -> None:
    """Draws the mean of `values` (seeds, points) over `x`; on a logarithmic axis the geometric."""
    values = np.asarray(values, float)
    options = {**style(number, markers=False), **options}
    log = axes.get_yscale() == "log"
    if log:  # or the band reaches to zero where the seeds differ by factors
        values = np.log(np.where(values > 0, values, np.nan))
    back = np.exp if log else np.asarray
    mean = values.mean(0)
    axes.plot(x, back(mean), label=label or None, **options)
    if len(values) > 1:
        reach = 2 * values.std(0, ddof=1) / np.sqrt(len(values))
        low, high = back(mean - reach), back(mean + reach)
        axes.fill_between(x, low, high, color=style(number)["color"], alpha=0.18, linewidth=0)


def points(axes: Any, labels: Sequence[str], values: Sequence[Any], number: int, name: str = ""):
    """One point an arm with two standard errors, and every seed beside it."""
    chosen = style(number)
    for i, v in enumerate(values):
        mean, error = mean_and_error(v)
        axes.errorbar(
            i, mean, yerr=2 * (error or 0.0), capsize=4, color=chosen["color"],
            marker=chosen["marker"], linestyle="none", label=name if i == 0 and name else None,
        )  # fmt: skip
        axes.plot(np.full(len(v), i + 0.2), v, ".", color=chosen["color"], alpha=0.5)
    axes.set_xticks(range(len(labels)), labels)
