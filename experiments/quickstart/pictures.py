"""The quickstart's figures, from what its runs wrote down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.lib.verdicts import figures
from experiments.quickstart.table import NAMES, Run

CAPTIONS = {
    "overview.png": (
        "Left: the largest Hessian eigenvalue along training; gradient descent of this step size η "
        "is unstable in directions of curvature above 2/η. Middle: the Hessian's spectral "
        "density at the end, both smoothed alike. Right: the loss along the top eigenvector, of "
        "length one."
    ),
    "training.png": (
        "Left: loss over the training set, wrong labels included, down to the loss at which both "
        "stop. Middle: test accuracy. Right: the fraction of the wrong labels that the network "
        "predicts, learned by heart."
    ),
    "eigenvalues.png": (
        "The largest and the smallest eigenvalues of the Hessian along training, on an axis that "
        "is linear near zero and logarithmic beyond."
    ),
    "traces.png": (
        "Traces of the Hessian H, the Fisher information F and the gradient covariance K, and the "
        "largest eigenvalue of K. Bands: two standard errors."
    ),
    "density.png": (
        "The Hessian's spectral density at the end: the share of the eigenvalues per unit length. "
        "Narrow peaks are single eigenvalues, known by themselves; the rest is by stochastic "
        "Lanczos quadrature, with a 95 % band."
    ),
    "landscape.png": (
        "The loss along lines through the final parameters. Left: the top eigenvector, of length "
        "one. Right: a filter-normalised random direction (Li et al. 2018), in multiples of the "
        "weights."
    ),
}
"""Every figure by its file, with its caption; a single checkpoint has the last two only."""

SINGLE = ("density.png", "landscape.png")


class Marks(NamedTuple):
    """Lines to draw beside the curves.

    Attributes:
      stop_train_loss: the training loss at which both stop.
      stable: the largest curvature at which plain gradient descent of this step size is stable.
    """

    stop_train_loss: float | None = None
    stable: float | None = None


def draw_all(folder: Path, runs: Sequence[Run], marks: Marks) -> list[Path]:
    """Draws what can be drawn of these runs, in the order of `CAPTIONS`."""
    folder.mkdir(parents=True, exist_ok=True)
    along = all(run.curvature for run in runs)
    if along:
        _overview(folder / "overview.png", runs, marks)
        _training(folder / "training.png", runs, marks)
        _eigenvalues(folder / "eigenvalues.png", runs, marks)
        _traces(folder / "traces.png", runs)
    _density_figure(folder / "density.png", runs)
    _landscape(folder / "landscape.png", runs)
    return [folder / name for name in CAPTIONS if along or name in SINGLE]


def _numbered(runs: Sequence[Run]) -> list[tuple[Run, int, str | None]]:
    """Each run with its arm's number, and a label for the first of each arm."""
    arms = list(dict.fromkeys(run.arm for run in runs))
    seen: set[str] = set()
    result = []
    for run in runs:
        label = None if run.arm in seen else NAMES[run.arm]
        seen.add(run.arm)
        result.append((run, arms.index(run.arm), label))
    return result


def _states(run: Run) -> list[Mapping[str, Any]]:
    """The measured states in order, the final one last and once."""
    final = run.final["step"]
    return [row for row in run.curvature if row["step"] < final] + [run.final]


def _steps(run: Run) -> list[int]:
    return [state["step"] for state in _states(run)]


def _overview(path: Path, runs: Sequence[Run], marks: Marks) -> None:
    with figures.figure(path, 1, 3) as (left, middle, right):
        _largest(left, runs, marks)
        _densities(middle, runs)
        _line(right, runs, "top_eigenvector")


def _largest(axes: Any, runs: Sequence[Run], marks: Marks) -> None:
    for run, number, label in _numbered(runs):
        values = [state["hessian"]["top"]["values"][0] for state in _states(run)]
        axes.plot(_steps(run), values, label=label, **figures.style(number))
    if marks.stable is not None:
        figures.reference(axes, marks.stable, "2/η")
    axes.set(title="Sharpness along training", xlabel="updates", ylabel="largest eigenvalue of H")
    axes.set_yscale("log")
    axes.legend()


def _training(path: Path, runs: Sequence[Run], marks: Marks) -> None:
    panels = [
        ("train_loss", "Training loss", "mean loss"),
        ("test_accuracy", "Test accuracy", "fraction right"),
    ]
    if "train_memorized" in runs[0].evaluations[-1]:
        panels.append(("train_memorized", "Wrong labels learned", "fraction predicted"))
    with figures.figure(path, 1, len(panels)) as row:
        for axes, (name, title, ylabel) in zip(row, panels, strict=True):
            for run, number, label in _numbered(runs):
                steps = [evaluation["step"] for evaluation in run.evaluations]
                curve = [evaluation[name] for evaluation in run.evaluations]
                axes.plot(steps, curve, label=label, **figures.style(number, markers=False))
            axes.set(title=title, xlabel="updates", ylabel=ylabel)
            axes.set_ylim(0, None if name == "train_loss" else 1.02)
            axes.legend()
        if marks.stop_train_loss is not None:
            figures.reference(row[0], marks.stop_train_loss, "both stop here", at="left")


