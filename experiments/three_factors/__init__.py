"""The ratio of learning rate to batch size decides how flat SGD's minimum is, and how good.

Jastrzebski et al. 2017, "Three Factors Influencing Minima in SGD". A tanh network learns the digits
with squared error by SGD, with all pairs of three learning rates eta and four batch sizes S, until
the training loss is 0.01, so that curvature is compared at equal loss. Both largest eigenvalue and
trace of the Hessian at the end fall with eta / S, validation accuracy rises; pairs of equal eta / S
need equally many epochs and end equally curved.

The paper's memorisation experiment beside it: a quarter of the labels wrong, with the extreme
learning rates and three batch sizes. There a larger eta / S memorises less at the same validation
accuracy, or generalises better where as much is memorised.

    python -m experiments three_factors        # three seeds, 1 minute

Found: rank correlations of eta / S with the largest eigenvalue and with the trace -0.98, with the
validation accuracy 0.79; the trace varies by 34 % over all pairs and by 1 % within pairs of equal
eta / S, whose epochs differ by 3 % at most.

With wrong labels, pairs of equal eta / S memorise in epochs that differ by 5 %. That memorisation
falls with eta / S is not reproduced: where half of the wrong labels are fitted, the validation
accuracy is 84.1 to 84.3 per cent for all ratios up to 0.005, with no order beyond the noise, and
79.4 at 0.02, where batches of four are so noisy that it jumps by 3 per cent between epochs. Much
the same came with cross-entropy, with three layers, with half of the labels wrong, and with
learning rates up to 0.4, on seeds 0-2. What is seen is that noise delays: at an equal product of
eta / S and epochs the largest ratio has memorised less than the others. At the end, with 95 per
cent of the wrong labels fitted where the others of its rate have all, it keeps an accuracy of 76
per cent where they have 69 and 70.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.lab import Lab, Options, shared
from experiments.lib.verdicts.curves import curve, words
from experiments.lib.verdicts.figures import style
from experiments.lib.verdicts.statistics import rank_correlation
from experiments.three_factors.training import Pairs, all_pairs


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 320  # training examples
    width: int = 64  # units of each of the two hidden layers
    rates: tuple[float, ...] = (0.02, 0.04, 0.08)  # learning rates ...
    batch_sizes: tuple[int, ...] = (4, 8, 16, 32)  # ... and batch sizes, all pairs of them
    stop_loss: float = 0.01  # train until the loss of the training set is this ...
    max_time: float = 600.0  # ... or learning rate times steps is this
    probes: int = 40  # random vectors of the trace of the Hessian
    wrong_labels: float = 0.25  # share of them where the extreme rates memorise ...
    memorising_batch_sizes: tuple[int, ...] = (4, 16, 64)  # ... with these batch sizes ...
    memorising_time: float = 80.0  # ... for so much of the smallest learning rate times steps


# fmt: off
lab = Lab(
    Config, "Jastrzebski et al. 2017",
    smoke={"seeds": 1, "train_size": 32, "width": 8, "rates": (0.05, 0.1), "batch_sizes": (8,),
           "stop_loss": 0.2, "max_time": 30.0, "probes": 4, "memorising_batch_sizes": (8,)},
    paper={"data": "fashion_mnist", "train_size": 55_000, "width": 512,
           "rates": (0.005, 0.01, 0.02), "batch_sizes": (16, 32, 64, 128), "stop_loss": 0.02},
)
# fmt: on
EXPERIMENT = lab.experiment

Runs = dict[str, Pairs]
"""`clean`: what every pair ends with; `wrong`: the records of pairs with wrong labels."""


@lab.run
def run(config: Config, out: Path) -> Runs:
    """All pairs of learning rate and batch size."""
    found: Runs = {"clean": {}, "wrong": {}}
    for (kind, *_), pairs in shared(config, all_pairs(config, out)).items():
        found[kind] |= pairs
    return found


def ratios_of(pairs: Iterable[tuple[float, int]]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Eta / S of all pairs, and for each value which pairs have it."""
    ratios = np.array([rate / size for rate, size in pairs])
    return ratios, [np.isclose(ratios, r, rtol=1e-3) for r in np.unique(ratios.round(8))]


