"""Plots of ensembles: the power laws of their losses."""

from typing import Any

import numpy as np
from jax.typing import ArrayLike

from flatjax.ensembles._power_laws import PowerLaw, best_linear
from flatjax.plots._axes import BLUE, axes, check_kind


def plot_power_law(
    law: PowerLaw,
    sizes: ArrayLike,
    *,
    errors: ArrayLike | None = None,
    span: tuple[float, float] | None = None,
    ax: Any = None,
    label: str | None = None,
    color: str = BLUE,
) -> Any:
    """A power law with the values it was fitted to, its band and its offset, on log axes.

    The values are circles, with bars of two standard deviations where the errors are given. The
    band lies between the laws of the two ends of the exponent's interval, offset and scale fitted
    anew for each: inside the values it is narrow, beyond them it says what they leave open. An
    open end of the interval has no law of its own and the band ends at the law there. The offset,
    to which a falling law descends, is dotted; one that is not positive has no place on the axis.

    Args:
      law: from [`fit_power_law`][].
      sizes: those it was fitted to, shape ``(k,)``; the values follow from its residuals.
      errors: the errors it was fitted with, shape ``(k,)``.
      span: the smallest and the largest size at which the law is drawn; default those fitted to.
      ax: matplotlib axes; default the current ones.
      label: for the legend.
      color: of all of it.

    Returns:
      The axes.

    Raises:
      ImportError: without matplotlib.
      TypeError: if it is another kind of result.
      ValueError: if sizes, errors and the law's residuals are of different numbers, or the span is
        not one of positive sizes.

    Example:
      >>> import numpy as np, matplotlib.figure
      >>> import flatjax
      >>> from flatjax import plots
      >>> n = np.array([1.0, 2.0, 4.0, 8.0])
      >>> law = flatjax.fit_power_law(n, 0.3 + 0.2 / n)
      >>> ax = matplotlib.figure.Figure().add_subplot()
      >>> plots.plot_power_law(law, n, span=(1, 100), ax=ax).get_xscale()
      'log'
    """
    check_kind("plot_power_law", law, PowerLaw)
    ax = axes(ax)
    n, residuals = np.asarray(sizes, float), np.asarray(law.residuals, float)
    deviations = None if errors is None else np.asarray(errors, float)
    for name, given in (("sizes", n), ("errors", deviations)):
        if given is not None and given.shape != residuals.shape:
            raise ValueError(
                f"{name} must be those of the fit, of shape {residuals.shape}, got {given.shape}."
            )
    low, high = (n.min(), n.max()) if span is None else span
    if not 0 < low < high:
        raise ValueError(f"span must be two positive sizes, the smaller one first, got {span}.")
    grid = np.geomspace(low, high, 200)
    values, drawn = _at(law, n) + residuals, _at(law, grid)
    ax.plot(grid, drawn, color=color, label=label)
    ends = [
        _refitted(float(a), n, values, deviations, grid)
        for a in np.asarray(law.interval)
        if np.isfinite(a)
    ]
    edges = np.stack([drawn, *ends])
    ax.fill_between(grid, edges.min(0), edges.max(0), color=color, alpha=0.2, linewidth=0)
    bars = None if deviations is None else 2 * deviations
    ax.errorbar(n, values, bars, fmt="o", color=color, markersize=4, capsize=2)
    if float(law.offset) > 0:
        ax.axhline(float(law.offset), color=color, linestyle=":", linewidth=1)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("size")
    ax.set_ylabel("loss")
    if label is not None:
        ax.legend()
    return ax


def _at(law: PowerLaw, sizes: np.ndarray) -> np.ndarray:
    """The law at these sizes, in float64."""
    return float(law.offset) + float(law.scale) * sizes ** float(law.exponent)


def _refitted(
    exponent: float, sizes: np.ndarray, values: np.ndarray, errors: np.ndarray | None, at: Any
) -> np.ndarray:
    """The closest law of a given exponent, at some sizes."""
    weights = np.ones_like(values) if errors is None else errors**-2
    _, offset, scale = best_linear(np.array([exponent]), np.log(sizes), values, weights)
    return offset + scale * at**exponent
