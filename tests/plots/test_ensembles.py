"""A power law is drawn with its values, the band of its interval and its offset."""

import matplotlib
import numpy as np
import pytest

import flatjax
from flatjax import plots

matplotlib.use("Agg")
import matplotlib.pyplot as plt

pytestmark = pytest.mark.usefixtures("x64")

N = np.array([1.0, 2.0, 4.0, 8.0, 16.0])


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def edges(ax):
    """Sizes and the two edges of the band."""
    (path,) = ax.collections[0].get_paths()
    points = path.vertices
    sizes = np.unique(points[:, 0])
    heights = [points[points[:, 0] == size, 1] for size in sizes]
    return sizes, np.array([h.min() for h in heights]), np.array([h.max() for h in heights])


def test_an_exact_law_its_values_and_its_offset(ax):
    law = flatjax.fit_power_law(N, 0.3 + 0.2 / N)
    assert plots.plot_power_law(law, N, span=(1, 100), ax=ax, label="nets") is ax
    curve, values, offset = ax.get_lines()
    # The exponent of an exact law is found to half of the digits.
    np.testing.assert_allclose(curve.get_ydata(), 0.3 + 0.2 / curve.get_xdata(), rtol=1e-6)
    np.testing.assert_allclose(curve.get_xdata()[[0, -1]], [1, 100])
    np.testing.assert_allclose(values.get_xydata(), np.stack([N, 0.3 + 0.2 / N], 1), rtol=1e-12)
    np.testing.assert_allclose(offset.get_ydata(), 0.3, rtol=1e-6)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["nets"]


@pytest.mark.parametrize("weighted", [False, True])
def test_the_band_has_the_laws_of_the_ends_of_the_interval(ax, weighted):
    rng = np.random.default_rng(0)
    errors = rng.uniform(0.002, 0.006, len(N))
    values = 0.3 + 0.2 / N + errors * rng.normal(size=len(N))
    given = {"errors": errors} if weighted else {}
    law = flatjax.fit_power_law(N, values, **given)
    plots.plot_power_law(law, N, span=(0.5, 200), ax=ax, **given)
    sizes, low, high = edges(ax)
    weights = 1 / errors**2 if weighted else np.ones(len(N))
    curves = [np.asarray(law(sizes))]
    for a in np.asarray(law.interval):
        # By the normal equations, in place of least squares.
        design = np.stack([np.ones(len(N)), N**a], 1)
        offset, scale = np.linalg.solve(
            design.T @ (weights[:, None] * design), design.T @ (weights * values)
        )
        curves.append(offset + scale * sizes**a)
    # The condition number of the normal equations is below 1e4.
    np.testing.assert_allclose(low, np.min(curves, 0), rtol=1e-9)
    np.testing.assert_allclose(high, np.max(curves, 0), rtol=1e-9)
    bars = [c for c in ax.collections if isinstance(c, matplotlib.collections.LineCollection)]
    assert len(bars) == weighted
    if weighted:
        reach = np.ptp([segment[:, 1] for segment in bars[0].get_segments()], axis=1)
        np.testing.assert_allclose(reach, 4 * errors)  # two standard deviations either way


def test_an_open_interval_and_an_offset_that_is_not_positive(ax):
    step = flatjax.fit_power_law(N, np.where(N > 1, 0.2, 0.5) + 1e-3 * np.sin(N))
    assert step.interval[0] == -np.inf
    plots.plot_power_law(step, N, ax=ax)
    sizes, _, high = edges(ax)
    assert np.isfinite(high).all()
    np.testing.assert_allclose(sizes[[0, -1]], [1, 16])
    ax.clear()
    last = flatjax.fit_power_law(N, np.where(N < 16, 0.2, 0.5) + 1e-3 * np.sin(N))
    assert last.interval[1] == np.inf
    plots.plot_power_law(last, N, ax=ax)
    assert np.isfinite(edges(ax)[2]).all()
    ax.clear()
    plots.plot_power_law(flatjax.fit_power_law(N, -0.1 + N**0.5), N, ax=ax)
    assert len(ax.get_lines()) == 2  # the law and its values


def test_bad_arguments(ax):
    law = flatjax.fit_power_law(N, 0.3 + 0.2 / N)
    with pytest.raises(ValueError, match="sizes must be those of the fit"):
        plots.plot_power_law(law, N[1:], ax=ax)
    with pytest.raises(ValueError, match="errors must be those of the fit"):
        plots.plot_power_law(law, N, errors=N[1:], ax=ax)
    with pytest.raises(ValueError, match="span must be two positive sizes"):
        plots.plot_power_law(law, N, span=(0, 3), ax=ax)
