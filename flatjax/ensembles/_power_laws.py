"""Power laws with an offset, fitted to measured values."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _reading as reading
from flatjax.ensembles._host import as_float64
from flatjax.linalg.probing._estimate import quiet, student

_GRID = 100  # exponents of each sign that are looked at before the best is refined
_VANISHING = (
    30.0  # a power that falls by exp(-30) to the next size is a step, whatever its exponent
)
_NORMAL = 3.8414588  # the 95 % quantile of chi-squared with one degree of freedom


@reading.readable
class PowerLaw(NamedTuple):
    """A fitted power law; calling it with sizes gives the values there.

    Attributes:
      offset: the value that is left where the power vanishes.
      scale: the factor of the power.
      exponent: that of the size; negative where the values fall to the offset.
      interval: the 95 % profile interval of the exponent, ``(2,)``; infinite on a side on which the
        values do not bound it.
      residuals: the values less the law, ``(k,)``.
      converged: whether there is a best exponent, not one at an end of the range where a power is
        a step from one size to the next.
    """

    offset: jax.Array
    scale: jax.Array
    exponent: jax.Array
    interval: jax.Array
    residuals: jax.Array
    converged: jax.Array

    def __call__(self, sizes: Any) -> jax.Array:
        """The values of the law at these sizes."""
        return self.offset + self.scale * jnp.asarray(sizes, self.scale.dtype) ** self.exponent


def fit_power_law(sizes: Any, values: Any, *, errors: Any = None) -> PowerLaw:
    r"""The law $\text{value} = c + b\,n^a$ that is closest to measured values.

    For a given exponent the offset $c$ and the scale $b$ follow by weighted linear least squares.
    So one number is searched for, and

    $$\chi^2(a) = \min_{b, c} \sum_i \left( \frac{v_i - c - b\, n_i^a}{\sigma_i} \right)^2$$

    is seen as a whole: the best exponent is its global minimum, and the interval has the exponents
    around it at which it exceeds the minimum by less than 3.84, or, where the errors are not given,
    by less than the quantile of Student's t squared times $\chi^2 / (k - 3)$. Such an interval is
    not symmetric, and open where the values are those of a step or a logarithm as well.

    The three numbers are strongly correlated: over a short range of sizes many exponents fit, and
    a small residual says little. The uncalibrated likelihood of an ensemble of $n$ members, to
    give an example, has $a = -1$ up to terms in $n^{-2}$: a mean over members, expanded
    about its limit. Ask whether the interval holds the exponent that theory gives.

    Args:
      sizes: positive numbers, shape ``(k,)``, of at least three different values.
      values: what was measured at each, shape ``(k,)``; at least four, or three with ``errors``.
      errors: standard deviations of the values, shape ``(k,)``, taken at their word. ``None`` for
        equal ones, found from the residuals.

    Returns:
      A [`PowerLaw`][] of scalars, an interval and residuals.

    Raises:
      TypeError: if anything is traced.
      ValueError: for other shapes, too few values, and numbers that are not finite or, of sizes and
        errors, not positive.

    Example:
      >>> import numpy as np
      >>> import flatjax
      >>> n = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
      >>> law = flatjax.fit_power_law(n, 0.5 + 2.0 / n)
      >>> [round(float(x), 3) for x in (law.offset, law.scale, law.exponent)]
      [0.5, 2.0, -1.0]
      >>> round(float(law(32.0)), 4)
      0.5625

    References:
      Lobacheva, Chirkova, Kodryan and Vetrov, "On power laws in deep ensembles", NeurIPS 2020,
      arXiv:2007.08483; Bates and Watts, *Nonlinear Regression Analysis and Its Applications*, 1988,
      chapter 6 (profiles).
    """
    # Imported here: it would be a large part of the time that importing the package takes.
    from scipy.optimize import minimize_scalar

    logs, y, weights = _checked(sizes, values, errors)
    k, grid = len(y), _exponents(logs)

    def chi2(a):
        residuals, _, _ = best_linear(np.atleast_1d(a), logs, y, weights)
        return (weights * residuals**2).sum(axis=1)

    profile = chi2(grid)
    at = int(np.argmin(profile))
    inside = 0 < at < len(grid) - 1
    exponent = float(grid[at])
    if inside:
        low, high = float(grid[at - 1]), float(grid[at + 1])
        options = {"xatol": 1e-9 * (high - low)}
        refine: Any = minimize_scalar(
            lambda a: chi2(a)[0], bounds=(low, high), method="bounded", options=options
        )
        exponent = float(refine.x) if refine.fun <= profile[at] else exponent
    least = chi2(exponent)[0]
    if errors is None:
        level = least * (1 + student(k - 3) ** 2 / (k - 3))
    else:
        level = least + _NORMAL
    sides = ((grid[grid < exponent][::-1], -np.inf), (grid[grid > exponent], np.inf))
    excess = lambda a: chi2(a)[0] - level  # noqa: E731
    interval = [_crossing(excess, exponent, *side) for side in sides]
    residuals, offset, scale = (x[0] for x in best_linear(np.array([exponent]), logs, y, weights))
    converged = inside and bool(np.isfinite(offset) and np.isfinite(scale))
    found = (offset, scale, np.float64(exponent), np.array(interval), residuals, converged)
    return PowerLaw(*map(jnp.asarray, found))


def _checked(sizes: Any, values: Any, errors: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The logarithms of the sizes, the values and their weights."""
    n, y = as_float64("sizes", sizes, 1), as_float64("values", values, 1)
    sigma = np.ones_like(y) if errors is None else as_float64("errors", errors, 1)
    if not n.shape == y.shape == sigma.shape:
        raise ValueError(
            "sizes, values and errors must be of one shape, got "
            f"{n.shape}, {y.shape} and {sigma.shape}."
        )
    for name, numbers in (("sizes", n), ("values", y), ("errors", sigma)):
        if not np.isfinite(numbers).all() or (name != "values" and not (numbers > 0).all()):
            wanted = "finite" if name == "values" else "finite and positive"
            raise ValueError(f"{name} must be {wanted}, got {numbers}.")
    least = 4 if errors is None else 3
    if len(np.unique(n)) < 3 or len(y) < least:
        raise ValueError(
            f"three numbers are fitted: pass at least {least} values at three different sizes or "
            f"more, got {len(y)} at {len(np.unique(n))}."
        )
    return np.log(n), y, sigma**-2


