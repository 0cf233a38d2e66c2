"""The figures: stiffness along training, and the minima below their bounds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.lib.verdicts.curves import curve
from experiments.lib.verdicts.figures import figure, style

if TYPE_CHECKING:
    from experiments.stiffness import Config


Found = dict[str, dict[str, np.ndarray]]


def draw_stiffness(path: Path, config: Config, training: list[dict[str, np.ndarray]]) -> None:
    """Stiffness along training, and the class blocks at the end."""
    with figure(path, 1, 3, panel=(3.8, 3.1), dpi=90) as (left, middle, right):
        for number, (rate, records) in enumerate(zip(config.rates, training, strict=True)):
            epochs = records["epoch"][0]
            for panel, prefix in ((left, "cos"), (middle, "sign")):
                curve(panel, epochs, records[f"{prefix}_within"], number, f"within, eta {rate:g}")
                curve(panel, epochs, records[f"{prefix}_between"], number + 2,
                      f"between, eta {rate:g}")  # fmt: skip
            if number == 0:
                curve(left, epochs, records["test_cos_within"], 4, "within, train and test")
        left.set(title="cosine of gradients", xlabel="epoch")
        middle.set(title="sign of inner products", xlabel="epoch")
        left.legend(fontsize=7)
        blocks = training[0]["classes"][:, -1].mean(0)
        image = right.imshow(blocks, cmap="cividis")
        right.grid(False)
        right.set(title="cosine by classes, at the end", xticks=range(0, 10, 3))
        right.figure.colorbar(image, ax=right)


def draw_minima(path: Path, config: Config, minima: Found) -> None:
    """Sharpness and non-uniformity of all minima, with the stability bounds."""
    with figure(path, 1, len(config.stable_rates), panel=(4.2, 3.2), dpi=90) as axes:
        for column, eta in enumerate(config.stable_rates):
            panel = axes[column]
            for number, (size, end) in enumerate(minima.items()):
                options = {**style(number), "linestyle": "none"}
                x, y = end["sharpness"][:, column], end["non_uniformity"][:, column]
                panel.plot(x, y, label=f"batches of {size}", **options)
                b, n = int(size), config.stable_size
                share = (n - b) / (b * (n - 1))
                if share > 0:
                    a = np.linspace(0, 2 / eta, 200)
                    room = np.sqrt(np.maximum(1 - (1 - eta * a) ** 2, 0) / share) / eta
                    panel.plot(a, room, **{**style(number, markers=False), "linewidth": 1})
            panel.axvline(2 / eta, color="#555555", linewidth=1, linestyle=":")
            values = np.concatenate([end["sharpness"][:, column] for end in minima.values()])
            heights = np.concatenate([end["non_uniformity"][:, column] for end in minima.values()])
            panel.set(
                xlabel="sharpness", ylabel="non-uniformity", title=f"eta = {eta:g}",
                xlim=(0, 1.3 * values.max()), ylim=(0, 1.5 * heights.max()),
            )  # fmt: skip
        axes[0].legend(fontsize=8)
