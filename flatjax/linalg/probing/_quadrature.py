"""From Gauss quadratures of a spectral measure to a density, its band and its distribution."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _reading as reading
from flatjax import _sketches as sketches
from flatjax import _texts as texts
from flatjax.linalg.probing._estimate import cast, student


@reading.readable
class SpectralDensity(NamedTuple):
    r"""The distribution of the eigenvalues, of total mass 1; JAX arrays in the working dtype.

    Attributes:
      atoms: ``(a,)``, the nodes: first the ``num_exact`` converged eigenvalues, then those of all
        probes.
      weights: ``(a,)``, their weights; ``1 / n`` for a converged eigenvalue.
      num_exact: how many atoms are converged eigenvalues.
      grid: ``(g,)``, where the functions below are given.
      density: ``(g,)``, the atoms smoothed by Gaussians of width ``sigma``, per unit of the axis
        (of $\mathrm{asinh}(\lambda / w)$ on the logarithmic axis of linear width $w$).
      band: ``(2, g)``, a pointwise 95 % confidence band of the density over the probes, by the
        jackknife; infinite for a single probe.
      cdf: ``(g,)``, the share of eigenvalues below the grid points; no bandwidth enters.
      cdf_band: ``(2, g)``, its band.
      sigma: ``(a,)``, the width given to every atom.
      nodes: ``(p, s)``, the nodes, one row per probe; a row of fewer nodes repeats its last one.
      node_weights: ``(p, s)``, their weights, of the mass that the exact atoms leave; zero for such
        a repeat.
      row_weights: ``(p,)``, the weight of every row in the density, of sum 1, as the square of its
        number of nodes: the more there are, the finer is what a row resolves.
      stopped: why it was stopped early, ``"callback"``, ``"max_seconds"`` or ``"interrupt"``, with
        fewer probes or nodes than asked for; ``None`` otherwise.
    """

    atoms: jax.Array
    weights: jax.Array
    num_exact: int
    grid: jax.Array
    density: jax.Array
    band: jax.Array
    cdf: jax.Array
    cdf_band: jax.Array
    sigma: jax.Array
    nodes: jax.Array
    node_weights: jax.Array
    row_weights: jax.Array
    stopped: str | None = None

    def mean_of(self, f: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """The mean of ``f`` over the eigenvalues: ``tr f(A) / n``."""
        atoms, weights = (np.asarray(a, np.float64) for a in (self.atoms, self.weights))
        # An atom without weight has no say: not even a function's complaint about it.
        points = jnp.asarray(np.where(weights != 0, atoms, atoms[(weights != 0).argmax()]))
        mean = products(weights, np.asarray(f(points), np.float64)).sum()
        return jnp.asarray(mean)

    def _picture(self) -> str:
        fields = (self.grid, self.density, self.atoms, self.num_exact)
        grid, density, atoms, exact = (texts.numbers(field) for field in fields)
        if grid is None or density is None or atoms is None or exact is None:
            return ""
        return sketches.density(grid, density, atoms[: int(exact)])


def products(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Weights times values, where a node without weight has no say whatever its value."""
    some = weights != 0
    return np.where(some, weights * np.where(some, values, 0.0), 0.0)


