r"""What a random vector would have shown: the search for pairs that a Krylov space has missed.

An eigenvector x that the Krylov space of one start vector does not contain (a further copy of a
multiple eigenvalue, or one that a given start vector is blind to) is orthogonal to all of that
space. So it is an eigenvector, with the same eigenvalue, of the operator compressed to the
complement of the basis, and a sweep of Lanczos steps from a random vector there sees it early: what
the first run has found stands no longer in its way.

The sweep's vectors are polynomials of the compressed operator, $p_j = \pi_j(B) p_0$, and so
$\langle x, p_j\rangle = \pi_j(\mu) \langle x, p_0\rangle$ for an eigenvalue $\mu$. The vectors are
orthonormal, so $\langle x, p_0\rangle^2 \sum_j \pi_j(\mu)^2 \le 1$: the Christoffel function, a
bound on the start's component that needs no assumption on the spectrum. Once it is smaller than a
random vector's would be, there is no such x.
"""

import math
from typing import NamedTuple

import numpy as np

# A random vector's component along a given direction is below 1/(100 sqrt(n)) in one case of 125.
_MISS = 100.0
# The square of a normal number is below it in 1 of 100 cases.
_LIGHTEST = 1.57e-4


def _ends(values: np.ndarray, k: int, which: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The values as they are wanted at each end, the largest first, and where the wanted are."""
    top = {"LA": k, "SA": 0, "LM": k, "BE": (k + 1) // 2}[which]
    signed = (np.abs(values) if which == "LM" else values), -values
    both = zip(signed, (top, k - top), strict=True)
    return [(each, np.argsort(-each, stable=True)[:count]) for each, count in both]


def thresholds(
    wanted: np.ndarray, which: str, margin: np.ndarray, given: bool
) -> tuple[float, float]:
    """Where an eigenvalue that was missed would change the list by more than its uncertainty.

    A random start vector misses nothing but further copies of what it has found, and a copy puts
    the values behind it one place back: the least that matters is the last one that changes a
    value by more than the margin. Where there is none a list may still hide several at once; they
    are looked for where all of it is one value up to the margin, as what is missed is beyond it.

    Args:
      wanted: the values, the best first at each end (`ritz.wanted`).
      which: which they are.
      margin: the uncertainty of each.
      given: whether the start vector was, and may be blind to any value.

    Returns:
      The least value that would be missed at the upper end and the largest at the lower one;
      infinite where there is nothing to look for.
    """

    def beyond(values, slack):
        if len(values) < 2 - given:
            return math.inf
        last = values[-1] + slack[-1]
        moving = np.flatnonzero(values[:-1] > values[1:] + slack[1:])
        if given or values[0] <= last:
            return last
        return max(last, values[moving[-1]]) if len(moving) else math.inf

    ends = _ends(wanted, len(wanted), which)
    upper, lower = (beyond(signed[index], margin[index]) for signed, index in ends)
    return upper, -upper if which == "LM" else -lower


def skipped(values: np.ndarray, weights: np.ndarray, bound: np.ndarray, k: int, which: str) -> bool:
    """Whether the list has skipped eigenvalues, by what a random start vector weighs.

    Of a random vector one eigenvector in n weighs, in units of 1/n, the square of a normal number,
    and a Ritz value that stands for many as much as all of them.

    Args:
      values: Ritz values, at least k.
      weights: n times the squared component of the start vector along the vector of each; zero
        where it stands for one eigenvalue whatever it weighs.
      bound: the uncertainty of each.
      k: how many are wanted.
      which: which are.

    Returns:
      Whether one of the list is off by more than its bound, but for 1 in 100 cases.
    """
    for signed, index in _ends(values, k, which):
        n = np.arange(1, len(index) + 1)
        # So much n of them weigh at most, in 99 of 100 cases: Wilson and Hilferty's chi square.
        heaviest = n * (1 - 2 / (9 * n) + 2.33 * np.sqrt(2 / (9 * n))) ** 3
        total = weights[index].cumsum()
        least = (weights[index] == 0).cumsum() + np.searchsorted(heaviest, total) + (total > 0)
        there = index[np.minimum(least, len(index)) - 1]
        if (signed[index] > signed[there] + bound[there]).any():
            return True
    return False


class Shown(NamedTuple):
    """What a run from a random vector has shown, by which nothing else can have stayed hidden.

    Attributes:
      values: the Ritz values.
      couplings: of the vector of each to the run's next vector.
      start: the start vector's component along each.
    """

    values: np.ndarray
    couplings: np.ndarray
    start: np.ndarray

    def lacking(
        self, wanted: np.ndarray, margin: np.ndarray, which: str, size: int
    ) -> list[tuple[int, float, float]]:
        r"""How far the run is from where no value that belongs into a list can be hidden.

        An eigenvector x of the value $\mu$ has with a Ritz vector y the inner product
        $\langle x, y \rangle = b \langle x, q \rangle / (\mu - \theta)$, q being the next vector
        and b the coupling to it, and so the component
        $\langle x, v_0 \rangle = \langle x, q \rangle \sum_i z_i b_i / (\mu - \theta_i)$ of the
        start vector, whose components are z. As the squares of x's components add up to 1 at most,
        that is small where the run has gone far enough. A random vector's is smaller in 1 of 100
        cases.

        Args:
          wanted: the values of the list, the best first at each end (`ritz.wanted`).
          margin: the uncertainty of each.
          which: which they are.
          size: the dimension.

        Returns:
          For each end its sign, the least value times that sign that belongs into the list, and the
          logarithm by which its component is too large; zero or less where it is not.
        """
        ends = zip((1, -1), _ends(wanted, len(wanted), which), strict=True)
        points = [(sign, signed[i[-1]] + margin[i[-1]]) for sign, (signed, i) in ends if len(i)]
        if which == "LM":
            points.append((-1, points[0][1]))
        found = []
        for sign, point in points:
            with np.errstate(divide="ignore", invalid="ignore"):
                shares = self.couplings / (sign * point - self.values)
                square = np.square(self.start @ shares) / (1 + shares @ shares)
                found.append((sign, point, float(np.log(size * square / _LIGHTEST) / 2)))
        return found


def hidden(lacking: list[tuple[int, float, float]], rest: np.ndarray) -> float:
    """About how many steps until nothing is lacking, of `Shown.lacking`; zero where it is so.

    By the growth of Chebyshev polynomials on the rest, the Ritz values that are not wanted.
    """
    steps = 0.0
    for sign, point, left in lacking:
        if not left <= 0:
            signed = sign * rest
            gap = point - signed.max(initial=-math.inf)
            width = np.ptp(signed) if len(signed) else 0.0
            growth = math.acosh(1 + 2 * gap / width) if min(gap, width) > 0 else math.inf
            steps = max(steps, 1.0, left / growth if gap > 0 else math.inf)
    return steps


def least_steps(upper: float, lower: float, rest: np.ndarray, size: int) -> float:
    """About how many steps a sweep to these thresholds takes; infinite where there is no gap.

    By Chebyshev polynomials on the rest, the Ritz values that are not wanted.
    """
    if not len(rest):
        return 1.0
    low, high = rest.min(), rest.max()
    gap = min(upper - high, low - lower)
    if gap <= 0:
        return math.inf
    growth = math.acosh(1 + 2 * gap / (high - low)) if high > low else math.inf
    return math.log(2 * _MISS * math.sqrt(size)) / growth


class Search:
    """One sweep: how large the polynomials of its vectors are at the thresholds.

    Attributes:
      upper: the threshold at the upper end, or infinity.
      lower: the threshold at the lower end, or minus infinity.
    """

    def __init__(self, upper: float, lower: float, size: int):
        self.upper, self.lower = upper, lower
        self._at = np.array([x for x in (upper, lower) if math.isfinite(x)])
        self._needed = 2 * math.log(_MISS * math.sqrt(size))
        self._known = np.ones((len(self._at), 1))

    def polynomials(self, matrix: np.ndarray, beta: float) -> np.ndarray:
        """The values at the thresholds of the polynomials of all vectors, the next one included.

        From the projected matrix and the coupling to the next vector; of shape
        ``(thresholds, vectors + 1)``, infinite behind an exhausted space.
        """
        count, known = len(matrix), self._known.shape[1]
        found = np.zeros((len(self._at), count + 1))
        found[:, :known] = self._known
        with np.errstate(all="ignore"):
            for i in range(known - 1, count):
                coupling = matrix[i, i + 1] if i + 1 < count else beta
                if not coupling > 0:
                    found[:, i + 1 :] = np.inf
                    break
                inside = found[:, : i + 1] @ matrix[: i + 1, i]
                found[:, i + 1] = (self._at * found[:, i] - inside) / coupling
        return found

    def restarted(self, matrix: np.ndarray, beta: float, kept: np.ndarray) -> None:
        """Go on from combinations of the sweep's vectors (in columns) and the next one."""
        found = self.polynomials(matrix, beta)
        with np.errstate(invalid="ignore"):
            inside = found[:, :-1] @ kept
        inside = np.where(np.isnan(inside), np.inf, inside)
        self._known = np.concatenate([inside, found[:, -1:]], axis=1)

    def left(self, matrix: np.ndarray, beta: float, values: np.ndarray, noise: float) -> float:
        """How far the sweep is from its verdict: zero or less where nothing was missed.

        The logarithm of what the sum of squares lacks; infinite where one of the Ritz ``values``
        lies beyond a threshold by more than the ``noise``, which shows that something was missed.
        """
        # Half of it: a threshold may stand above a value of zero by no more than the noise.
        if min(self.upper - values.max(), values.min() - self.lower) < noise / 2:
            return math.inf
        with np.errstate(all="ignore"):
            seen = np.log(np.square(self.polynomials(matrix, beta)).sum(axis=1))
        return self._needed - np.where(np.isnan(seen), np.inf, seen).min(initial=np.inf)
