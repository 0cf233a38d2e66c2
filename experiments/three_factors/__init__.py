"""The ratio of learning rate to batch size decides how flat SGD's minimum is, and how good.

Jastrzebski et al. 2017, "Three Factors Influencing Minima in SGD". A tanh network learns the digits
with squared error by SGD, with all pairs of three learning rates eta and four batch sizes S, until
the training loss is 0.01, so that curvature is compared at equal loss. The norm of the Hessian at
the end falls with eta / S, validation accuracy rises; pairs of equal eta / S need equally many
epochs and end equally curved. The third factor is the covariance of the gradient noise: twice a
batch with twice its noise ends as the batch does. Momentum m makes eta / (1 - m) of the rate: with
half the rate and m = 1/2 the end is that of the rate without.

The paper's memorisation experiment beside it: a quarter of the labels wrong, with the extreme
learning rates and three batch sizes. There a larger eta / S memorises less at the same validation
accuracy, or generalises better where as much is memorised.

    python -m experiments three_factors

Found: the norm's ranks follow eta / S to -0.98, with 0.4 % of the variance of its logarithm within
equal ratios. Twice the batch with twice the noise ends 3 % above, and so does half the rate with
momentum: both are on the bound that was set. Times within equal ratios differ by 3 %. With wrong
labels neither of the paper's statements is seen: the correlations are -0.5 ± 0.2 and 0.3 ± 0.2, of
the opposite signs. With batch norm on Fashion-MNIST the ranks follow to -0.88 ± 0.05, times within
equal ratios differ by 4 %, and three seeds leave most claims open.

real and paper: the paper's four-layer network with batch norm on Fashion-MNIST, when prepared.
Batch norm normalises over the examples at hand, also where loss, Hessian and accuracy are measured;
networks with wrong labels are evaluated by their running averages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.lab import Lab, Options, shared
from experiments.lib.nets.architecture import Architecture
from experiments.lib.verdicts.curves import curve, words
from experiments.lib.verdicts.figures import style
from experiments.lib.verdicts.statistics import rank_correlation
from experiments.three_factors.pairs import (
    Pairs,
    accuracy_halfway,
    alike,
    crossed,
    fitted_at_equal_accuracy,
    halfway,
    rates_of,
    ratios_of,
    unexplained,
    within,
)
from experiments.three_factors.training import all_pairs


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 320  # training examples
    architecture: Architecture = Architecture(hidden=(64, 64), loss="squared_error")
    test_size: int | None = None  # validation examples; all others unless given
    rates: tuple[float, ...] = (0.02, 0.04, 0.08)  # learning rates ...
    batch_sizes: tuple[int, ...] = (4, 8, 16, 32)  # ... and batch sizes, all pairs of them
    stop_loss: float = 0.01  # train until the loss of the training set is this ...
    max_time: float = 600.0  # ... or learning rate times steps is this
    curvature_size: int | None = None  # examples of the Hessian; all of the training set or so many
    probes: int = 40  # random vectors of its trace and norm
    wrong_labels: float = 0.25  # share of them where the extreme rates memorise ...
    memorising_batch_sizes: tuple[int, ...] = (4, 16, 64)  # ... with these batch sizes ...
    memorising_time: float = 80.0  # ... for so much of the smallest learning rate times steps


# fmt: off
lab = Lab(
    Config, "Jastrzebski et al. 2017",
    smoke={"seeds": 1, "train_size": 32, "architecture": {"hidden": (8, 8)}, "rates": (0.05, 0.1),
           "batch_sizes": (8, 16), "stop_loss": 0.2, "max_time": 30.0, "probes": 4,
           "memorising_batch_sizes": (8,)},
    real={"data": "fashion_mnist", "seeds": 3, "train_size": 4000, "test_size": 2000,
          "architecture": {"network": "mlp-3-128-batch", "loss": "cross_entropy"},
          "rates": (0.01, 0.02, 0.04), "batch_sizes": (64, 128, 256), "stop_loss": 0.05,
          "curvature_size": 400, "probes": 10,
          "memorising_batch_sizes": (64, 256), "memorising_time": 50.0},
    # The paper's first network: four layers, ReLU, batch norm. Its runs have 200 epochs, here they
    # end at a loss, where curvature is compared. Width, rates, batch sizes, loss: not from it.
    paper={"data": "fashion_mnist", "train_size": 60_000,
           "architecture": {"network": "mlp-3-512-batch", "loss": "cross_entropy"},
           "rates": (0.005, 0.01, 0.02), "batch_sizes": (16, 32, 64, 128), "stop_loss": 0.02},
)
# fmt: on
EXPERIMENT = lab.experiment

Runs = dict[str, Pairs]
"""`clean`: what every pair ends with; `noisier`: the largest rate and second batch size with the
noise of the first; `momentum`: the second largest rate with as much momentum as makes it the
largest; `wrong`: the records of pairs with wrong labels."""


@lab.run
def run(config: Config, out: Path) -> Runs:
    """All pairs of learning rate and batch size."""
    found: Runs = {"clean": {}, "noisier": {}, "momentum": {}, "wrong": {}}
    for (kind, *_), pairs in shared(config, all_pairs(config, out)).items():
        found[kind] |= pairs
    return found


def column(runs: Runs, name: str) -> np.ndarray:
    """A number of every seed and pair."""
    return np.array([pair[name] for pair in runs["clean"].values()], float).T


def at_loss(runs: Runs, config: Config, name: str) -> np.ndarray:
    """A number of every seed and pair; NaN for a seed if one of its pairs misses the loss."""
    reached = (column(runs, "loss") <= config.stop_loss).all(1, keepdims=True)
    return np.where(reached, column(runs, name), np.nan)


def rank(name: str, of: Any = ratios_of) -> Any:
    """The measure of a claim: rank correlation with eta / S."""
    return lambda runs, config: [
        rank_correlation(of(runs["clean"]), row) for row in at_loss(runs, config, name)
    ]


def slope(name: str, runs: Runs, config: Config) -> np.ndarray:
    """The slope of the logarithm against that of eta / S, for every seed."""
    x = np.log(ratios_of(runs["clean"]))
    x = x - x.mean()
    return np.log(at_loss(runs, config, name)) @ x / (x @ x)


def not_collapsed(runs: Runs, config: Config) -> np.ndarray:
    """What eta / S leaves of the variance of the logarithm of the norm."""
    rows = np.log(at_loss(runs, config, "frobenius"))
    return unexplained(rows, ratios_of(runs["clean"]))


def by_one_alone(runs: Runs, config: Config) -> np.ndarray:
    """What the learning rate alone leaves of it, or the batch size if that is less."""
    rows = np.log(at_loss(runs, config, "frobenius"))
    return np.minimum(*(unexplained(rows, numbers) for numbers in zip(*runs["clean"], strict=True)))


def over_sgd(kind: str, pair: Callable[[Config], tuple[float, int]]) -> Any:
    """The measure of a claim: the norm for a pair over SGD's, largest rate and first batch size."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        ends = runs[kind][pair(config)], runs["clean"][config.rates[-1], config.batch_sizes[0]]
        reached = np.all([end["loss"] <= config.stop_loss for end in ends], axis=0)
        return np.where(reached, ends[0]["frobenius"] / ends[1]["frobenius"], np.nan)

    return measure


