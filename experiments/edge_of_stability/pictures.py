"""The figures: sharpness against the edge, and the quadratic model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.verdicts.figures import COLORS, figure, reference, style

LABELS = {
    "gd": "gradient descent",
    "gd_slower": "gradient descent, smaller step",
    "polyak": "heavy ball",
    "nesterov": "Nesterov",
    "adam": "Adam (preconditioned)",
    "sgd": "SGD",
    "cross_entropy": "cross-entropy, wrong labels",
}


def draw_edge(path: Path, ratios: Mapping[str, np.ndarray], flow: np.ndarray, every: int) -> None:
    """Sharpness over the threshold of every arm and of gradient flow; every seed a line."""
    groups = (("gd", "gd_slower", "sgd"), ("polyak", "nesterov", "adam", "cross_entropy"))
    with figure(path, 1, 2, sharey=True, panel=(4.6, 3.4)) as panels:
        for axes, names in zip(panels, groups, strict=True):
            for number, name in enumerate(n for n in names if n in ratios):
                _lines(axes, ratios[name], every, number, LABELS[name])
            reference(axes, 1.0, "edge of stability")
            axes.set(xlabel="step", ylim=(0, 2.2))
        _lines(panels[0], flow, every, 3, "gradient flow")
        panels[0].set_ylabel("sharpness / threshold")
        for axes in panels:
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="upper right")


def _lines(axes: Any, ratio: np.ndarray, every: int, number: int, label: str) -> None:
    steps = every * np.arange(1, ratio.shape[1] + 1)
    look = style(number, markers=False) | {"linewidth": 1.1}
    for seed, row in enumerate(ratio):
        axes.plot(steps, row, **look, label=label if seed == 0 else None)


def draw_model(path: Path, before: np.ndarray, edge: np.ndarray) -> None:
    """Loss and quadratic model from a point before the edge and from one at it."""
    with figure(path, 1, 2, panel=(4.6, 3.0)) as panels:
        titles = ("from a point before the edge", "from a point at the edge")
        for axes, values, title in zip(panels, (before, edge), titles, strict=True):
            for number, (name, index) in enumerate((("loss", 0), ("quadratic model", 1))):
                for seed, row in enumerate(values[:, index]):
                    look = {"color": COLORS[number], "linestyle": ("-", "--")[number]}
                    axes.plot(np.abs(row), **look, label=name if seed == 0 else None)
            axes.set(xlabel="steps from there", yscale="log", title=title)
            axes.legend()
        panels[0].set_ylabel("loss")