def evaluated(
    f: Callable[[Any], Any], nodes: np.ndarray, dtype: Any, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """A function at nodes that are known up to noise, and by how much it varies within that.

    A semi-definite operator has nodes on either side of zero by rounding: where the function is not
    finite at one of these, it is taken at zero.

    Args:
      f: a function of an array.
      nodes: any array.
      dtype: the dtype in which it is evaluated.
      noise: by how much a node may be off.

    Returns:
      The values, and their uncertainty: infinite where the function is not finite within the noise.
    """

    def at(x):
        return np.asarray(f(jnp.asarray(x, dtype)), np.float64)

    zero = at(np.zeros(1))[0]
    # Of an eigenspace at zero quadratures have nodes of little weight that are further off, up to
    # 40 units of rounding: they are no negative eigenvalues.
    near, nearly = (np.abs(nodes) <= factor * noise for factor in (2, 16))

    def or_at_zero(y):
        return np.where(nearly & ~np.isfinite(y), zero, y)

    value, above, below = (or_at_zero(at(x)) for x in (nodes, nodes + noise, nodes - noise))
    with np.errstate(invalid="ignore"):
        spread = np.abs(above - below) / 2
    known = np.isfinite(spread) & ~(near & ~np.isfinite(zero)) & np.isfinite(noise)
    return value, np.where(known, spread, np.full_like(spread, np.inf))


def density_from_quadrature(
    exact: Any,
    exact_weights: Any,
    nodes: Any,
    node_weights: Any,
    *,
    dtype: Any,
    num_points: int = 1024,
    scale: str = "linear",
    linear_width: float | None = None,
    sigma: float | None = None,
    margin: float = 0.05,
    coarser: tuple[Any, Any] | None = None,
    size: int = 1,
) -> SpectralDensity:
    """The density of exact atoms and of the quadratures of several probes.

    Args:
      exact: ``(e,)`` eigenvalues known exactly, or none.
      exact_weights: ``(e,)`` their weights.
      nodes: ``(p, s)`` the nodes of ``p`` probes, or a list of ``p`` arrays of any lengths.
      node_weights: their weights alike, each row for the mass that the exact atoms leave.
      dtype: the dtype of the result; the arithmetic is in float64.
      num_points: the size of the grid.
      scale: ``"linear"``, or ``"log"`` for an axis that is logarithmic on both sides of zero.
      linear_width: where the logarithmic axis becomes linear; default 1e-4 of the largest node.
      sigma: one width for all atoms, on the axis; default: half the distance to the neighbouring
        nodes, the resolution that the quadrature has there.
      margin: how far the grid reaches beyond the outermost atoms, in parts of their range.
      coarser: nodes and weights of quadratures of fewer nodes: by how much these differ, twice,
        widens the bands, which are also at least as wide as the law of random probes says.
      size: the dimension, for that law.

    Returns:
      A [`SpectralDensity`][].

    Raises:
      ValueError: for another scale, or widths and sizes that are not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax.linalg.probing._quadrature import density_from_quadrature
      >>> exact, nodes, weights = [5.0], [[0.0, 1.0]], [[0.45, 0.45]]
      >>> d = density_from_quadrature(exact, [0.1], nodes, weights, dtype=jnp.float32)
      >>> round(float(d.mean_of(lambda x: x)), 3)
      0.95
    """
    if scale not in ("linear", "log"):
        raise ValueError(f'scale must be "linear" or "log", got {scale!r}.')
    if num_points < 2:
        raise ValueError(f"num_points must be at least 2, got {num_points}.")
    for name, value in {"sigma": sigma, "linear_width": linear_width}.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    # On the host, where every operation would otherwise be a program to compile.
    exact, exact_weights = (np.asarray(a, np.float64) for a in (exact, exact_weights))
    nodes, node_weights = (
        [np.asarray(row, np.float64) for row in rows] for rows in (nodes, node_weights)
    )
    atoms = np.concatenate([exact, *nodes])
    squares = np.square([float(len(row)) for row in nodes])
    row_weights = squares / squares.sum()
    parts = (share * row for share, row in zip(row_weights, node_weights, strict=True))
    weights = np.concatenate([exact_weights, *parts])
    to_axis, from_axis = _axis(scale, linear_width, atoms)

    x, x_exact, x_nodes = to_axis(atoms), to_axis(exact), [to_axis(row) for row in nodes]
    low, high = np.min(x), np.max(x)
    least = 1e-3 * np.where(high != 0, np.abs(high), 1)
    spread = np.where(high > low, high - low, least)
    steps = np.linspace(0, 1, num_points, dtype=x.dtype)
    grid = low - margin * spread + (1 + 2 * margin) * spread * steps
    # An exact atom has no width of its own: two grid steps make it visible and keep its mass.
    thin = 2 * (grid[1] - grid[0])
    if sigma is None:
        node_sigma = [np.maximum(_spacing(row), thin) for row in x_nodes]
        exact_sigma = np.broadcast_to(thin, x_exact.shape)
    else:
        node_sigma = [np.full_like(row, sigma) for row in x_nodes]
        exact_sigma = np.full_like(x_exact, sigma)

    known = _functions(grid, x_exact, exact_weights, exact_sigma)
    rows = zip(x_nodes, node_weights, node_sigma, strict=True)
    each = np.stack([_functions(grid, *row) for row in rows])
    mean, error, degrees = weighted(each, row_weights)
    value, half = known + mean, student(degrees) * error
    if coarser is not None:
        rows = list(zip(x_nodes, node_weights, node_sigma, strict=True))
        half = np.maximum(half, _by_law(grid, rows, size))
        fewer = [(to_axis(x), mass) for x, mass in zip(*coarser, strict=True)]
        widths = [
            np.maximum(_spacing(x), thin) if sigma is None else np.full_like(x, sigma)
            for x, _ in fewer
        ]
        each = [_functions(grid, *row, width) for row, width in zip(fewer, widths, strict=True)]
        half = np.hypot(half, 2 * np.abs(mean - np.mean(each, axis=0)))
    density, cdf = value[0], np.clip(value[1], 0, 1)  # a sum of weights is 1 up to rounding
    found: dict[str, Any] = {
        "atoms": atoms,
        "weights": weights,
        "grid": from_axis(grid),
        "density": density,
        "band": np.stack([np.maximum(density - half[0], 0), density + half[0]]),
        "cdf": cdf,
        "cdf_band": np.clip(np.stack([cdf - half[1], cdf + half[1]]), 0, 1),
        "sigma": np.concatenate([exact_sigma, *node_sigma]),
        "nodes": _rectangle(nodes, lambda row: row[-1]),
        "node_weights": _rectangle(node_weights, lambda row: 0.0),
        "row_weights": row_weights,
    }
    arrays: dict[str, Any] = {name: cast(value, dtype) for name, value in found.items()}
    return SpectralDensity(num_exact=len(exact), **arrays)


def _rectangle(rows, fill):
    """Rows of one length, the shorter ones filled up."""
    length = max(len(row) for row in rows)
    return np.stack([np.append(row, np.full(length - len(row), fill(row))) for row in rows])


def _by_law(grid, rows, size):
    """How far the functions of random probes are from the truth in 95 % of cases.

    Of a probe an eigenvalue weighs the square of a normal number over the dimension. A few probes
    that agree by chance on the weight of an outlier say nothing of that. Of the distribution it is
    the law with one eigenvalue more than was seen: one that weighs little by chance looks certain.
    """
    first, second = (
        np.mean([_functions(grid, *row, power=power) for row in rows], axis=0) for power in (1, 2)
    )
    total = np.mean([mass.sum() for _, mass, _ in rows])
    second[1] += 1 / size
    variance = second - np.square(first) / total
    return 1.96 * np.sqrt(np.maximum(variance, 0) * 2 / (size * len(rows)))


def _functions(grid, points, mass, width, power=1):
    """The smoothed density and the distribution of some atoms, stacked; or of powers of both."""
    z = (grid[:, None] - points[None, :]) / width[None, :]
    peak = np.exp(-np.square(z) / 2) / (width[None, :] * math.sqrt(2 * math.pi))
    # Half of an atom at a grid point: the quadrature's best guess of the step inside it.
    below = (np.sign(z) + 1) / 2
    return np.stack([(f**power * mass[None, :]).sum(axis=1) for f in (peak, below)])


def weighted(samples: np.ndarray, row_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    r"""The mean of samples with weights of sum 1, its standard error and the degrees of freedom.

    With weights w the variance of a sample is $\sum w_i (x_i - \bar x)^2 / (1 - \sum w_i^2)$,
    and that of the mean $\sum w_i^2$ times it: the jackknife's, where they are equal. The
    degrees are those of as many equal samples as have this $\sum w_i^2$.

    Args:
      samples: ``(p, ...)``.
      row_weights: ``(p,)``.

    Returns:
      Two arrays ``(...)`` and a number; the standard error of a single sample is infinite.
    """
    w = row_weights.reshape(-1, *(1,) * (samples.ndim - 1))
    mean = (w * samples).sum(axis=0)
    if len(row_weights) == 1:
        return mean, np.full_like(mean, np.inf), 1
    squares = float(np.square(row_weights).sum())
    variance = (w * np.square(samples - mean[None])).sum(axis=0) * (squares / (1 - squares))
    return mean, np.sqrt(variance), max(1, int(1 / squares - 1 + 1e-6))


def _axis(scale, linear_width, atoms):
    if scale == "linear":
        return (lambda a: a), (lambda x: x)
    largest = np.max(np.abs(atoms))
    width = 1e-4 * np.where(largest > 0, largest, 1) if linear_width is None else linear_width
    return (lambda a: np.arcsinh(a / width)), (lambda x: width * np.sinh(x))


def _spacing(nodes):
    """Half the distance between a node's neighbours, a node at an end to its only one."""
    if len(nodes) == 1:
        return np.zeros_like(nodes)
    order = np.argsort(nodes)
    gaps = np.diff(nodes[order])
    gaps = np.concatenate([gaps[:1], gaps, gaps[-1:]])
    return ((gaps[1:] + gaps[:-1]) / 4)[np.argsort(order)]