def spread(values: np.ndarray) -> float:
    """Largest over smallest, minus one."""
    return float(values.max() / values.min() - 1)


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


def halfway(pairs: Pairs) -> np.ndarray:
    """Validation accuracy and epoch with half of the wrong labels fitted, (pairs, seeds, 2)."""
    names = ("noisy_fit", "test_accuracy", "epoch")
    return np.array(
        [
            [at(0.5, *row) for row in zip(*(p[n] for n in names), strict=True)]
            for p in pairs.values()
        ]
    )


def column(runs: Runs, name: str) -> np.ndarray:
    """A number of every seed and pair."""
    return np.array([pair[name] for pair in runs["clean"].values()], float).T


def rank(name: str) -> Any:
    """The measure of a claim: rank correlation with eta / S; none if a pair misses the loss."""

    def measure(runs: Runs, config: Config) -> list[float]:
        ratios, _ = ratios_of(runs["clean"])
        reached = (column(runs, "loss") <= config.stop_loss).all(1)
        rows = zip(reached, column(runs, name), strict=True)
        return [rank_correlation(ratios, row) if ok else float("nan") for ok, row in rows]

    return measure


def within(pairs: Pairs, rows: np.ndarray) -> list[float]:
    """The largest relative range within pairs of equal eta / S, of rows (seeds, pairs)."""
    _, groups = ratios_of(pairs)
    return [max(spread(row[group]) for group in groups) for row in rows]


def fitted_at_equal_accuracy(pairs: Pairs, seed: int) -> list[float]:
    """Wrong labels fitted where the accuracy is first within 1 % of the best that all reach."""
    tests = [p["test_accuracy"][seed] for p in pairs.values()]
    level = min(test.max() for test in tests) - 0.01
    return [
        at(level, test, p["noisy_fit"][seed])[0]
        for test, p in zip(tests, pairs.values(), strict=True)
    ]


def with_ratio(number: Callable[[Pairs, int], Any]) -> Any:
    """The measure of a claim on wrong labels: rank correlation of eta / S and a number."""

    def measure(runs: Runs, config: Config) -> list[float]:
        pairs = runs["wrong"]
        ratios, _ = ratios_of(pairs)
        return [rank_correlation(ratios, number(pairs, i)) for i in range(config.seeds)]

    return measure


# fmt: off
lab.claim("sharpness-falls-with-the-ratio",
          "Rank correlation of eta / S with the largest eigenvalue at the end.",
          rank("sharpness"), high=-0.9, source="seeds", reason="set on seeds 0-4")
lab.claim("trace-falls-with-the-ratio",
          "Rank correlation of eta / S with the trace of the Hessian at the end.",
          rank("trace"), high=-0.9, source="seeds", reason="set on seeds 0-4")
lab.claim("accuracy-rises-with-the-ratio",
          "Rank correlation of eta / S with the validation accuracy.",
          rank("test_accuracy"), low=0.4, source="seeds", reason="set on seeds 0-4")
lab.claim("equal-ratio-equal-curvature",
          "Largest relative range of the trace within pairs of equal eta / S.",
          lambda runs, config: within(runs["clean"], column(runs, "trace")),
          high=0.05, source="seeds", reason="set on seeds 0-4")
lab.claim("unequal-ratio-unequal-curvature", "Relative range of the trace over all pairs.",
          lambda runs, config: [spread(row) for row in column(runs, "trace")],
          low=0.2, source="seeds", reason="set on seeds 0-4")
lab.claim("equal-ratio-equal-time",
          "Largest relative range of the epochs within pairs of equal eta / S.",
          lambda runs, config: within(runs["clean"], column(runs, "epochs")),
          high=0.1, source="seeds", reason="set on seeds 0-4")
