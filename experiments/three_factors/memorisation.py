"""Wrong labels memorised at different eta / S: how far, and with which validation accuracy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optax

from experiments.lib.runs.progress import say
from experiments.lib.training import minibatch
from experiments.lib.training.minibatch import Recipe
from experiments.lib.training.settings import train_settings
from experiments.lib.verdicts.claims import by_name, claims_of
from experiments.lib.verdicts.curves import curve
from experiments.lib.verdicts.figures import figure, style
from experiments.lib.verdicts.statistics import rank_correlation
from experiments.three_factors.pairs import ratios_of, spread

if TYPE_CHECKING:
    from experiments.three_factors import Config

Curves = dict[tuple[float, int], dict[str, np.ndarray]]
RECORDS = 100


_AS_BEFORE = "as without wrong labels"
_claim = claims_of("Jastrzebski et al. 2017", "set on seeds 0-2 and 10-12")

CLAIMS = by_name(
    _claim(
        "equal-ratio-equal-memorisation",
        "Largest relative range of the epochs until half of the wrong labels are fitted, "
        "within pairs of equal eta / S.",
        high=0.25,
    ),
    _claim(
        "accuracy-at-equal-memorisation-rises-with-the-ratio",
        "Rank correlation of eta / S with the validation accuracy where half of the wrong "
        "labels are fitted.",
        low=0.4,
        reason=_AS_BEFORE,
    ),
    _claim(
        "memorisation-at-equal-accuracy-falls-with-the-ratio",
        "Rank correlation of eta / S with the wrong labels fitted where the validation "
        "accuracy is first within 1 % of the best that all pairs reach.",
        high=-0.4,
        reason=_AS_BEFORE,
    ),
)


def pieces(config: Config, out: Path) -> dict[int, Callable[[], Curves]]:
    """Some batch sizes as pieces of work; each returns the records of the extreme rates."""
    seeds, rates = list(config.seed_range()), (config.rates[0], config.rates[-1])
    data = minibatch.load_seeds(
        config.data, seeds, train_size=config.train_size, label_noise=config.wrong_labels
    )

    def one(size: int) -> Curves:
        say(f"wrong labels, S {size}", enabled=not config.quiet)
        epochs = max(round(config.memorising_time / rates[0] * size / config.train_size), 1)
        found = train_settings(
            out / f"wrong_labels_{size}",
            Recipe(
                hidden=(config.width, config.width),
                loss="squared_error",
                batch_size=size,
                epochs=epochs,
                record_every=max(epochs // RECORDS, 1),
            ),
            data,
            seeds,
            lambda seed, rate: optax.sgd(rate),
            {rate: rate for rate in rates},
            quiet=config.quiet,
        )
        return {(rate, size): runs.records for rate, runs in found.items()}

    return {size: functools.partial(one, size) for size in config.memorising_batch_sizes}


def at(level: float, rising: np.ndarray, *others: np.ndarray) -> list[float]:
    """The other quantities where the first one reaches a level, between records linearly."""
    reached = np.flatnonzero(rising >= level)
    if not len(reached):
        return [float("nan")] * len(others)
    j = int(reached[0])
    if j == 0:
        return [float(values[0]) for values in others]
    part = (level - rising[j - 1]) / (rising[j] - rising[j - 1])
    return [float((1 - part) * values[j - 1] + part * values[j]) for values in others]


def halfway(curves: Curves) -> dict[str, list[list[float]]]:
    """Validation accuracy and epoch where half of the wrong labels are fitted, by pair and seed."""
    return {
        f"{rate:g}/{size}": [
            at(0.5, *row)
            for row in zip(c["noisy_fit"], c["test_accuracy"], c["epoch"], strict=True)
        ]
        for (rate, size), c in curves.items()
    }


def measure(config: Config, curves: Curves) -> dict[str, dict[int, float | None]]:
    """The number of every claim for every seed."""
    found: dict[str, dict[int, float | None]] = {name: {} for name in CLAIMS}
    ratios, groups = ratios_of(curves)
    for i, seed in enumerate(config.seed_range()):
        fits = [c["noisy_fit"][i] for c in curves.values()]
        tests = [c["test_accuracy"][i] for c in curves.values()]
        half = np.array([rows[i] for rows in halfway(curves).values()])
        level = min(test.max() for test in tests) - 0.01
        fitted = [at(level, *row)[0] for row in zip(tests, fits, strict=True)]
        for name, number in zip(
            CLAIMS,
            (
                max(spread(half[g, 1]) for g in groups),
                rank_correlation(ratios, half[:, 0]),
                rank_correlation(ratios, fitted),
            ),
            strict=True,
        ):
            found[name][seed] = float(number)
    return found


def draw(path: Path, curves: Curves) -> None:
    """Validation accuracy against the wrong labels fitted, and both along training."""
    order = sorted(curves, key=lambda pair: pair[0] / pair[1])
    with figure(path, 1, 3, panel=(3.6, 3.1)) as (left, middle, right):
        for number, (rate, size) in enumerate(order):
            c = curves[rate, size]
            label = f"eta {rate:g}, S {size}"
            time = c["epoch"][0] * rate / size
            curve(left, time, c["noisy_fit"], number, label)
            curve(middle, time, c["test_accuracy"], number)
            for seed in range(len(c["noisy_fit"])):
                right.plot(
                    c["noisy_fit"][seed],
                    c["test_accuracy"][seed],
                    **style(number, markers=False) | {"linewidth": 0.8},
                )
        for axes, words in ((left, "wrong labels fitted"), (middle, "validation accuracy")):
            axes.set(xlabel="epochs x eta / S", title=words)
        right.set(xlabel="wrong labels fitted", title="validation accuracy")
        # The first records, at chance, would flatten what is compared.
        lowest = min(c["test_accuracy"][:, -1].min() for c in curves.values())
        for axes in (middle, right):
            axes.set_ylim(bottom=lowest - 0.1)
        left.legend(fontsize=7)