def _eigenvalues(path: Path, runs: Sequence[Run], marks: Marks) -> None:
    arms = list(dict.fromkeys(run.arm for run in runs))
    with figures.figure(path, 1, len(arms), sharey=True, squeeze=False) as (panels,):
        for run, number, label in _numbered(runs):
            axes, style = panels[number], figures.style(number)
            for end, dashes in (("top", "-"), ("bottom", ":")):
                values = np.array([state["hessian"][end]["values"] for state in _states(run)])
                for i, curve in enumerate(values.T):
                    kind = f"{values.shape[1]} {'largest' if end == 'top' else 'smallest'}"
                    shown = kind if label and i == 0 else None
                    axes.plot(_steps(run), curve, label=shown, **style | {"linestyle": dashes})
            axes.set(title=NAMES[run.arm], xlabel="updates")
        for axes in panels:
            axes.set_yscale("symlog", linthresh=1.0, linscale=0.6)
            axes.axhline(0, color="#555555", linewidth=0.8)
            if marks.stable is not None:
                figures.reference(axes, marks.stable, "2/η")
            axes.legend(loc="center right", bbox_to_anchor=(1.0, 0.42))
        panels[0].set_ylabel("eigenvalue of H")


def _traces(path: Path, runs: Sequence[Run]) -> None:
    with figures.figure(path, 2, 2, sharex=True) as grid:
        for matrix, symbol, axes in zip(
            ("hessian", "fisher", "covariance"), "HFK", (grid[0, 0], grid[0, 1], grid[1, 0]),
            strict=True,
        ):  # fmt: skip
            for run, number, label in _numbered(runs):
                found = [state[matrix]["trace"] for state in _states(run)]
                values = [estimate["value"] for estimate in found]
                errors = [estimate["standard_error"] for estimate in found]
                axes.plot(_steps(run), values, label=label, **figures.style(number))
                figures.band(axes, _steps(run), values, errors, number)
            axes.set(title=f"tr({symbol})", ylabel="trace")
        for run, number, label in _numbered(runs):
            values = [state["covariance"]["top"]["values"][0] for state in _states(run)]
            grid[1, 1].plot(_steps(run), values, label=label, **figures.style(number))
        grid[1, 1].set(title="Largest eigenvalue of K", ylabel="eigenvalue")
        for axes in grid.flat:
            axes.set_ylim(bottom=0)
            axes.legend()
        for axes in grid[1]:
            axes.set_xlabel("updates")


def _densities(axes: Any, runs: Sequence[Run]) -> None:
    """All runs in one panel, smoothed alike: by a hundredth of the largest eigenvalue."""
    found = [run.final["density"] for run in runs]
    atoms = [np.array(density["atoms"], float) for density in found]
    low, high = min(a.min() for a in atoms), max(a.max() for a in atoms)
    width = 0.01 * max(abs(low), abs(high))
    grid = np.linspace(low - 4 * width, high + 4 * width, 1000)
    curves = []
    for (_, number, label), density, nodes in zip(_numbered(runs), found, atoms, strict=True):
        bumps = np.exp(-0.5 * ((grid[:, None] - nodes) / width) ** 2)
        curves.append(bumps @ np.array(density["weights"]) / (width * np.sqrt(2 * np.pi)))
        axes.plot(grid, curves[-1], label=label, **figures.style(number, markers=False))
    _log_density(axes, runs, float(np.max(curves)), float(np.ptp(grid)))
    axes.set(title="Spectral density of H", xlabel="eigenvalue", ylabel="density")
    axes.legend()


def _log_density(axes: Any, runs: Sequence[Run], highest: float, span: float) -> None:
    """A logarithmic axis down to a little below what a single eigenvalue makes."""
    parameters = max(run.final["parameters"] for run in runs)
    axes.set_yscale("log")
    axes.set_ylim(1 / parameters / span, 5 * highest)


def _density_figure(path: Path, runs: Sequence[Run]) -> None:
    arms = list(dict.fromkeys(run.arm for run in runs))
    shape = {"sharex": True, "sharey": True, "squeeze": False, "panel": (7.5, 2.6)}
    with figures.figure(path, len(arms), 1, **shape) as panels:
        highest, span = 0.0, 0.0
        for run, number, _ in _numbered(runs):
            axes, density = panels[number, 0], run.final["density"]
            grid, values = np.array(density["grid"]), np.array(density["density"])
            low, high = np.array(density["band"], float)
            color = figures.COLORS[number]
            axes.fill_between(grid, low, high, color=color, alpha=0.25, linewidth=0)
            axes.plot(grid, values, color=color, linewidth=1.2)
            axes.set(title=f"{NAMES[run.arm]}: spectral density of H", ylabel="density")
            highest, span = max(highest, values.max()), max(span, np.ptp(grid))
        for axes in panels[:, 0]:
            _log_density(axes, runs, highest, span)
        panels[-1, 0].set_xlabel("eigenvalue")


def _line(axes: Any, runs: Sequence[Run], direction: str) -> None:
    for run, number, label in _numbered(runs):
        line = run.final["lines"][direction]
        losses = np.array(line["losses"], float)
        axes.plot(line["positions"], losses, label=label, **figures.style(number, markers=False))
    titles = {
        "top_eigenvector": ("Loss along the top eigenvector", "distance in parameter space"),
        "random": ("Loss along a random direction", "filter-normalised distance"),
    }
    title, xlabel = titles[direction]
    axes.set(title=title, xlabel=xlabel, ylabel="mean loss")
    axes.legend(loc="upper center")


def _landscape(path: Path, runs: Sequence[Run]) -> None:
    with figures.figure(path, 1, 2) as (left, right):
        _line(left, runs, "top_eigenvector")
        _line(right, runs, "random")