def second_batch(config: Config) -> tuple[float, int]:
    """The largest rate with the second batch size."""
    return config.rates[-1], config.batch_sizes[1]


def second_rate(config: Config) -> tuple[float, int]:
    """The second largest rate with the first batch size."""
    return config.rates[-2], config.batch_sizes[0]


def range_of(number: Callable[[Runs], np.ndarray], kind: str, of: Any = ratios_of) -> Any:
    """The measure of a claim: the largest relative range within pairs of equal eta / S."""
    return lambda runs, config: within(alike(of(runs[kind])), number(runs))


def with_ratio(number: Callable[[Pairs, int], Any], of: Any = ratios_of) -> Any:
    """The measure of a claim on wrong labels: rank correlation of eta / S and a number."""
    return lambda runs, config: [
        rank_correlation(of(runs["wrong"]), number(runs["wrong"], i)) for i in range(config.seeds)
    ]


def epochs(runs: Runs) -> np.ndarray:
    """Epochs to the loss, (seeds, pairs)."""
    return column(runs, "epochs")


def epochs_halfway(runs: Runs) -> np.ndarray:
    """Epochs until half of the wrong labels are fitted, (seeds, pairs)."""
    return halfway(runs["wrong"])[..., 1].T


# fmt: off
CROSSED = "the null has a product of powers of eta and S, uncorrelated with the ratio, and 0"
TIME = "0 in time eta / S times epochs; the null are pairs of equal eta"
lab.claim("norm-falls-with-the-ratio",
          "Rank correlation of eta / S with |H|_F (Frobenius) at the end.",
          rank("frobenius"), high=-0.9, source="margin", reason="monotone but for ties; " + CROSSED,
          null=rank("frobenius", crossed))
lab.claim("norm-collapses",
          "Share of the variance of log |H|_F that is within pairs of equal eta / S.",
          not_collapsed, high=0.02, source="theory", null=by_one_alone,
          reason="0 but for the finite step; the null are pairs of equal eta, or of equal S")
lab.claim("noise-is-the-third-factor",
          "|H|_F for the second batch size with the noise of the first over that for the first, "
          "at the largest eta.",
          over_sgd("noisier", second_batch), low=0.97, high=1.03, source="theory",
          reason="1; the null has the second batch size's own noise",
          null=over_sgd("clean", second_batch))
