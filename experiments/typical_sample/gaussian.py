"""Least squares with Gaussian inputs: its modes and typical samples in closed form, and by SGLD.

Of N examples y = w* x + noise the loss is L(w) = |X w - y|^2 / 2 N, with x ~ N(0, I / d). Samples
of exp(-(L + tau |w|^2 / 2) / T) are Gaussian about the mode, with covariance T / (H + tau) and H =
X'X / N. Every function takes many data sets side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import flatjax
from flatjax import loops


class Data(NamedTuple):
    """Data sets, and losses on them.

    Attributes:
      hessian: H of each, (sets, d, d).
      slope: X'y / N, (sets, d).
      square: |y|^2 / 2 N, (sets,).
      teacher: w*, (sets, d).
      floor: the test loss of the teacher, half the variance of the noise.
    """

    hessian: Any
    slope: Any
    square: Any
    teacher: Any
    floor: float

    def train_loss(self, w: Any) -> Any:
        """L, (sets,)."""
        curved = jnp.einsum("ki,kij,kj->k", w, self.hessian, w) / 2
        return curved - (self.slope * w).sum(-1) + self.square

    def test_loss(self, w: Any) -> Any:
        """The same over fresh examples, exactly, (sets,)."""
        return self.floor + ((w - self.teacher) ** 2).mean(-1) / 2


def draw(rng: np.random.Generator, sets: int, examples: int, weights: int, sigma: float) -> Data:
    """Data sets of a teacher with weights N(0, 1), so that its outputs have variance one."""
    inputs = rng.standard_normal((sets, examples, weights)) / np.sqrt(weights)
    teacher = rng.standard_normal((sets, weights))
    targets = np.einsum("kni,ki->kn", inputs, teacher)
    targets += sigma * rng.standard_normal(targets.shape)
    return Data(
        np.swapaxes(inputs, 1, 2) @ inputs / examples,
        np.einsum("kni,kn->ki", inputs, targets) / examples,
        (targets**2).mean(-1) / 2,
        teacher,
        sigma**2 / 2,
    )


def joined(parts: Sequence[Data]) -> Data:
    """Data sets of one shape and noise, one after the other."""
    together = jax.tree.map(lambda *a: np.concatenate(a) if np.ndim(a[0]) else a[0], *parts)
    return Data(*together)


def measured(data: Data, w: Any) -> Any:
    """Training loss, test loss and half the squared norm, (3, sets)."""
    return jnp.stack([data.train_loss(w), data.test_loss(w), (w**2).sum(-1) / 2])


def mode(data: Data, precision: float) -> np.ndarray:
    """Where L + tau |w|^2 / 2 is least; without tau the least of such w, (sets, d)."""
    values, vectors = np.linalg.eigh(data.hessian)
    known = values + precision > 1e-10 * values.max()
    scale = np.where(known, 1 / np.where(known, values + precision, 1.0), 0.0)
    along = np.einsum("kij,ki->kj", vectors, data.slope)
    return np.einsum("kij,kj->ki", vectors, scale * along)


def traces(data: Data, precision: float) -> tuple[np.ndarray, np.ndarray]:
    """The traces of H (H + tau)^-1, the effective number of weights, and (H + tau)^-1 / d.

    T / 2 times them is what a typical sample has more training and test loss than the mode; (sets,)
    each.
    """
    values = np.linalg.eigvalsh(data.hessian)
    inverse = 1 / (values + precision)
    return (values * inverse).sum(-1), inverse.mean(-1)


def mode_gap(sigma: float, examples: int, weights: int) -> float:
    """Test less training loss of the mode without tau, over data sets: sigma^2 d / 2 (1/N + ...).

    The mean of the inverse of a Wishart matrix is 1 / (N - d - 1), so that the test loss is above
    its floor by sigma^2 d / 2 (N - d - 1); the training loss is below by sigma^2 d / 2 N.
    """
    return sigma**2 * weights / 2 * (1 / examples + 1 / (examples - weights - 1))


def extra_gap(temperature: float, examples: int, weights: int) -> float:
    """By how much the gap of a typical sample is larger, without tau: T d / 2 (d + 1)/(N - d - 1).

    Its training loss is T d / 2 higher (equipartition), its test loss T d / 2 N / (N - d - 1).
    """
    return temperature * weights / 2 * (weights + 1) / (examples - weights - 1)


@jax.jit
def _advance(data, mode, w, state, setting, steps):
    """Steps of SGLD, and the sums of what is measured after each."""
    # The loss is the potential itself: exp(-U / T) of U = L + tau |w|^2 / 2.
    tx = flatjax.langevin(num_data=1, **setting)

    def step(_, carry):
        w, state, sums = carry
        gradient = jnp.einsum("kij,kj->ki", data.hessian, w) - data.slope
        updates, state = tx.update(gradient, state, w)
        w = w + updates
        both = measured(data, w) + measured(data, 2 * mode - w)
        return w, state, sums + both / 2

    return loops.fori(steps, step, (w, state, jnp.zeros((3, len(w)))))


def sample(
    data: Data, seed: int, *, rate: float, temperature: float, precision: float, warm_up: int,
    steps: int,
) -> np.ndarray:  # fmt: skip
    """Means along one chain of SGLD for each data set, from the mode.

    Each sample is measured together with its mirror image at the mode, which is as probable: what
    is linear in the distance, and only adds to the error of the means, is gone.

    Args:
      data: the data sets.
      seed: of the noise.
      rate: eta.
      temperature: T.
      precision: tau.
      warm_up: steps that are not measured ...
      steps: ... and that are.

    Returns:
      The means of `measured`, (3, sets).
    """
    setting = {"learning_rate": rate, "temperature": temperature, "prior_precision": precision}
    given, start = jax.tree.map(jnp.asarray, (data, mode(data, precision)))
    state = flatjax.langevin(rate, num_data=1, seed=seed).init(start)
    w, state, _ = _advance(given, start, start, state, setting, warm_up)
    _, _, sums = _advance(given, start, w, state, setting, steps)
    return np.asarray(sums, float) / steps
