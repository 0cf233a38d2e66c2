"""From nodes and weights to a density, its band, and means of functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.linalg.probing import _quadrature as quadrature
from flatjax.linalg.probing._estimate import student
from flatjax.linalg.probing._quadrature import density_from_quadrature, weighted


def test_band_is_the_jackknife_over_probes():
    nodes = np.array([[0.0, 1.0], [0.2, 1.1], [0.1, 0.9]])
    weights = np.array([[0.5, 0.5], [0.4, 0.6], [0.6, 0.4]])
    options = {"sigma": 0.1, "num_points": 64, "dtype": np.float32}
    none = np.zeros(0)
    d = density_from_quadrature(none, none, nodes, weights, **options)
    grid = np.asarray(d.grid, np.float64)

    def smooth(i):
        peak = np.exp(-(((grid[:, None] - nodes[i]) / 0.1) ** 2) / 2) / (0.1 * np.sqrt(2 * np.pi))
        return (peak * weights[i]).sum(axis=1)

    left_out = [np.mean([smooth(j) for j in range(3) if j != i], axis=0) for i in range(3)]
    error = np.sqrt(2 / 3 * np.sum((left_out - np.mean(left_out, axis=0)) ** 2, axis=0))
    t = 4.302653  # Student's t, 2 degrees of freedom, 95 %
    np.testing.assert_allclose(d.band[1], d.density + t * error, rtol=1e-5, atol=1e-12)
    below = [weights[i] @ (nodes[i][:, None] < grid[None, :]) for i in range(3)]
    np.testing.assert_allclose(d.cdf, np.mean(below, axis=0), atol=1e-6)  # no node is on the grid
    single = density_from_quadrature(none, none, nodes[:1], weights[:1], **options)
    assert np.all(np.isinf(single.band[1]))


@pytest.mark.parametrize("row_weights", [[0.25] * 4, [0.7, 0.1, 0.1, 0.1]])
def test_the_error_of_a_weighted_mean_is_its_own_deviation(row_weights):
    row_weights = np.asarray(row_weights)
    samples = np.random.default_rng(0).normal(2.0, 3.0, size=(4, 20000))
    mean, error, degrees = weighted(samples, row_weights)
    # 20,000 draws know a variance to 1 %, and a mean of such variances better.
    np.testing.assert_allclose(np.mean(error**2), np.var(mean), rtol=0.05)
    # Six standard errors of 3 sqrt(0.52 / 20,000), the larger of the two.
    np.testing.assert_allclose(np.mean(mean), 2.0, atol=0.1)
    assert degrees == {0.25: 3, 0.7: 1}[row_weights[0]]
    # The interval covers: exactly so for equal weights, and no less with the fewer degrees.
    inside = np.abs(mean - 2.0) <= student(degrees) * error
    assert inside.mean() > 0.94
    assert row_weights[0] > 0.25 or inside.mean() < 0.96


def test_rows_of_other_lengths_are_the_same_atoms():
    exact, own = np.array([4.0]), np.array([0.2])
    nodes, weights = np.array([[0.0, 1.0], [0.3, 0.9]]), np.array([[0.5, 0.3], [0.4, 0.4]])
    more = np.array([0.1, 0.5, 1.2]), np.array([0.3, 0.3, 0.2])
    rows = [*nodes, more[0]], [*weights, more[1]]
    d = density_from_quadrature(exact, own, *rows, dtype=np.float32)
    np.testing.assert_allclose(d.weights.sum(), 1, rtol=1e-6)
    assert len(d.atoms) == len(d.sigma) == 8
    # The shorter rows repeat their last node, with no weight.
    np.testing.assert_array_equal(d.nodes[:2, 2], nodes[:, 1].astype(np.float32))
    np.testing.assert_array_equal(d.node_weights[:2, 2], 0)
    np.testing.assert_allclose(d.node_weights.sum(axis=1), 0.8, rtol=1e-6)
    equal = density_from_quadrature(exact, own, list(nodes), list(weights), dtype=np.float32)
    whole = density_from_quadrature(exact, own, nodes, weights, dtype=np.float32)
    jax.tree.map(np.testing.assert_array_equal, equal, whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "cubic"}, "scale must be"),
        ({"num_points": 1}, "num_points must be"),
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"linear_width": -1.0}, "linear_width must be positive"),
    ],
)
def test_bad_axes(options, message):
    one = np.ones((1, 1))
    with pytest.raises(ValueError, match=message):
        density_from_quadrature(np.zeros(0), np.zeros(0), one, one, dtype=np.float32, **options)


def test_values_within_the_noise():
    value, spread = quadrature.evaluated(np.square, np.array([3.0]), jnp.float32, 0.5)
    np.testing.assert_allclose([value, spread], [[9.0], [3.0]], rtol=1e-6)  # (3.5^2 - 2.5^2) / 2
    _, spread = quadrature.evaluated(jnp.log, np.array([0.1, 1.0]), jnp.float32, 0.06)
    assert np.isinf(spread[0])  # zero is within twice the noise
    assert np.isfinite(spread[1])


def test_nothing_is_added_for_what_has_no_weight():
    weights, values = np.array([0.5, 0.0, 0.5]), np.array([1.0, np.nan, 2.0])
    assert quadrature.products(weights, values).sum() == 1.5
    weights = np.array([0.5, 0.1])
    assert np.isnan(quadrature.products(weights, values[:2]).sum())


def test_bands_count_the_change_of_the_quadrature_and_the_law_of_probes():
    nodes, weights = np.array([[0.0, 1.0]] * 3), np.full((3, 2), 0.5)
    fewer = np.array([[0.5]] * 3), np.ones((3, 1))
    none = np.zeros(0)
    options = {"dtype": np.float32, "sigma": 0.1, "num_points": 9, "margin": 0.2}

    def of(coarser, size):
        return density_from_quadrature(
            none, none, nodes, weights, coarser=coarser, size=size, **options
        )

    # Probes that agree, of so many dimensions that chance has no part.
    grid = np.linspace(-0.2, 1.2, 9)
    peak = lambda x: np.exp(-np.square((grid - x) / 0.1) / 2) / (0.1 * np.sqrt(2 * np.pi))  # noqa: E731
    found = of(fewer, 10**16)
    change = np.abs((peak(0.0) + peak(1.0)) / 2 - peak(0.5))
    np.testing.assert_allclose(found.band[1] - found.density, 2 * change, atol=1e-5)
    below = (np.sign(grid) + np.sign(grid - 1) + 2) / 4
    change = np.abs(below - (np.sign(grid - 0.5) + 1) / 2)
    high = np.clip(below + 2 * change, 0, 1)
    np.testing.assert_allclose(found.cdf_band[1], high, atol=1e-6)
    # Quadratures that agree too, of 50: chance alone, of one eigenvalue more than was seen.
    found = of((nodes, weights), 50)
    squares = (np.square(np.sign(grid) + 1) + np.square(np.sign(grid - 1) + 1)) / 8
    half = 1.96 * np.sqrt(2 * (squares + 1 / 50 - below**2) / (50 * 3))
    np.testing.assert_allclose(found.cdf_band[0], np.clip(below - half, 0, 1), atol=1e-6)
    mean, square = (peak(0.0) + peak(1.0)) / 2, (peak(0.0) ** 2 + peak(1.0) ** 2) / 2
    half = 1.96 * np.sqrt(2 * (square - mean**2) / (50 * 3))
    np.testing.assert_allclose(found.band[1] - found.density, half, atol=1e-5)
