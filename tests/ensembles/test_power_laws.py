"""Power laws: exact ones are found, profiles are those of least squares, intervals cover."""

import jax
import numpy as np
import pytest
from scipy import stats

from flatjax.ensembles import fit_power_law

pytestmark = pytest.mark.usefixtures("x64")

N = np.array([1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0])


def best_chi2(exponent, values, errors):
    """The least weighted sum of squares at one exponent, by least squares."""
    design = np.stack([np.ones_like(N), N**exponent], axis=1) / errors[:, None]
    return np.linalg.lstsq(design, values / errors, rcond=None)[1][0]


@pytest.mark.parametrize("exponent", [-2.0, -1.0, -0.3, 0.5, 1.7])
@pytest.mark.parametrize("unit", [1.0, 1e6])
def test_an_exact_law_is_found(exponent, unit):
    law = fit_power_law(unit * N, 0.3 - 2.0 * N**exponent)
    expected = 0.3, -2.0 * unit**-exponent, exponent
    # Flat around the least sum of squares: half the digits are the exponent's.
    np.testing.assert_allclose(law[:3], expected, rtol=1e-5)
    np.testing.assert_allclose(law.interval, exponent, rtol=1e-5)
    np.testing.assert_allclose(law.residuals, 0, atol=1e-6 * np.abs(N**exponent).max())
    np.testing.assert_allclose(law(10.0 * unit), 0.3 - 2.0 * 10.0**exponent, rtol=1e-5)
    assert law.converged


def test_sizes_over_nine_decades():
    # The steepest falls that are tried would overflow in units of the largest size.
    sizes = np.array([1.0, 2.0, 1e3, 1e6, 1e9])
    np.testing.assert_allclose(fit_power_law(sizes, 1 + 3 / sizes)[:3], (1.0, 3.0, -1.0), rtol=1e-5)


@pytest.mark.parametrize("known", [True, False])
def test_the_interval_ends_where_the_profile_of_least_squares_does(known):
    rng = np.random.default_rng(3)
    errors = rng.uniform(0.005, 0.02, len(N)) if known else np.ones_like(N)
    noise = errors if known else 0.01
    values = 0.3 + 0.5 * N**-0.8 + noise * rng.normal(size=len(N))
    law = fit_power_law(N, values, errors=errors if known else None)
    grid = np.arange(-2, 0, 1e-3)
    profile = np.array([best_chi2(a, values, errors) for a in grid])
    least, degrees = profile.min(), len(N) - 3
    rise = stats.norm.ppf(0.975) ** 2
    if not known:
        rise = least / degrees * stats.t.ppf(0.975, degrees) ** 2
    np.testing.assert_allclose(law.exponent, grid[np.argmin(profile)], atol=1e-3)
    ends = [best_chi2(a, values, errors) - least for a in np.asarray(law.interval)]
    np.testing.assert_allclose(ends, rise, rtol=1e-3)  # that of the grid's minimum
    assert law.interval[0] < law.exponent < law.interval[1]
    np.testing.assert_allclose(law.residuals, values - law(N), atol=1e-12)
    # Normal equations: weighted residuals have no constant part and no part along the power.
    weighted = np.asarray(law.residuals) / errors**2
    np.testing.assert_allclose(weighted @ np.stack([np.ones_like(N), N**law.exponent], 1), 0,
                               atol=1e-8 * np.abs(weighted).sum())  # fmt: skip


@pytest.mark.parametrize("known", [True, False])
def test_intervals_cover_the_exponent(known, seed):
    rng = np.random.default_rng(seed)
    covered = 0
    for _ in range(300):
        values = 0.3 + 0.5 * N**-1.0 + 0.01 * rng.normal(size=len(N))
        law = fit_power_law(N, values, errors=np.full_like(N, 0.01) if known else None)
        low, high = np.asarray(law.interval)
        covered += low <= -1 <= high
    # 95 % of 300 is 285 +- 3.8; an interval off by a factor of 1.3 covers 87 or 99 %.
    assert 0.90 * 300 <= covered <= 0.99 * 300


def test_values_that_bound_no_exponent():
    step = fit_power_law(N, np.where(N > 1, 0.2, 0.5))
    assert step.interval[0] == -np.inf
    assert not step.converged
    constant = fit_power_law(N, np.ones_like(N))
    np.testing.assert_array_equal(constant.interval, [-np.inf, np.inf])
    assert not constant.converged
    np.testing.assert_allclose(constant.residuals, 0, atol=1e-12)
    # A logarithm is the limit at the exponent 0, where offset and scale are infinite.
    logarithm = fit_power_law(N, np.log(N), errors=np.full_like(N, 0.1))
    assert logarithm.interval[0] < 0 < logarithm.interval[1]
    np.testing.assert_allclose(logarithm.residuals, 0, atol=0.01)


def test_bad_arguments():
    values = 1 / N
    for args, kwargs, message in [
        ((N[:3], values[:3]), {}, "at least 4 values"),
        ((N[:2], values[:2]), {"errors": values[:2]}, "at least 3 values"),
        ((np.ones(9), values), {}, "three different sizes"),
        ((N, values[1:]), {}, "of one shape"),
        ((N, values), {"errors": values[1:]}, "of one shape"),
        ((N - 1, values), {}, "sizes must be finite and positive"),
        ((N, values), {"errors": 0 * N}, "errors must be finite and positive"),
        ((N, np.nan * N), {}, "values must be finite"),
        ((N[None], values), {}, "sizes must have 1 axes"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit_power_law(*args, **kwargs)
    with pytest.raises(TypeError, match="values is traced"):
        jax.jit(lambda v: fit_power_law(N, v))(values)
