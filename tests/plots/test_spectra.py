"""What the plots show is what the results say."""

import subprocess
import sys

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

import flatjax
from flatjax import linalg, plots
from flatjax._spectrum import LayerSpectrum
from flatjax.linalg.probing._quadrature import density_from_quadrature

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def density(**options):
    rng = np.random.default_rng(0)
    nodes, weights = rng.uniform(-1, 1, (3, 5)), np.full((3, 5), 0.9 / 5)
    return density_from_quadrature(
        np.array([4.0, 9.0]), np.full(2, 0.05), nodes, weights, dtype=np.float32, **options
    )


def test_density_line_band_and_atoms(ax):
    d = density()
    assert plots.plot_density(d, ax=ax, label="H") is ax
    line, atoms = ax.get_lines()
    floor = d.density.max() * 1e-6
    np.testing.assert_allclose(line.get_ydata(), np.maximum(d.density, floor))
    np.testing.assert_allclose(atoms.get_xdata(), [4.0, 9.0])
    assert ax.get_yscale() == "log"
    assert ax.get_xscale() == "linear"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["H"]


def test_density_on_the_logarithmic_axis(ax):
    plots.plot_density(density(scale="log"), ax=ax)
    assert ax.get_xscale() == "symlog"


def test_trajectories_with_residuals_and_threshold(ax):
    history = {
        "steps": np.arange(4),
        "values": np.arange(8.0).reshape(4, 2),
        "residual_norms": np.full((4, 2), 0.5),
    }
    plots.plot_trajectories(history, threshold=5.0, ax=ax)
    first, second, threshold = ax.get_lines()
    np.testing.assert_allclose(first.get_ydata(), [0, 2, 4, 6])
    np.testing.assert_allclose(second.get_ydata(), [1, 3, 5, 7])
    np.testing.assert_allclose(threshold.get_ydata(), 5.0)
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == -0.5
    with pytest.raises(ValueError, match="3 steps and 4 rows"):
        plots.plot_trajectories(history | {"steps": np.arange(3)}, ax=ax)


def test_what_has_not_converged_is_no_part_of_the_lines(ax):
    history = {
        "steps": np.array([0, 5, 10]),
        "values": np.array([[2.4, 1.0], [5.8, np.nan], [6.1, 5.0]]),
        "residual_norms": np.full((3, 2), 0.5),
        "converged": np.array([[False, False], [True, False], [True, True]]),
    }
    plots.plot_trajectories(history, ax=ax)
    first, second = ax.get_lines()
    np.testing.assert_array_equal(first.get_ydata(), [np.nan, 5.8, 6.1])
    np.testing.assert_array_equal(second.get_ydata(), [np.nan, np.nan, 5.0])
    band = ax.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [5.3, 6.6])
    circles = ax.collections[-1]
    assert circles.get_offsets().tolist() == [[0, 2.4], [0, 1.0]]
    assert circles.get_facecolors().size == 0
    assert "not converged" in [t.get_text() for t in ax.get_legend().get_texts()]
    with pytest.raises(ValueError, match="converged of history has shape"):
        plots.plot_trajectories(history | {"converged": np.ones((3, 1))}, ax=ax)


def test_layers_as_bars_with_intervals(ax):
    estimate = linalg.Estimate(
        jnp.float32(6), jnp.float32(1), jnp.array([4.0, 8.0]), 10, jnp.asarray(True)
    )
    layers = {"conv": LayerSpectrum(3, estimate, None), "head": LayerSpectrum(2, estimate, None)}
    plots.plot_layers(layers, per_param=True, ax=ax)
    assert [bar.get_width() for bar in ax.patches] == [2.0, 3.0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["conv", "head"]
    with pytest.raises(ValueError, match="pass the `layers` of a Spectrum"):
        plots.plot_layers({"a": estimate}, per_param=True, ax=ax)


def test_without_matplotlib_a_clear_error():
    code = (
        "import sys; sys.modules['matplotlib'] = sys.modules['matplotlib.pyplot'] = None\n"
        "from flatjax import plots\n"
        "try: plots.plot_trajectories({'steps': [0], 'values': [[1.0]]})\n"
        "except ImportError as error: print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "flatjax[plots]" in out.stdout


def test_another_result_is_refused_and_its_part_named():
    parts = dict.fromkeys(flatjax.Spectrum._fields) | {"density": density()}
    spectrum = flatjax.Spectrum(**parts)
    with pytest.raises(TypeError, match=r"got Spectrum: draw its \.density"):
        plots.plot_density(spectrum)
    with pytest.raises(TypeError, match="draws a Line or Barrier or PathLoss, got ndarray"):
        plots.plot_line(np.ones(3))
