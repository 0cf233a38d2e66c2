"""The shared style: files, atomicity, and that no two texts touch."""

import numpy as np
import pytest
from PIL import Image

from experiments.lib.verdicts import figures
from tests.experiments.legible import drawn, touching_texts


def test_a_figure_is_written_as_png_of_the_size_asked_for(tmp_path):
    path = tmp_path / "curve.png"
    with figures.figure(path, 1, 2, panel=(3, 2), dpi=100) as (left, right):
        left.plot([0, 1], [1, 2], **figures.style(0), label="one")
        right.plot([0, 1], [1, 2], **figures.style(1))
        left.legend()
    with Image.open(path) as image:
        # Cut to what is drawn, plus a margin of 0.1 inches each side.
        assert image.size == pytest.approx((600, 200), abs=25)
    assert [p.name for p in tmp_path.iterdir()] == ["curve.png"]


def test_a_figure_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(KeyError), figures.figure(tmp_path / "curve.png"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_the_style_is_not_global(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    with figures.figure(tmp_path / "curve.png"):
        assert matplotlib.rcParams["axes.grid"] is True
    assert dict(matplotlib.rcParams) == before


def test_curves_differ_in_grey_too():
    kinds = [tuple(map(str, figures.style(i).values())) for i in range(len(figures.COLORS))]
    assert len(set(kinds)) == len(kinds)
    dashes = {str(figures.style(i)["linestyle"]) for i in range(len(figures.COLORS))}
    markers = {figures.style(i)["marker"] for i in range(len(figures.COLORS))}
    assert len(dashes) == len(markers) == len(figures.COLORS)
    assert "marker" not in figures.style(0, markers=False)


def test_numbers_on_axes_and_references_do_not_touch(tmp_path):
    with drawn() as figs, figures.figure(tmp_path / "a.png", 1, 3, title="Title") as panels:
        for axes in panels:
            axes.plot(np.linspace(0, 123456, 50), np.linspace(-1e-3, 1e-3, 50))
            axes.set(title="A title of some length", xlabel="updates", ylabel="value")
        figures.reference(panels[0], 5e-4, "here")
        figures.reference(panels[1], -5e-4, "there", at="left")
    assert touching_texts(figs[0]) == []


def test_a_short_logarithmic_axis_has_plain_numbers(tmp_path):
    with figures.figure(tmp_path / "a.png", 1, 3) as panels:
        for axes, high in zip(panels, (300, 2000, 1e5), strict=True):
            axes.plot([1, 2], [150, high])
            axes.set_yscale("log")
    few, some, many = ([t.get_text() for t in a.get_yticklabels()] for a in panels)
    assert {"200", "300"} <= set(few)
    assert {"200", "500", "1000"} <= set(some)
    assert r"$\mathdefault{10^{3}}$" in many


def test_the_band_is_two_standard_errors_wide(tmp_path):
    with figures.figure(tmp_path / "a.png") as axes:
        figures.band(axes, [0, 1], [10.0, 20.0], [1.0, 2.0], 0)
        corners = axes.collections[0].get_datalim(axes.transData)
    assert (corners.y0, corners.y1) == (8.0, 24.0)
