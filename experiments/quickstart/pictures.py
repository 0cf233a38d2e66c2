"""The quickstart's figures; every seed is a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.lib.lab import Runs
from experiments.lib.training.curvature import NUMBERS
from experiments.lib.verdicts.curves import words
from experiments.lib.verdicts.figures import band, reference, style

if TYPE_CHECKING:
    from experiments.quickstart import Config


def overview(axes: Any, runs: Runs, config: Config) -> None:
    """Sharpness along training, spectral densities, losses along the top eigenvectors."""
    sharpness, densities, line = axes
    _along(sharpness, runs, "top")
    reference(sharpness, 2 / config.rate, "2/η")
    sharpness.set(title="Sharpness along training", ylabel=words("sharpness"), yscale="log")
    _densities(densities, runs)
    _line(line, runs, "top_eigenvector")


def training(axes: Any, runs: Runs, config: Config) -> None:
    """Loss, accuracy and memorisation along training."""
    names = ("train_loss", "test_accuracy", "noisy_fit" if config.noise else "test_loss")
    for panel, name in zip(axes, names, strict=True):
        _along(panel, runs, name)
        panel.set_ylim(0, None if name.endswith("loss") else 1.02)
    reference(axes[0], config.stop_loss, "both stop here", at="left")


def curvature(axes: Any, runs: Runs, config: Config) -> None:
    """Eigenvalues and traces along training."""
    for number, (panel, (arm, records)) in enumerate(zip(axes[0], runs.items(), strict=False)):
        for end, kind, dashes in (("top", "largest", "-"), ("bottom", "smallest", ":")):
            for seed, values in enumerate(records[end][..., 0]):
                look = style(number) | {"linestyle": dashes}
                lines = panel.plot(records["measured"][seed], values, **look)
                lines[0].set_label(f"{values.shape[1]} {kind}" if seed == 0 else None)
        panel.set_yscale("symlog", linthresh=1.0, linscale=0.6)
        panel.axhline(0, color="#555555", linewidth=0.8)
        reference(panel, 2 / config.rate, "2/η")
        panel.set(title=arm, xlabel="epoch", ylabel="eigenvalue of $H$")
        panel.legend(loc="center right", bbox_to_anchor=(1.0, 0.42))
    names = ("trace", "trace_fisher", "trace_K", "lambda_K")
    for panel, name in zip((axes[0][2], *axes[1]), names, strict=True):
        _along(panel, runs, name)
        panel.set_ylim(bottom=0)


def random_direction(axes: Any, runs: Runs, config: Config) -> None:
    """The loss along a random direction."""
    del config
    _line(axes, runs, "random")


def state(axes: Any, runs: Runs, config: Config) -> None:
    """The surroundings of one state."""
    del config
    _densities(axes[0], runs)
    _line(axes[1], runs, "top_eigenvector")
    _line(axes[2], runs, "random")


def _each(runs: Runs, *names: str) -> Iterator[tuple[Any, ...]]:
    """Every seed of every arm: the arm's number, its label the first time, and the records."""
    for number, (arm, records) in enumerate(runs.items()):
        for seed, values in enumerate(zip(*(records[name] for name in names), strict=True)):
            yield number, None if seed else arm, *values


def _along(panel: Any, runs: Runs, name: str) -> None:
    """A record along training; of the `NUMBERS` the first value, with two errors."""
    measured = name in NUMBERS
    for number, label, x, values in _each(runs, "measured" if measured else "epoch", name):
        rows = values.reshape(len(values), -1)
        panel.plot(x, rows[:, 0], label=label, **style(number, markers=measured))
        if measured:
            band(panel, x, rows[:, 0], rows[:, 1], number)
    panel.set(xlabel="epoch", ylabel=words(name))
    panel.legend()


def _densities(panel: Any, runs: Runs) -> None:
    highest = max(records["density"][:, 1].max() for records in runs.values())
    for number, label, (grid, density, low, high) in _each(runs, "density"):
        look = style(number, markers=False)
        panel.plot(grid, density, label=label, **look)
        ends = np.clip((low, high), 0, 10 * highest)  # of a single probe the band is infinite
        panel.fill_between(grid, *ends, color=look["color"], alpha=0.2, linewidth=0)
    # A logarithmic axis: single eigenvalues would not be seen otherwise.
    panel.set(yscale="log", ylim=(1e-6 * highest, 5 * highest))
    panel.set(title="Spectral density of $H$", xlabel="eigenvalue", ylabel="density")
    panel.legend()


def _line(panel: Any, runs: Runs, name: str) -> None:
    for number, label, (positions, losses) in _each(runs, name):
        panel.plot(positions, losses, label=label, **style(number, markers=False))
    titles = {
        "top_eigenvector": ("Loss along the top eigenvector", "distance in parameter space"),
        "random": ("Loss along a random direction", "filter-normalised distance"),
    }
    title, xlabel = titles[name]
    panel.set(title=title, xlabel=xlabel, ylabel="mean loss")
    panel.legend(loc="upper center")
