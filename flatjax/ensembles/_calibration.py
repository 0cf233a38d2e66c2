"""The negative log-likelihood of an ensemble at the best temperature."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _checks as checks
from flatjax import _reading as reading
from flatjax.ensembles._host import as_float64, check_concrete
from flatjax.linalg.probing._estimate import quiet

_WIDEST = 1e3  # how far a temperature is looked for on both sides of the logits' own scale


@reading.readable
class CalibratedNLL(NamedTuple):
    """The calibrated negative log-likelihood of an ensemble.

    Attributes:
      value: the mean over the examples, each at the temperature of the folds it is not in.
      temperature: the geometric mean of the folds' temperatures.
      standard_error: of ``value``, over the examples; the temperatures are taken as given.
      uncalibrated: the negative log-likelihood of all examples at temperature one.
    """

    value: jax.Array
    temperature: jax.Array
    standard_error: jax.Array
    uncalibrated: jax.Array

    __float__ = reading.as_float


def calibrated_nll(
    logits: Any, targets: Any, *, key: jax.Array, folds: int = 2, average: str = "after"
) -> CalibratedNLL:
    r"""The negative log-likelihood of an ensemble at the temperature that suits it best.

    With the members' logits $z_m$ and a temperature $T$ the ensemble predicts

    $$p = \frac{1}{M} \sum_m \mathrm{softmax}(z_m / T) \quad \text{(average="after")}, \qquad
    p = \mathrm{softmax}\Big(\frac{1}{T} \log \frac{1}{M} \sum_m \mathrm{softmax}(z_m)\Big)
    \quad \text{(average="before")}$$

    The examples are cut into folds at random. Each fold is scored at the temperature that minimises
    the likelihood of the others, so that no example chooses its own. Ensembles of different
    sizes are comparable by this number and not by the uncalibrated one (Ashukha et al. 2020).

    Cost: some 30 passes over the logits per fold, on the host in float64.

    Args:
      logits: the members' outputs, shape ``(members, n, classes)``; of one ``logits[None]``.
      targets: the classes, integers of shape ``(n,)``.
      key: a PRNG key, which cuts the folds.
      folds: how many, at least two.
      average: whether the members are averaged ``"after"`` the temperature or ``"before"`` it.

    Returns:
      A [`CalibratedNLL`][] of scalars. The temperature is looked for within a factor of 1,000 of
      the mean distance of a logit from the largest of its row: where every example is predicted
      right there is no best one, and the least of these is taken.

    Raises:
      TypeError: for targets that are no integers, or logits that are traced.
      ValueError: for other shapes, classes out of range, fewer examples than folds or another
        ``average``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> key = jax.random.key(0)
      >>> logits = jax.random.normal(key, (1, 4000, 5))
      >>> targets = jax.random.categorical(jax.random.key(1), logits[0])
      >>> found = flatjax.calibrated_nll(3 * logits, targets, key=key)  # three times too sure
      >>> 2.7 < float(found.temperature) < 3.3, bool(found.value < found.uncalibrated)
      (True, True)

    References:
      Ashukha, Lyzhov, Molchanov and Vetrov, "Pitfalls of in-domain uncertainty estimation and
      ensembling in deep learning", ICLR 2020; Lobacheva, Chirkova, Kodryan and Vetrov, "On power
      laws in deep ensembles", NeurIPS 2020, arXiv:2007.08483.
    """
    key = checks.check_key(key)
    checks.check_count("folds", folds, 2)
    checks.check_choice("average", average, ("after", "before"))
    scores = as_float64("logits", logits, 3)
    labels = _labels(targets, scores.shape, folds)
    with quiet():
        if average == "before":
            scores = _log_mean(scores)[None]
        scores = scores - scores.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(scores, labels[None, :, None], axis=-1)[..., 0]
        n, losses, logs = len(labels), np.empty(len(labels)), []
        finite = scores[np.isfinite(scores)]
        scale = -finite.mean() if finite.size else 0.0
        order = np.asarray(jax.random.permutation(key, n))
        for part in np.array_split(order, folds):
            others = np.ones(n, bool)
            others[part] = False
            temperature = _best(scores[:, others], chosen[:, others], scale)
            losses[part] = _losses(scores[:, part], chosen[:, part], temperature)
            logs.append(math.log(temperature))
        numbers = (
            losses.mean(),
            np.exp(np.mean(logs)),
            losses.std(ddof=1) / n**0.5,
            _losses(scores, chosen, 1.0).mean(),
        )
    return CalibratedNLL(*map(jnp.asarray, numbers))


def _labels(targets: Any, shape: tuple[int, ...], folds: int) -> np.ndarray:
    """The targets, checked against the logits of this shape."""
    members, n, classes = shape
    check_concrete("targets", targets)
    labels = np.asarray(targets)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"targets must be integers, the classes, got dtype {labels.dtype}.")
    if labels.shape != (n,) or not members or not classes:
        raise ValueError(
            "logits must have shape (members, n, classes) and targets (n,), got "
            f"{shape} and {labels.shape}."
        )
    if n < folds:
        raise ValueError(f"{folds} folds need at least {folds} examples, got {n}.")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"targets must lie from 0 to {classes - 1}: leave out the other examples.")
    return labels


def _log_mean(scores: np.ndarray) -> np.ndarray:
    """The logarithm of the members' mean prediction, up to a constant."""
    total = np.full(scores.shape[1:], -np.inf)
    for z in scores:
        shifted = z - z.max(axis=-1, keepdims=True)
        total = np.logaddexp(total, shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
    return total


def _losses(scores: np.ndarray, chosen: np.ndarray, temperature: float) -> np.ndarray:
    """Every example's loss; the largest score of a row is zero, ``chosen`` that of the target."""
    total = np.full(chosen.shape[1], -np.inf)
    for z, own in zip(scores, chosen, strict=True):  # one member's exponentials at a time
        normaliser = np.log(np.exp(z / temperature).sum(axis=-1))
        total = np.logaddexp(total, own / temperature - normaliser)
    return math.log(len(scores)) - total


def _best(scores: np.ndarray, chosen: np.ndarray, scale: float) -> float:
    """The temperature of the least loss."""
    # Imported here: it would be a large part of the time that importing the package takes.
    from scipy.optimize import minimize_scalar

    if not (0 < scale < np.inf):  # equal logits, which have no temperature
        return 1.0
    found: Any = minimize_scalar(
        lambda log: _losses(scores, chosen, math.exp(log)).mean(),
        bounds=(math.log(scale / _WIDEST), math.log(scale * _WIDEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(found.x)
