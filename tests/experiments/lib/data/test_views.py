"""The two views of Li, Wei and Ma: how many have which, their lengths, their margin."""

import math

import jax
import numpy as np
import pytest

from experiments.lib.data.views import BOTH, FIRST, SECOND, draw_views, make_directions

D, N = 20, 2000


@pytest.fixture(scope="module")
def directions():
    return make_directions(jax.random.key(0), D, centre=6.0, offset=4.0)


@pytest.fixture(scope="module")
def data(directions):
    return draw_views(jax.random.key(1), directions, N, shares=(0.25, 0.15, 0.6))


def test_each_view_has_its_share_and_what_is_not_there_is_zero(data):
    np.testing.assert_array_equal(np.bincount(data.views), [500, 300, 1200])
    first, second = data.inputs[:, :D], data.inputs[:, D:]
    np.testing.assert_array_equal(first.any(1), data.views != SECOND)
    np.testing.assert_array_equal(second.any(1), data.views != FIRST)
    # Four standard deviations of a fair coin thrown 2,000 times.
    assert data.targets.mean() == pytest.approx(0.5, abs=0.045)


def test_the_second_view_is_z_or_z_plus_or_minus_zeta(data, directions):
    z, zeta = np.asarray(directions.centre), np.asarray(directions.offset)
    # 1e-5: float32 sums of twenty squares.
    assert np.linalg.norm(z) == pytest.approx(6, rel=1e-5)
    assert np.linalg.norm(zeta) == pytest.approx(4, rel=1e-5)
    assert z @ zeta == pytest.approx(0, abs=1e-5 * 24)
    has = data.views != FIRST
    along = (data.inputs[has, D:] - z) @ zeta / 16
    # 1e-5: the same.
    np.testing.assert_allclose(np.abs(along), data.targets[has], atol=1e-5)
    # As often plus as minus: no hyperplane tells the classes apart.
    assert along[data.targets[has] == 1].mean() == pytest.approx(0, abs=4 / math.sqrt(700))


def test_the_first_view_is_a_gaussian_beyond_the_margin(data, directions):
    has = data.views != SECOND
    side = (2 * data.targets[has] - 1) * (data.inputs[has, :D] @ np.asarray(directions.separating))
    # 1e-5: float32.
    assert side.min() >= 0.5 * 0.3 * (1 - 1e-5)
    # The mean of a standard normal beyond m is phi(m) / (1 - Phi(m)); its deviation is below 0.7.
    density = math.exp(-(0.3**2) / 2) / math.sqrt(2 * math.pi)
    mean = density / (0.5 * math.erfc(0.3 / math.sqrt(2)))
    assert side.mean() / 0.5 == pytest.approx(mean, abs=4 * 0.7 / math.sqrt(has.sum()))
    # Across the normal it is 0.5 times a standard normal vector of 19 dimensions.
    across = (data.inputs[has, :D] ** 2).sum(1) - side**2
    # Four standard deviations of the mean of 1,700 chi-squared variables: 4 sqrt(2 * 19 / 1700).
    assert across.mean() / 0.25 == pytest.approx(19, abs=0.6)


def test_other_keys_other_examples_and_shares_that_are_none(directions):
    alone = draw_views(jax.random.key(2), directions, N, shares=(1, 0, 0))
    assert (alone.views == FIRST).all()
    other = draw_views(jax.random.key(3), directions, N, shares=(1, 0, 0))
    assert (alone.inputs != other.inputs).any()
    assert (draw_views(jax.random.key(2), directions, N, shares=(0, 0, 1)).views == BOTH).all()
    for shares in ((0.5, 0.5), (0.5, 0.6, -0.1), (0.5, 0.6, 0.1)):
        with pytest.raises(ValueError, match="three fractions that add up to 1"):
            draw_views(jax.random.key(0), directions, 10, shares=shares)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        make_directions(jax.random.key(0), 1)
