"""What the plots of the loss surface show is what the results say."""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

import flatjax
from flatjax import plots
from flatjax.landscape import LogVolume, Projection, Surface

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_a_barrier_its_chord_and_the_accuracy(ax):
    loss = lambda w, _: {"loss": 16 * (w * (w - 1)) ** 2 + 3 * w, "accuracy": 1 - w}  # noqa: E731
    found = flatjax.barrier(loss, jnp.float32(0), jnp.float32(1), None, num_points=5)
    plots.plot_line(found, choose=lambda m: m["loss"], accuracy=lambda m: m["accuracy"], ax=ax)
    line, chord = ax.get_lines()
    np.testing.assert_allclose(line.get_ydata(), found.line.losses["loss"])
    np.testing.assert_allclose(chord.get_ydata(), [0, 0.75, 1.5, 2.25, 3])
    (bar,) = ax.collections[0].get_segments()
    np.testing.assert_allclose(bar, [[0.5, 1.5], [0.5, 2.5]])
    (right,) = [a for a in ax.figure.axes if a is not ax]
    np.testing.assert_allclose(right.get_lines()[0].get_ydata(), [1, 0.75, 0.5, 0.25, 0])
    with pytest.raises(ValueError, match="say which is drawn"):
        plots.plot_line(found, ax=ax)


def test_several_lines_share_the_axis_of_the_accuracy():
    figure, (above, below) = plt.subplots(2, sharex=True)
    loss = lambda w, _: {"loss": w**2, "accuracy": 1 - w}  # noqa: E731
    found = flatjax.barrier(loss, jnp.float32(0), jnp.float32(1), None, num_points=3)
    for ax in (above, above, below):
        plots.plot_line(found, choose=lambda m: m["loss"], accuracy=lambda m: m["accuracy"], ax=ax)
    right = [ax for ax in figure.axes if ax.get_ylabel() == "accuracy"]
    assert [len(ax.get_lines()) for ax in right] == [2, 1]
    plt.close(figure)


def test_a_curve_over_its_length(ax):
    corner = flatjax.chain([jnp.zeros(2), jnp.array([3.0, 0.0]), jnp.array([3.0, 1.0])])
    found = flatjax.loss_on_curve(lambda w, _: w[0], corner, None, positions=[0, 0.5, 1])
    plots.plot_line(found, by_length=True, ax=ax, label="path")
    np.testing.assert_allclose(ax.get_lines()[0].get_xdata(), [0, 3, 4], rtol=1e-6)
    assert ax.get_xlabel() == "length"


def test_contours_with_a_path_and_minima(ax):
    s, t = jnp.linspace(-1, 1, 5), jnp.linspace(0, 1, 4)
    surface = Surface(s, t, (1 + 9 * s[:, None] ** 2 + t[None]).at[0, 0].set(jnp.nan))
    path, minima = np.array([[0.5, 0.9], [0.2, 0.3]]), np.array([[0.0, 0.0], [0.0, 0.5]])
    plots.plot_surface(
        surface, path=path, minima=minima, labels=["a", "b"], quantity="error", ax=ax
    )
    assert [bar.get_ylabel() for bar in ax.child_axes] == ["error"]
    levels = ax.collections[0].levels
    np.testing.assert_allclose(np.diff(np.log(levels)), np.log(11 / 1) / 15, rtol=1e-5)
    np.testing.assert_allclose(ax.get_lines()[0].get_xydata(), path)
    np.testing.assert_allclose(ax.get_lines()[-1].get_xydata(), minima)
    assert [text.get_text() for text in ax.texts] == ["a", "b"]
    # The first direction is the horizontal one.
    assert ax.get_xlim() == (-1, 1)
    assert ax.get_ylim() == (0, 1)


def test_a_plane_marks_its_three_points(ax):
    loss = lambda w, _: jnp.sum(w**2)  # noqa: E731
    plane = flatjax.plane_through(*jnp.array([[0.0, 0, 1], [2, 0, 1], [1, 1, 1]]))
    surface = flatjax.loss_surface(
        loss, plane.origin, None, first=plane.first, second=plane.second, positions=[-1, 0, 1, 2, 3]
    )
    plots.plot_surface(surface, minima=plane, labels=["a", "b", "c"], ax=ax)
    np.testing.assert_allclose(ax.get_lines()[-1].get_xydata(), [[0, 0], [2, 0], [1, 1]], rtol=1e-6)
    assert [text.get_text() for text in ax.texts] == ["a", "b", "c"]
    assert [text.xy for text in ax.texts] == [(0, 0), (2, 0), (1, 1)]


def test_contours_of_several_surfaces_at_the_same_losses(ax):
    s = jnp.linspace(-1, 1, 5)
    heights, losses = [0.5, 1.0, 2.0, 4.0], 1 + s[:, None] ** 2 + s[None] ** 2
    plots.plot_surface(Surface(s, s, losses), levels=heights, bar=False, ax=ax)
    assert ax.figure.axes == [ax]
    filled = ax.collections[0]
    np.testing.assert_array_equal(filled.levels, heights)
    assert (filled.norm.vmin, filled.norm.vmax) == (0.5, 4.0)
    for levels in ([1.0], [2.0, 1.0], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="two losses and more that rise"):
            plots.plot_surface(Surface(s, s, losses), levels=levels, ax=ax)


def test_a_surface_in_space():
    s = jnp.linspace(-1, 1, 5)
    figure = plt.figure()
    axes = plots.plot_surface_3d(Surface(s, s, s[:, None] + s[None]))
    assert axes.get_zlabel() == "loss"  # no logarithm of negative numbers
    with pytest.raises(ValueError, match="no finite loss"):
        plots.plot_surface_3d(Surface(s, s, jnp.full((5, 5), jnp.nan)))
    with pytest.raises(TypeError, match='must be of "3d"'):
        plots.plot_surface_3d(Surface(s, s, s[:, None] + s[None]), ax=figure.add_subplot())
    plt.close(figure)


def test_a_trajectory_and_its_distance_off_the_plane(ax):
    projection = Projection(jnp.array([[0.0, 1.0], [2.0, 3.0]]), jnp.array([0.5, 0.7]))
    plots.plot_projection(projection, explained=[0.9, 0.05], ax=ax)
    points = ax.collections[0]
    np.testing.assert_allclose(points.get_offsets(), projection.coordinates)
    np.testing.assert_allclose(points.get_array(), projection.distance)
    assert ax.get_ylabel() == "second direction (5 %)"


def test_radii_as_shares_of_directions(ax):
    volume = LogVolume(*map(jnp.float32, (1.0, -2.5, 0.1, 3.0)), jnp.array([3.0, 1.0, 2.0]), 0)
    plots.plot_radii({"net": volume}, ax=ax)
    (line,) = ax.get_lines()
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(line.get_ydata(), [1 / 3, 2 / 3, 1])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["net: log V >= -2.5"]
    assert isinstance(volume.dominated, jax.Array)