lab.claim("momentum-is-rate",
          "|H|_F for the second largest eta with momentum 1 - eta / eta_max over that for eta_max "
          "without, at the first batch size.",
          over_sgd("momentum", second_rate), low=0.97, high=1.03, source="theory",
          reason="1 but for the finite step; the null has no momentum",
          null=over_sgd("clean", second_rate))
lab.claim("accuracy-rises-with-the-ratio",
          "Rank correlation of eta / S with the validation accuracy.",
          rank("test_accuracy"), low=0.5, source="margin", reason=CROSSED,
          null=rank("test_accuracy", crossed))
lab.claim("equal-ratio-equal-time",
          "Largest relative range of the epochs within pairs of equal eta / S.",
          range_of(epochs, "clean"), high=0.05, source="theory", reason=TIME,
          null=range_of(epochs, "clean", rates_of))
lab.claim("equal-ratio-equal-memorisation",
          "Largest relative range of the epochs until half of the wrong labels are fitted, "
          "within pairs of equal eta / S.",
          range_of(epochs_halfway, "wrong"), high=0.1, source="theory", reason=TIME,
          null=range_of(epochs_halfway, "wrong", rates_of))
lab.claim("accuracy-at-equal-memorisation-rises-with-the-ratio",
          "Rank correlation of eta / S with the validation accuracy where half of the wrong "
          "labels are fitted.",
          with_ratio(accuracy_halfway), low=0.5, source="margin", reason=CROSSED,
          null=with_ratio(accuracy_halfway, crossed))
lab.claim("memorisation-at-equal-accuracy-falls-with-the-ratio",
          "Rank correlation of eta / S with the wrong labels fitted where the validation "
          "accuracy is first within 1 % of the best that all pairs reach.",
          with_ratio(fitted_at_equal_accuracy), high=-0.5, source="margin", reason=CROSSED,
          null=with_ratio(fitted_at_equal_accuracy, crossed))
# fmt: on

NAMES = {"test_accuracy": "validation accuracy", "epochs": "epochs to the loss"}


@lab.figure(
    "At the end of training against eta / S; means over seeds, two standard errors.",
    rows=2, columns=2,
)  # fmt: skip
def ratio(axes: Any, runs: Runs, config: Config) -> None:
    """Curvature, accuracy and epochs against eta / S: a point a pair."""
    for panel, name in zip(
        axes.flat, ("frobenius", "sharpness", "test_accuracy", "epochs"), strict=True
    ):
        for number, rate in enumerate(config.rates):
            rows = np.array([runs["clean"][rate, size][name] for size in config.batch_sizes])
            error = rows.std(1, ddof=1) / np.sqrt(config.seeds) if config.seeds > 1 else 0.0
            x = [rate / size for size in config.batch_sizes]
            options = {**style(number), "linestyle": "none", "label": rf"$\eta$ = {rate:g}"}
            panel.errorbar(x, rows.mean(1), yerr=2 * error, capsize=3, **options)
        panel.set(xlabel=r"$\eta / S$", ylabel=NAMES.get(name, words(name)), xscale="log")
    norm, top, _, time = axes.flat
    small, rate = config.batch_sizes[0], config.rates[-1]
    for kind, marker, label in (
        ("noisier", "*", rf"$S$ = {config.batch_sizes[1]} with the noise of {small}"),
        ("momentum", "x", rf"$\eta$ = {config.rates[-2]:g} with momentum, as {rate:g}"),
    ):
        (end,) = runs[kind].values()
        norm.plot(
            rate / small, end["frobenius"].mean(), marker, color="#000000", zorder=3, label=label
        )
    x, rows = ratios_of(runs["clean"]), column(runs, "frobenius").mean(0)
    line = np.polynomial.Polynomial.fit(x, rows, 1)
    norm.plot(*line.linspace(2), color="#555555", linewidth=1, label="straight line")
    norm.set_xscale("linear")
    handles, labels = norm.get_legend_handles_labels()  # lines, then rates
    norm.legend(handles[:3], labels[:3], fontsize=8, loc="lower left")
    top.legend(handles[3:], labels[3:], fontsize=8, loc="lower left")
    time.set_yscale("log")


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
    """What every pair ends with, slopes, and where half of the wrong labels are fitted."""
    half = zip(runs["wrong"], halfway(runs["wrong"]), strict=True)
    return {
        "pairs": {f"{rate:g}/{size}": row for (rate, size), row in runs["clean"].items()},
        **{
            kind: {f"{rate:g}/{size}": row for (rate, size), row in runs[kind].items()}
            for kind in ("noisier", "momentum")
        },
        "slopes": {n: slope(n, runs, config) for n in ("frobenius", "sharpness", "trace")},
        "wrong_labels_half_fitted": {f"{rate:g}/{size}": rows for (rate, size), rows in half},
    }
