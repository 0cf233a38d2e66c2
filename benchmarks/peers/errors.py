"""How far an answer is from the truth."""

from typing import Any

import numpy as np

# The quantities with their targets: true relative errors; for the density the Wasserstein distance
# in standard deviations of the spectrum, which is the scale of its bulk and not of its outliers.
TARGETS = {
    "top1": (1e-2, 1e-3),
    "top": (1e-2, 1e-3),
    "bottom": (1e-2,),
    "trace": (1e-2, 1e-3),
    "density": (5e-2, 1e-2),
}
ALL_ROUND = {"top": 1e-2, "bottom": 1e-2, "trace": 1e-2, "density": 5e-2}


def targets(short: bool) -> dict[str, tuple[float, ...]]:
    """The errors to be reached, in the short form only the largest of each quantity."""
    return {name: goals[:1] if short else goals for name, goals in TARGETS.items()}


def wasserstein(nodes, weights, other_nodes, other_weights) -> float:
    """The 1-Wasserstein distance of two discrete distributions on the line, each of mass 1."""
    points = np.concatenate([nodes, other_nodes])
    mass = np.concatenate([weights, -np.asarray(other_weights)])
    order = np.argsort(points, kind="stable")
    gaps = np.diff(points[order])
    return float(np.abs(np.cumsum(mass[order])[:-1]) @ gaps)


def errors(answer: dict[str, Any], truth: dict[str, Any]) -> dict[str, float]:
    """The true error of every quantity of an answer; the worst one over several eigenvalues."""
    out = {}
    for name in ("top", "bottom"):
        if answer.get(name) is not None:
            values, exact = np.asarray(answer[name], float), np.asarray(truth[name], float)
            if name == "top":
                out["top1"] = _relative(values[:1], exact[:1])
            if len(values) >= len(exact):
                out[name] = _relative(values[: len(exact)], exact)
    if answer.get("trace") is not None:
        out["trace"] = _relative(np.asarray([answer["trace"]]), np.asarray([truth["trace"]]))
    if answer.get("nodes") is not None:
        mine = np.asarray(answer["nodes"], float), np.asarray(answer["weights"], float)
        distance = wasserstein(*mine, truth["nodes"], truth["weights"])
        out["density"] = distance / float(truth["deviation"])
    return {name: value if np.isfinite(value) else float("inf") for name, value in out.items()}


def _relative(values, exact) -> float:
    return float(np.max(np.abs(values - exact) / np.abs(exact)))


def root_mean_square(samples) -> float:
    """The error of a method over seeds."""
    return float(np.sqrt(np.mean(np.square(samples))))


def summary(samples) -> dict[str, float]:
    """Median and spread of repeated timings."""
    return {
        "median": float(np.median(samples)),
        "low": float(np.min(samples)),
        "high": float(np.max(samples)),
        "runs": len(samples),
    }
