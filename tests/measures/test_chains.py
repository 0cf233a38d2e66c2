"""Errors and effective samples of chains whose correlation is known."""

import numpy as np

from flatjax.measures._chains import diagnosed


def autoregressive(rho, chains, draws, seed=0):
    """Stationary chains of variance 1 with the correlation ``rho**t`` at lag t."""
    rng = np.random.default_rng(seed)
    series = np.empty((chains, draws))
    series[:, 0] = rng.normal(size=chains)
    noise = (1 - rho**2) ** 0.5 * rng.normal(size=(chains, draws))
    for t in range(1, draws):
        series[:, t] = rho * series[:, t - 1] + noise[:, t]
    return series


def test_effective_samples_of_autoregressive_chains():
    for rho in (0.0, 0.5, 0.9, -0.5):
        groups = autoregressive(rho, 40, 5000).reshape(10, 4, 5000)
        found = [diagnosed(group) for group in groups]
        expected = 20_000 * (1 - rho) / (1 + rho)
        # One estimate spreads by 7 % at most, the mean of ten by 2.3 %: four times that.
        samples = np.mean([x.effective_samples for x in found])
        np.testing.assert_allclose(samples, expected, rtol=0.09)
        errors = np.mean([x.standard_error for x in found])
        np.testing.assert_allclose(errors, expected**-0.5, rtol=0.05)
        assert all(abs(x.r_hat - 1) < 0.02 for x in found)


def test_the_error_is_that_of_the_mean():
    means, errors = zip(
        *(diagnosed(autoregressive(0.8, 4, 500, seed))[:2] for seed in range(200)), strict=True
    )
    # The spread of 200 means is known to 5 %; four standard errors of it.
    np.testing.assert_allclose(np.mean(np.square(errors)) ** 0.5, np.std(means), rtol=0.2)
    np.testing.assert_allclose(means[0], autoregressive(0.8, 4, 500, 0).mean(), rtol=1e-12)


def test_short_chains_against_the_formula():
    series = autoregressive(0.7, 3, 60, seed=15)
    parts = np.concatenate([series[:, :30], series[:, 30:]])
    within, between = parts.var(axis=1, ddof=1).mean(), parts.mean(axis=1).var(ddof=1)
    variance = 29 / 30 * within + between
    x = parts - parts.mean(axis=1, keepdims=True)
    covariance = [(x[:, : 30 - t] * x[:, t:]).sum(axis=1).mean() / 29 for t in range(30)]
    correlation = 1 - (within - np.array(covariance)) / variance
    pairs = correlation[0::2] + correlation[1::2]
    pairs = pairs[: np.argmax(pairs <= 0)]
    assert (np.diff(pairs) > 0).any()  # so that they have to be made to fall
    time = 2 * sum(min(pairs[: i + 1]) for i in range(len(pairs))) - 1
    found = diagnosed(series)
    np.testing.assert_allclose(found.effective_samples, 180 / time, rtol=1e-10)
    np.testing.assert_allclose(found.standard_error, (variance * time / 180) ** 0.5, rtol=1e-10)


def test_draws_that_meet_batches_in_turn():
    # 1 + y in three batches of 20 %, 60 % and 220 % of the mean: the pattern is no error.
    factors = np.resize([0.2, 0.6, 2.2], 600)
    groups = factors * (1 + autoregressive(0.8, 800, 600).reshape(200, 4, 600))
    found = [diagnosed(group, period=3) for group in groups]
    spread = np.std([x.mean for x in found])
    # As above.
    np.testing.assert_allclose(
        np.mean([x.standard_error**2 for x in found]) ** 0.5, spread, rtol=0.2
    )
    samples = np.mean([x.effective_samples for x in found])
    np.testing.assert_allclose(samples, groups.var() / spread**2, rtol=0.4)


def test_chains_that_disagree():
    # Means of 0, 0, 3 and 3, halves alike: B = 8 / 7 (3 / 2)^2 over W = 1.
    series = np.random.default_rng(0).normal(size=(4, 2000)) + np.array([[0], [0], [3], [3]])
    found = diagnosed(series)
    np.testing.assert_allclose(found.r_hat, (1 + 8 / 7 * 1.5**2) ** 0.5, rtol=0.02)
    assert found.effective_samples < 10  # of two groups, whatever the number of draws
    drift = diagnosed(np.random.default_rng(0).normal(size=(4, 2000)) + np.arange(2000) / 500)
    assert drift.r_hat > 1.3


def test_r_hat_and_error_in_closed_form():
    # Two chains of four draws in halves of two: W = 1/2, B = variance of (.5, .5, 2.5, 2.5) = 4/3.
    found = diagnosed(np.array([[0.0, 1.0, 0.0, 1.0], [2.0, 3.0, 2.0, 3.0]]))
    np.testing.assert_allclose(found.r_hat, ((0.5 / 2 + 4 / 3) / 0.5) ** 0.5, rtol=1e-12)
    assert found.mean == 1.5


def test_edges():
    still = diagnosed(np.full((2, 10), 3.0))
    assert still == (3.0, 0.0, 1.0, 20.0)
    broken = diagnosed(np.array([[0.0, 1.0, np.nan, 2.0]] * 2))
    assert all(np.isnan(x) for x in (broken.mean, broken.standard_error, broken.r_hat))
    alternating = diagnosed(np.tile([1.0, -1.0], (4, 500)) + np.arange(4)[:, None] * 1e-9)
    assert alternating.effective_samples <= 4000 * np.log10(4000)
