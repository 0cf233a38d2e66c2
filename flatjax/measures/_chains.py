"""What several Markov chains of one number say of its mean: error, agreement, effective samples."""

import math
from typing import NamedTuple

import numpy as np

from flatjax.linalg.probing._estimate import quiet


class Diagnosis(NamedTuple):
    """The mean of a number over several chains.

    Attributes:
      mean: over all draws.
      standard_error: of the mean, the correlation of the draws and the disagreement of the chains
        included.
      r_hat: the split potential scale reduction, 1 where the chains agree.
      effective_samples: the independent draws that are worth as much.
    """

    mean: float
    standard_error: float
    r_hat: float
    effective_samples: float


@quiet()
def diagnosed(series: np.ndarray, period: int = 1) -> Diagnosis:
    r"""The mean over chains of correlated draws.

    Every chain is split in two, so that a drift shows as a disagreement. With the variance W within
    the parts, the variance B of their means and $\mathrm{var}^+ = \frac{n-1}{n} W + B$,
    $\hat R = \sqrt{\mathrm{var}^+ / W}$. The autocorrelation at lag t is $1 - (W - C_t) /
    \mathrm{var}^+$ with the mean autocovariance $C_t$; it is summed up to the first pair of lags
    whose sum is not positive, and the sums of pairs are made to fall (Geyer 1992).

    Draws that see one batch after the other, in the same order again and again, have correlations
    of that period, which this sum is not for: their means over whole periods do not.

    Args:
      series: ``(chains, draws)``, at least four periods of draws, float64.
      period: over how many draws to average first.

    Returns:
      A [`Diagnosis`][]; not finite where a draw is not.

    Example:
      >>> import numpy as np
      >>> from flatjax.measures._chains import diagnosed
      >>> draws = np.random.default_rng(0).normal(size=(4, 1000))
      >>> found = diagnosed(draws)  # independent
      >>> 3000 < found.effective_samples < 5000, found.r_hat < 1.01
      (True, True)

    References:
      Vehtari, Gelman, Simpson, Carpenter and Buerkner, "Rank-normalization, folding, and
      localization: an improved R-hat for assessing convergence of MCMC", Bayesian Analysis 2021;
      Geyer, "Practical Markov chain Monte Carlo", Statistical Science 1992.
    """
    whole = series[:, : series.shape[1] // period * period]
    means = whole.reshape(len(series), -1, period).mean(axis=2)
    half = means.shape[1] // 2
    parts = np.concatenate([means[:, :half], means[:, -half:]])
    within, between = parts.var(axis=1, ddof=1).mean(), parts.mean(axis=1).var(ddof=1)
    variance = within * (half - 1) / half + between
    if variance == 0:  # a constant
        return Diagnosis(float(series.mean()), 0.0, 1.0, float(series.size))
    correlation = 1 - (within - _autocovariance(parts) * half / (half - 1)) / variance
    pairs = correlation[: half // 2 * 2].reshape(-1, 2).sum(axis=1)
    stop = np.argmax(pairs <= 0) if (pairs <= 0).any() else len(pairs)
    time = 2 * np.minimum.accumulate(pairs[:stop]).sum() - 1
    # Draws that alternate about the mean are worth more than independent ones, but not at will.
    samples = parts.size / max(time, 1 / math.log10(parts.size))
    return Diagnosis(
        mean=float(series.mean()),
        standard_error=math.sqrt(variance / samples),
        r_hat=math.sqrt(variance / within),
        effective_samples=float(samples * (whole.var() / means.var())),
    )


def _autocovariance(parts: np.ndarray) -> np.ndarray:
    """The mean over the rows of the autocovariance at every lag, divided by the length."""
    n = parts.shape[1]
    padded = np.fft.rfft(parts - parts.mean(axis=1, keepdims=True), n=2 * n, axis=1)
    return np.fft.irfft(np.abs(padded) ** 2, axis=1)[:, :n].mean(axis=0) / n
