"""What is known exactly: noise of minibatches, stationary laws of quadratics and of two wells."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import quad
from scipy.linalg import eigh_tridiagonal, solve_continuous_lyapunov, solve_discrete_lyapunov
from scipy.optimize import brentq
from scipy.stats import binom


def finite_population(examples: int, batch_size: Any) -> Any:
    """Covariance of a batch mean without replacement over that with it: (N - S) / (N - 1)."""
    return (examples - np.asarray(batch_size)) / (examples - 1)


def boltzmann_variance(rate: Any, batch_size: Any, curvature: Any, momentum: Any = 0.0) -> Any:
    """The temperature eta / (2 S (1 - b)) over the curvature; gradient noise has variance one."""
    return rate / (2 * batch_size * (1 - momentum) * curvature)


def chain_variance(rate: Any, batch_size: Any, curvature: Any, momentum: Any = 0.0) -> Any:
    """The stationary variance of SGD itself on h x^2 / 2, at any step size.

    With momentum b it is eta (1 + b) / (S h (1 - b) (2 (1 + b) - eta h)), which without it is
    eta / (S h (2 - eta h)).
    """
    finite_step = 1 - rate * curvature / (2 * (1 + momentum))
    return boltzmann_variance(rate, batch_size, curvature, momentum) / finite_step


def stationary_covariance(hessian: np.ndarray, noise: np.ndarray, rate: float) -> np.ndarray:
    """The solution of Sigma = (1 - eta H) Sigma (1 - eta H) + eta^2 C."""
    step = np.eye(len(hessian)) - rate * hessian
    return np.asarray(solve_discrete_lyapunov(step, rate**2 * noise))


def continuous_covariance(hessian: np.ndarray, noise: np.ndarray, rate: float) -> np.ndarray:
    """Its limit of small steps: H Sigma + Sigma H = eta C."""
    return np.asarray(solve_continuous_lyapunov(hessian, rate * noise))


def circulation(hessian: np.ndarray, covariance: np.ndarray, rate: float) -> float:
    """E[x_1 x'_2 - x_2 x'_1] from one step to the next: an entry of eta (H Sigma - Sigma H)."""
    return float(rate * (hessian @ covariance - covariance @ hessian)[0, 1])


def current(hessian: np.ndarray, covariance: np.ndarray, rate: float, x: np.ndarray) -> np.ndarray:
    """The probability current of a step of the chain, at the points x (..., 2).

    The density of the midpoint of a step times the mean of its displacement there. Both are
    Gaussian; their covariance is the antisymmetric eta (Sigma H - H Sigma) / 2.
    """
    moved = rate * (covariance @ hessian + hessian @ covariance)
    middle = np.linalg.inv(covariance - moved / 4)
    height = np.exp(-np.einsum("...i,ij,...j->...", x, middle, x) / 2)
    height *= np.sqrt(np.linalg.det(middle)) / (2 * np.pi)
    turn = rate / 2 * (covariance @ hessian - hessian @ covariance)
    return height[..., None] * (x @ middle @ turn.T)


class Wells(NamedTuple):
    """A potential of two parabolas a and b, L = -log(exp(-k a) + exp(-k b)) / k.

    Attributes:
      centres: of the wells A and B.
      curvatures: of both.
      depths: the loss at both.
      sharpness: k; the larger, the nearer L is to the smaller parabola.
    """

    centres: tuple[float, float] = (-1.0, 0.6)
    curvatures: tuple[float, float] = (1.0, 4.0)
    depths: tuple[float, float] = (0.1, 0.0)
    sharpness: float = 8.0

    def parabolas(self, x: Any) -> list[Any]:
        """Both of them."""
        wells = zip(self.centres, self.curvatures, self.depths, strict=True)
        return [depth + h * (x - c) ** 2 / 2 for c, h, depth in wells]

    def loss(self, x: Any) -> Any:
        """L."""
        a, b = self.parabolas(x)
        return -np.logaddexp(-self.sharpness * a, -self.sharpness * b) / self.sharpness

    def gradient(self, x: Any) -> Any:
        """The derivative of L."""
        a, b = self.parabolas(x)
        share = (1 - np.tanh(self.sharpness * (a - b) / 2)) / 2  # of A
        in_a, in_b = (h * (x - c) for c, h in zip(self.centres, self.curvatures, strict=True))
        return in_b + share * (in_a - in_b)

    def barrier(self) -> float:
        """Where the loss is largest between the wells."""
        a, b = self.centres
        inside = np.linspace(a, b, 101)[1:-1]
        top = int(np.argmax(self.loss(inside)))
        return float(brentq(self.gradient, inside[top - 1], inside[top + 1]))

    def boltzmann_odds(self, noise: float) -> float:
        """p_A / p_B by the integrals of exp(-2 L / noise); the noise is eta sigma^2 / S."""
        density = lambda x: np.exp(-2 * self.loss(x) / noise)  # noqa: E731
        at, reach = self.barrier(), 12 * np.sqrt(noise / min(self.curvatures))
        left = quad(density, min(self.centres) - reach, at, limit=200)[0]
        return left / quad(density, at, max(self.centres) + reach, limit=200)[0]

    def laplace_odds(self, noise: float) -> float:
        """The same by the curvatures at the minima: sqrt(h_B / h_A) exp(2 (L_B - L_A) / noise)."""
        return self.width_odds() * float(np.exp(2 * (self.depths[1] - self.depths[0]) / noise))

    def width_odds(self) -> float:
        """sqrt(h_B / h_A), to which the odds tend as the noise grows."""
        return float(np.sqrt(self.curvatures[1] / self.curvatures[0]))


def fokker_planck(wells: Wells, noise: float, edges: np.ndarray, start: float, times: Any) -> Any:
    """Probabilities of bins at some times: dP/dt = d/dx (L' P) + noise / 2 d^2P / dx^2.

    Cells of equal width hop to their neighbours at rates D exp(-(change of L) / 2 D) / width^2
    with D = noise / 2, which leave Boltzmann's law as it is. The square roots of its
    probabilities make that matrix symmetric, with D / width^2 beside the diagonal: its eigenvectors
    give the solution at any time without a step in time.

    Args:
      wells: the potential.
      noise: eta sigma^2 / S.
      edges: of the bins, all of one width, (bins + 1,).
      start: where all particles are at time zero.
      times: in steps times eta.

    Returns:
      The probabilities, (times, bins).
    """
    diffusion, parts = noise / 2, 8  # cells per bin
    bins = len(edges) - 1
    width = (edges[-1] - edges[0]) / (bins * parts)
    cells = edges[0] + width * (np.arange(bins * parts) + 0.5)
    loss = wells.loss(cells)
    change = np.diff(loss) / (2 * diffusion)
    hops = diffusion / width**2
    leaving = np.zeros(len(cells))
    leaving[:-1] += hops * np.exp(-change)
    leaving[1:] += hops * np.exp(change)
    values, vectors = eigh_tridiagonal(-leaving, np.full(len(change), hops))
    root = np.exp(-(loss - loss.min()) / (2 * diffusion))
    # Between the two cells about the start, so that the mean is there.
    first = np.clip(int((start - cells[0]) // width), 0, len(cells) - 2)
    share = (start - cells[first]) / width
    weights = (1 - share) * vectors[first] / root[first] + share * vectors[first + 1] / root[
        first + 1
    ]
    found = [root * (vectors @ (np.exp(values * time) * weights)) for time in times]
    return np.array(found).reshape(len(times), bins, parts).sum(-1)


def sampling_floor(probabilities: np.ndarray, draws: int) -> np.ndarray:
    """Expected total variation between a law on bins and the histogram of so many draws from it.

    Half the sum of the mean absolute deviations of binomial counts, each 2 k (1 - p) P(k) with k
    the integer after their mean (de Moivre).
    """
    p = np.clip(probabilities, 0, 1)
    above = np.floor(draws * p) + 1
    deviation = 2 * above * (1 - p) * binom.pmf(above, draws, p)
    return deviation.sum(-1) / (2 * draws)


def total_variation(a: Any, b: Any) -> Any:
    """Half of the absolute differences, summed over bins."""
    return abs(np.asarray(a) - b).sum(-1) / 2
