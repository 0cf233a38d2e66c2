"""The figures: growth of curvature and noise, the paths of the predictions, batch norm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.break_even_point.conjectures import LEARNED, QUANTITIES, break_even, roles, smooth
from experiments.break_even_point.training import Records, arms
from experiments.lib.verdicts.figures import figure, style

if TYPE_CHECKING:
    from experiments.break_even_point import Config


def draw_growth(path: Path, config: Config, records: dict[str, Records]) -> None:
    """lambda_H, lambda_K and tr K along training, mean over seeds of every arm."""
    with figure(path, 1, 3, panel=(4.0, 3.2)) as panels:
        for axes, (quantity, words) in zip(panels, QUANTITIES.values(), strict=False):
            for number, (name, arm) in enumerate(arms(config).items()):
                if arm.batch_norm:
                    continue
                r = records[name]
                axes.plot(
                    r["steps"] * arm.rate,
                    np.mean([smooth(row) for row in r[quantity]], 0),
                    **style(number, markers=False),
                    label=str(arm),
                )
            axes.set(xlabel="steps x learning rate", ylabel=words, xscale="log", yscale="log")
        panels[0].legend(fontsize=7)


def draw_norm(path: Path, config: Config, records: dict[str, Records]) -> None:
    """lambda_H, lambda_K and tr K of batch gradients, with and without batch normalisation."""
    fast, slow, _, _, norm_fast, norm_slow = roles(config)
    panels_of = [QUANTITIES[name] for name in ("lambda-h", "lambda-b", "trace-b")]
    with figure(path, 1, 3, panel=(4.0, 3.2)) as panels:
        for axes, (quantity, words) in zip(panels, panels_of, strict=True):
            for number, name in enumerate((fast, slow, norm_fast, norm_slow)):
                accuracy, values = (
                    np.mean([smooth(row) for row in records[name][of]], 0)
                    for of in ("accuracy", quantity)
                )
                shown = accuracy < LEARNED
                axes.plot(
                    accuracy[shown],
                    values[shown],
                    **style(number, markers=False),
                    label=str(arms(config)[name]),
                )
            axes.set(xlabel="training accuracy", ylabel=words, yscale="log")
        panels[0].legend(fontsize=7)


def draw_paths(path: Path, config: Config, records: dict[str, Records]) -> None:
    """The predictions of the first seed along training in two principal components."""
    fast, slow = roles(config)[:2]
    both = [records[name]["predictions"][0].astype(np.float32) for name in (fast, slow)]
    rows = np.concatenate([x.reshape(len(x), -1) for x in both])
    centred = rows - rows.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    plane = (left * values)[:, :2]
    cuts = [plane[: len(both[0])], plane[len(both[0]) :]]
    with figure(path, 1, 2, panel=(4.6, 3.4)) as panels:
        for axes, (quantity, words) in zip(
            panels, (("lambda_K", "lambda_K"), ("accuracy", "training accuracy")), strict=True
        ):
            shown = None
            top = max(smooth(records[n]["lambda_K"][0]).max() for n in (fast, slow))
            for name, points, marker in zip((fast, slow), cuts, ("o", "^"), strict=True):
                values = records[name][quantity][0]
                shown = axes.scatter(
                    *points.T,
                    c=values,
                    marker=marker,
                    s=14,
                    cmap="viridis",
                    vmin=0,
                    vmax=top if quantity == "lambda_K" else 1,
                    label=name.replace("_", " "),
                )
            at = break_even(records[slow], records[fast], 0)
            if at is not None:
                axes.plot(*cuts[1][at], marker="x", color="#D55E00", markersize=9, linestyle="none")
            axes.figure.colorbar(shown, ax=axes, label=words)
            axes.set(xlabel="first component", ylabel="second component")
            axes.legend()