def _exponents(logs: np.ndarray) -> np.ndarray:
    """Exponents from the steepest fall to the steepest rise that the sizes can tell from a step."""
    different = np.unique(logs)
    gaps = np.diff(different)
    least = 0.01 / (different[-1] - different[0])  # a logarithm, to all that can be seen
    falls, rises = (np.geomspace(least, _VANISHING / gap, _GRID) for gap in (gaps[0], gaps[-1]))
    return np.concatenate([-falls[::-1], [0.0], rises])


@quiet()
def best_linear(a: np.ndarray, logs: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple:
    """The best offset and scale for every exponent: residuals ``(g, k)``, offsets, scales."""
    a = a[:, None]
    # In units of the size at which the power is largest, so that none overflows.
    reference = np.where(a < 0, logs.min(), logs.max())
    from_there = logs - reference
    safe = np.where(a == 0, 1.0, a)
    # (n^a - 1) / a, which is a logarithm at a = 0, where the power itself is a constant.
    basis = np.where(a == 0, from_there, np.expm1(a * from_there) / safe)
    total = weights.sum()
    middle, mean = (weights * basis).sum(axis=1, keepdims=True) / total, weights @ y / total
    centred, rest = basis - middle, y - mean
    slope = (weights * centred * rest).sum(axis=1) / (weights * centred**2).sum(axis=1)
    residuals = rest - slope[:, None] * centred
    height, power, start = mean - slope * middle[:, 0], a[:, 0], reference[:, 0]
    return residuals, height - slope / power, slope / power * np.exp(-power * start)


def _crossing(excess: Any, best: float, outward: np.ndarray, end: float) -> float:
    """Where ``excess`` first turns positive outward from the best exponent, or ``end``."""
    from scipy.optimize import brentq

    previous = best
    for a in outward:
        if excess(a) > 0:
            root: Any = brentq(excess, previous, a)
            return float(root)
        previous = a
    return end
