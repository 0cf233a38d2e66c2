"""Plots of spectra and of their course in training."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flatjax.linalg.probing._estimate import Estimate
from flatjax.linalg.probing._quadrature import SpectralDensity
from flatjax.plots._axes import BLUE, CYCLE, axes, check_kind


def plot_density(
    density: SpectralDensity, *, ax: Any = None, label: str | None = None, color: str = BLUE
) -> Any:
    """A spectral density with its band, and the exact eigenvalues as stems.

    The axis of a density on the logarithmic scale is drawn symmetric-logarithmic. The vertical axis
    is logarithmic: the outliers, a share 1/n of the mass each, would not be seen otherwise.

    Args:
      density: from [`spectral_density`][] or [`spectrum`][].
      ax: matplotlib axes; default the current ones.
      label: for the legend.
      color: of the line, the band and the stems.

    Returns:
      The axes.

    Raises:
      ImportError: without matplotlib.
      TypeError: if it is another kind of result.

    Example:
      >>> import jax.numpy as jnp, matplotlib
      >>> matplotlib.use("Agg")
      >>> from flatjax import plots
      >>> from flatjax.linalg.probing._quadrature import density_from_quadrature
      >>> nodes, weights = jnp.array([[0.0, 1.0]]), jnp.array([[0.45, 0.45]])
      >>> exact = jnp.array([5.0]), jnp.array([0.1])
      >>> d = density_from_quadrature(*exact, nodes, weights, dtype=jnp.float32)
      >>> plots.plot_density(d).get_xlabel()
      'eigenvalue'
    """
    check_kind("plot_density", density, SpectralDensity)
    ax = axes(ax)
    grid, value = np.asarray(density.grid, float), np.asarray(density.density, float)
    exact = np.asarray(density.atoms, float)[: density.num_exact]
    positive = value[value > 0]
    floor = positive.max() * 1e-6 if positive.size else 1e-6
    low, high = np.maximum(np.asarray(density.band, float), floor)
    ax.plot(grid, np.maximum(value, floor), color=color, label=label)
    if np.all(np.isfinite(high)):
        ax.fill_between(grid, low, high, color=color, alpha=0.2, linewidth=0)
    if exact.size:
        height = np.interp(exact, grid, np.maximum(value, floor))
        ax.vlines(exact, floor, height, color=color, alpha=0.6, linewidth=0.8)
        ax.plot(exact, height, "o", color=color, markersize=3)
    steps = np.diff(grid)
    if steps.max() > 10 * steps.min():  # the grid of a logarithmic axis
        ax.set_xscale("symlog", linthresh=float(np.abs(grid).max()) * 1e-4)
    ax.set_yscale("log")
    ax.set_ylim(bottom=floor)
    ax.set_xlabel("eigenvalue")
    ax.set_ylabel("density")
    if label is not None:
        ax.legend()
    return ax


def plot_trajectories(
    history: Mapping[str, Any],
    *,
    threshold: Any = None,
    threshold_label: str = r"$2/\eta$",
    ax: Any = None,
    labels: Any = None,
) -> Any:
    """Eigenvalues along training, with their residuals, against a stability threshold.

    Values that have not converged are no part of the lines: they are faint circles, by themselves.

    Args:
      history: ``steps`` of shape ``(s,)``, ``values`` of shape ``(s, k)`` and, if there,
        ``residual_norms`` and ``converged`` of shape ``(s, k)``: the ``history`` of a tracker's
        callback.
      threshold: a number, or one per step, such as [`stability_threshold`][]; drawn dashed.
      threshold_label: its name in the legend.
      ax: matplotlib axes; default the current ones.
      labels: the names of the ``k`` values.

    Returns:
      The axes.

    Raises:
      ImportError: without matplotlib.
      ValueError: if there are other numbers of steps and of values, or a field of another shape.

    Example:
      >>> import matplotlib
      >>> matplotlib.use("Agg")
      >>> from flatjax import plots
      >>> history = {"steps": [0, 1, 2], "values": [[1.0], [3.0], [4.1]]}
      >>> plots.plot_trajectories(history, threshold=4.0).get_xlabel()
      'step'
    """
    ax = axes(ax)
    steps, values = np.asarray(history["steps"]), np.asarray(history["values"], float)
    values = values.reshape(len(values), -1)
    if len(steps) != len(values):
        raise ValueError(f"history has {len(steps)} steps and {len(values)} rows of values.")
    # Without residuals no band, and without a verdict every value counts.
    residuals = _like(values, history, "residual_norms", np.nan)
    converged = _like(values, history, "converged", 1.0) > 0
    for i, column in enumerate(values.T):
        color = CYCLE[i % len(CYCLE)]
        name = rf"$\lambda_{{{i + 1}}}$" if labels is None else labels[i]
        line = np.where(converged[:, i], column, np.nan)
        ax.plot(steps, line, color=color, label=name)
        low, high = line - residuals[:, i], line + residuals[:, i]
        if np.isfinite(low).any():
            ax.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
    rows, columns = np.nonzero(~converged & np.isfinite(values))
    if rows.size:
        colors = [CYCLE[i % len(CYCLE)] for i in columns]
        ax.scatter(
            steps[rows], values[rows, columns], s=12, facecolors="none", edgecolors=colors,
            alpha=0.5, label="not converged",
        )  # fmt: skip
    if threshold is not None:
        line = np.broadcast_to(np.asarray(threshold, float), steps.shape)
        ax.plot(steps, line, "--", color="black", linewidth=1, label=threshold_label)
    ax.set_xlabel("step")
    ax.set_ylabel("eigenvalue")
    ax.legend()
    return ax


def _like(values: np.ndarray, history: Mapping[str, Any], name: str, default: float) -> np.ndarray:
    """A field of a history, of the shape of its values."""
    if history.get(name) is None:
        return np.full(values.shape, default)
    field = np.asarray(history[name], float)
    if field.size != values.size:
        raise ValueError(f"{name} of history has shape {field.shape}, its values {values.shape}.")
    return field.reshape(values.shape)


def plot_layers(layers: Mapping[Any, Any], *, per_param: bool = False, ax: Any = None) -> Any:
    """The trace of every layer as a bar with its confidence interval.

    Args:
      layers: by name, an [`Estimate`][] or an object with ``trace`` and ``size``, as in the
        ``layers`` of a [`Spectrum`][].
      per_param: divide by the number of params: the mean eigenvalue of the block.
      ax: matplotlib axes; default the current ones.

    Returns:
      The axes.

    Raises:
      ImportError: without matplotlib.
      ValueError: for ``per_param`` of bare estimates, which know no size.

    Example:
      >>> import jax.numpy as jnp, matplotlib
      >>> matplotlib.use("Agg")
      >>> from flatjax import linalg, plots
      >>> one = linalg.Estimate(jnp.float32(3), jnp.float32(1), jnp.array([1.0, 5.0]), 10, True)
      >>> [text.get_text() for text in plots.plot_layers({"head": one}).get_yticklabels()]
      ['head']
    """
    ax = axes(ax)
    names = list(layers)
    centres, ends = [], []
    for name in names:
        layer = layers[name]
        estimate = layer if isinstance(layer, Estimate) else layer.trace
        if per_param and isinstance(layer, Estimate):
            raise ValueError("per_param needs the sizes: pass the `layers` of a Spectrum.")
        divisor = layer.size if per_param else 1
        centres.append(float(estimate.value) / divisor)
        ends.append(np.asarray(estimate.interval, float) / divisor)
    centre, interval = np.asarray(centres), np.asarray(ends)
    errors = np.abs(interval.T - centre[None])
    rows = np.arange(len(names))[::-1]
    ax.barh(rows, centre, xerr=errors, color=BLUE, ecolor="black", capsize=2)
    ax.set_yticks(rows, [str(name) for name in names])
    ax.set_xlabel("mean eigenvalue" if per_param else "trace")
    return ax
