"""A density as SVG."""

import re

import numpy as np
import pytest

from flatjax import _sketches as sketches


def points(svg):
    (line,) = re.findall(r'<polyline points="([^"]*)"', svg)
    return np.array([[float(x) for x in point.split(",")] for point in line.split()])


def test_the_line_follows_the_logarithm():
    x, y = points(sketches.density(np.arange(5.0), np.array([1.0, 1e-3, 1e-6, 1e-9, 0.0]))).T
    np.testing.assert_allclose(np.diff(x), x[1] - x[0], atol=0.11)  # one digit is written
    assert x[-1] - 210 == pytest.approx(210 - x[0])  # the middle of the picture
    assert y[0] < y[1] < y[2] == y[3] == y[4]  # downwards; six decades, then the axis
    np.testing.assert_allclose(y[1] - y[0], y[2] - y[1], atol=0.11)


def test_an_outlier_between_the_points_drawn_is_seen():
    values = np.full(5000, 1e-6)
    values[1237] = 1.0
    drawn = points(sketches.density(np.linspace(0, 1, 5000), values))
    assert len(drawn) < 300
    assert np.sum(drawn[:, 1] < 20) == 1


def test_stems_and_ends():
    svg = sketches.density(np.linspace(-1, 3, 5), np.full(5, 0.5), [2.0, 9.0])
    at = [float(x) for x in re.findall(r'<line x1="([\d.]+)"', svg)]
    left, right = points(svg)[[0, -1], 0]
    (top,) = {float(y) for y in re.findall(r'y2="([\d.]+)"', svg)}
    assert top == points(svg)[0, 1]
    assert at == pytest.approx([left + 0.75 * (right - left), right], abs=0.1)
    assert re.findall(r">([^<>]+)</text>", svg) == ["-1", "3"]


@pytest.mark.parametrize("values", [np.zeros(3), np.full(3, np.nan)])
def test_nothing_to_draw(values):
    assert sketches.density(np.arange(3.0), values) == ""


def test_not_finite_values():
    drawn = points(sketches.density(np.arange(4.0), np.array([1.0, np.nan, np.inf, 0.5])))
    assert np.isfinite(drawn).all()
    assert drawn[2, 1] == drawn[0, 1]
