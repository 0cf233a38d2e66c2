"""Curves over seeds: the mean in a band of two standard errors."""

import math

import matplotlib
import pytest

from experiments.lib.verdicts.curves import curve

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def test_a_curve_is_the_mean_in_a_band_of_two_standard_errors():
    figure, axes = plt.subplots()
    curve(axes, [0, 1], [[1.0, 0.0], [2.0, 0.0], [6.0, 0.0]], 0, "name")
    (line,) = axes.get_lines()
    assert line.get_ydata().tolist() == [3.0, 0.0]
    ends = axes.collections[0].get_paths()[0].vertices[:, 1]
    reach = 2 * math.sqrt((4 + 1 + 9) / 2 / 3)
    assert (ends.min(), ends.max()) == pytest.approx((min(3 - reach, 0), 3 + reach))
    curve(axes, [0, 1], [[1.0, 0.0]], 1)
    assert len(axes.collections) == 1  # a single seed has no band
    plt.close(figure)


def test_on_a_logarithmic_axis_the_mean_is_geometric_and_the_band_positive():
    figure, axes = plt.subplots()
    axes.set_yscale("log")
    curve(axes, [0, 1], [[1.0, 1.0], [100.0, 1.0]], 0)
    (line,) = axes.get_lines()
    assert line.get_ydata() == pytest.approx([10.0, 1.0])
    ends = axes.collections[0].get_paths()[0].vertices[:, 1]
    # Two standard errors of the logarithm: 2 (log 100) / 2, a factor of 100 either way.
    assert (ends.min(), ends.max()) == pytest.approx((0.1, 1000.0))
    plt.close(figure)