lab.claim("equal-ratio-equal-memorisation",
          "Largest relative range of the epochs until half of the wrong labels are fitted, "
          "within pairs of equal eta / S.",
          lambda runs, config: within(runs["wrong"], halfway(runs["wrong"])[..., 1].T),
          high=0.25, source="seeds", reason="set on seeds 0-2 and 10-12")
lab.claim("accuracy-at-equal-memorisation-rises-with-the-ratio",
          "Rank correlation of eta / S with the validation accuracy where half of the wrong "
          "labels are fitted.",
          with_ratio(lambda pairs, seed: halfway(pairs)[:, seed, 0]),
          low=0.4, source="seeds", reason="as without wrong labels")
lab.claim("memorisation-at-equal-accuracy-falls-with-the-ratio",
          "Rank correlation of eta / S with the wrong labels fitted where the validation "
          "accuracy is first within 1 % of the best that all pairs reach.",
          with_ratio(fitted_at_equal_accuracy),
          high=-0.4, source="seeds", reason="as without wrong labels")
# fmt: on

NAMES = {"test_accuracy": "validation accuracy", "epochs": "epochs to the loss"}


@lab.figure(
    "At the end of training against eta / S; means over seeds, two standard errors.",
    rows=2, columns=2,
)  # fmt: skip
def ratio(axes: Any, runs: Runs, config: Config) -> None:
    """Curvature, accuracy and epochs against eta / S: a point a pair."""
    for panel, name in zip(
        axes.flat, ("sharpness", "trace", "test_accuracy", "epochs"), strict=True
    ):
        for number, rate in enumerate(config.rates):
            rows = np.array([runs["clean"][rate, size][name] for size in config.batch_sizes])
            error = rows.std(1, ddof=1) / np.sqrt(config.seeds) if config.seeds > 1 else 0.0
            x = [rate / size for size in config.batch_sizes]
            options = {**style(number), "linestyle": "none", "label": rf"$\eta$ = {rate:g}"}
            panel.errorbar(x, rows.mean(1), yerr=2 * error, capsize=3, **options)
        panel.set(xlabel=r"$\eta / S$", ylabel=NAMES.get(name, words(name)), xscale="log")
    axes[0, 0].legend()
    axes[1, 1].set_yscale("log")


@lab.figure(
    "With wrong labels: along training, mean over seeds and two standard errors, and every seed's "
    "accuracy against what is memorised.",
    columns=3,
)
def wrong_labels(axes: Any, runs: Runs, config: Config) -> None:
    """Validation accuracy against the wrong labels fitted, and both along training."""
    pairs = runs["wrong"]
    for number, (rate, size) in enumerate(sorted(pairs, key=lambda pair: pair[0] / pair[1])):
        p = pairs[rate, size]
        time = p["epoch"][0] * rate / size
        curve(axes[0], time, p["noisy_fit"], number, rf"$\eta$ = {rate:g}, $S$ = {size}")
        curve(axes[1], time, p["test_accuracy"], number)
        for row in zip(p["noisy_fit"], p["test_accuracy"], strict=True):
            axes[2].plot(*row, **style(number, markers=False) | {"linewidth": 0.8})
    # The first records, at chance, would flatten what is compared.
    lowest = min(p["test_accuracy"][:, -1].min() for p in pairs.values())
    for panel in axes[1:]:
        panel.set(ylabel="validation accuracy", ylim=(lowest - 0.1, None))
    for panel in axes[:2]:
        panel.set(xlabel=r"epochs $\times\ \eta / S$")
    axes[0].set(ylabel=words("noisy_fit"))
    axes[2].set(xlabel=words("noisy_fit"))
    axes[0].legend(fontsize=7)


@lab.extra
def numbers(runs: Runs, config: Config) -> dict[str, Any]:
    """What every pair ends with, and where half of the wrong labels are fitted."""
    half = zip(runs["wrong"], halfway(runs["wrong"]), strict=True)
    return {
        "pairs": {f"{rate:g}/{size}": row for (rate, size), row in runs["clean"].items()},
        "wrong_labels_half_fitted": {f"{rate:g}/{size}": rows for (rate, size), rows in half},
    }
