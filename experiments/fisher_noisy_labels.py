"""The Fisher penalty slows the memorising of wrong labels, and hardly the learning of right ones.

Jastrzebski et al. (ICML 2021, "Catastrophic Fisher Explosion"), the second table: clean and wrongly
labelled examples are tracked apart under FP, GP_r, GP_x, mixup (Zhang et al., ICLR 2018) and plain
SGD, all at the same small learning rate. Test accuracy in per cent, CIFAR-100 with VGG11 and
ResNet-52:

    noise   baseline  mixup   GP_x    FP      GP_r
    25 %    41.74     52.31   45.94   60.18   58.46
            53.30     61.61   52.70   58.31   57.60
    50 %    30.05     39.15   34.26   51.33   50.33
            43.35     51.71   42.99   47.99   50.08

    python -m experiments fisher_noisy_labels

Found: at the end FP gains 11 and 18 points, GP_r 16 and 21, mixup 5 and 4, in the paper's order
where half of the labels are wrong; at the best epoch one or two points each, in no order. FP at the
coefficient that validation chooses still fits 70 % of the wrong labels, 2.4 and 2.8 times later.
The baseline first predicts 86 and 72 % of the true labels behind the wrong ones. On Fashion-MNIST,
with convolutions, FP and GP_r gain 17 and 18 points at the end where half of the labels are wrong,
GP_x and mixup little; at the best epoch a few points at most.

The test set is split in two halves: the first chooses the epoch ("at the best epoch") and for each
penalty and fraction of wrong labels the coefficient, the second is measured. The first labels that
the baseline learns are the true ones (Arpit et al., ICML 2017): wrong ones are corrected before
they are fitted. paper: their VGG11 on CIFAR-100, when prepared.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from experiments.lib.lab import Lab, Options, shared
from experiments.lib.training import penalties
from experiments.lib.training.penalties import NAMES
from experiments.lib.training.recipes import Recipe
from experiments.lib.training.settings import load_grid, train_grid
from experiments.lib.training.validation import at_best_epoch, final, halves
from experiments.lib.verdicts.curves import curve, points, words
from experiments.lib.verdicts.report import Table
from experiments.lib.verdicts.statistics import accuracy_table

Runs = dict[tuple[str, float], dict[str, np.ndarray]]
"""Arm and fraction of wrong labels, and of each its records, (seeds, points)."""


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 400  # training examples
    test_size: int | None = None  # test examples; None for all
    recipe: Recipe = Recipe(init_scale=0.6, epochs=400, record_every=5)  # network and training
    rate: float = 0.05  # the learning rate of all
    coefs: tuple[float, ...] = (0.3, 1.0)  # of the squared norms; the validation half chooses one
    mixup: float = 1.0  # mixup's weights are drawn from Beta(mixup, mixup)


# fmt: off
lab = Lab(
    Config, "Jastrzebski et al. 2021", data_parallel=True,
    smoke={"seeds": 1, "train_size": 24, "recipe": {"hidden": (6,), "init_scale": 1.0,
                                                    "batch_size": 12, "epochs": 2,
                                                    "record_every": 1}},
    real={"data": "fashion_mnist", "seeds": 3, "train_size": 1000, "test_size": 2000,
          "rate": 0.03, "coefs": (0.01, 0.1),
          "recipe": {"network": "s2cnn-8", "batch_size": 50, "epochs": 80, "record_every": 4}},
    # Where no source is named the paper's value is not known to us, and the value is ours.
    paper={"data": "cifar100", "train_size": 50_000,  # table 2
           "rate": 0.005, "coefs": (0.01, 0.1, 1.0),
           "recipe": {"network": "experiments.lib.nets.papers:VGG11",  # table 2
                      "classes": 100, "batch_size": 128, "epochs": 200, "record_every": 2}},
)
# fmt: on
EXPERIMENT = lab.experiment

NOISES = (0.25, 0.5)
ARMS = ("sgd", "mixup", "gp_x", "fp", "gp_r")
PENALTIES = ARMS[2:]
CLEAN, NOISY = 0.8, 0.3
PAPER = {  # per cent, of VGG11 and of ResNet-52
    0.25: {"sgd": (41.74, 53.30), "mixup": (52.31, 61.61), "gp_x": (45.94, 52.70),
           "fp": (60.18, 58.31), "gp_r": (58.46, 57.60)},
    0.5: {"sgd": (30.05, 43.35), "mixup": (39.15, 51.71), "gp_x": (34.26, 42.99),
          "fp": (51.33, 47.99), "gp_r": (50.33, 50.08)},
}  # fmt: skip


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The records of every arm, of the penalties with the coefficient that is chosen."""
    seeds = config.seed_range()
    sizes = {"train_size": config.train_size, "test_size": config.test_size}
    data = load_grid(config.data, config.recipe, seeds, NOISES, **sizes)

    def train(arm: str) -> Runs:
        recipe = dataclasses.replace(config.recipe, mixup=config.mixup if arm == "mixup" else 0.0)
        coefs = config.coefs if arm in PENALTIES else (0.0,)
        found = train_grid(
            out / arm,
            recipe,
            data,
            seeds,
            penalties.optimizer(arm, recipe),
            {coef: {"rate": config.rate, "coef": coef} for coef in coefs},
            measure=functools.partial(halves, recipe),
            quiet=config.quiet,
        )
        return {
            (arm, noise): chosen({coef: found[coef, noise].records for coef in coefs})
            for noise in NOISES
        }

    found = shared(config, {arm: functools.partial(train, arm) for arm in ARMS})
    return {name: records for arms in found.values() for name, records in arms.items()}


def chosen(by_coef: dict[float, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The records with the best validation accuracy on the way, mean over seeds; and its `coef`."""
    best = max(by_coef, key=lambda coef: by_coef[coef]["validation_accuracy"].max(1).mean())
    return by_coef[best] | {"coef": np.full_like(by_coef[best]["epoch"], best, float)}


def first(records: dict[str, np.ndarray], name: str, level: float) -> np.ndarray:
    """The record at which a level is reached, for every seed; the last one if it is not."""
    reached = records[name] >= level
    return np.where(reached.any(1), reached.argmax(1), reached.shape[1] - 1)


def delay(records: dict[str, np.ndarray]) -> np.ndarray:
    """Epochs between fitting the right labels and the wrong ones; at least, if it ends before."""
    epochs, rows = records["epoch"], np.arange(len(records["epoch"]))
    right, wrong = first(records, "clean_fit", CLEAN), first(records, "noisy_fit", NOISY)
    step = epochs[:, 1] - epochs[:, 0]
    return np.maximum(epochs[rows, wrong] - epochs[rows, right], step).astype(float)


def corrected(records: dict[str, np.ndarray]) -> np.ndarray:
    """Wrong labels predicted as the true ones where nine tenths of the right ones are fitted."""
    at = first(records, "clean_fit", 0.9)
    return np.take_along_axis(records["noisy_recovered"], at[:, None], axis=1)[:, 0]


def in_order(noise: float, of: Any, shift: int = 0) -> Any:
    """The measure of a claim: Kendall's tau of the accuracies with those of the paper's VGG11."""
    theirs = [PAPER[noise][arm][0] for arm in ARMS]

    def measure(runs: Runs, config: Config) -> list[float]:
        ours = np.roll([of(runs[arm, noise]) for arm in ARMS], shift, axis=0)
        return [float(kendalltau(theirs, column).statistic) for column in ours.T]

    return measure


# fmt: off
RANDOM = ("VGG11's row; of five arms a random order reaches 0.6 with probability 0.12; in the null "
          "each arm has the accuracy of the one before")
def claims_at(noise: float) -> None:
    """The claims for one fraction of wrong labels."""

    def add(name, what, measure, null=None, **limits):
        """Adds a claim for this fraction of wrong labels."""
        lab.claim(f"{name}-{100 * noise:g}", f"{what}, at {100 * noise:g} % wrong labels.",
                  measure, null=null, **limits)

    def gap(a, b, of=final):
        """The measure of a claim: a number of one arm less that of another."""
        return lambda runs, config: of(runs[a, noise]) - of(runs[b, noise])

    def gains(name, what, a, b, of=final):
        """Adds the claim that an arm gains at least as much as the paper's smaller gain."""
        low = min(x - y for x, y in zip(PAPER[noise][a], PAPER[noise][b], strict=True)) / 100
        # A coefficient of zero is the baseline.
        add(name, what, gap(a, b, of), gap("sgd", b, of), low=round(low, 4), source="paper",
            reason="the smaller of the gains of VGG11 and ResNet-52")

    def last(arm, name, at=-1):
        """The measure of a claim: the last of some records, or the first."""
        return lambda runs, config: runs[arm, noise][name][:, at]

    def slower(arm):
        """The measure of a claim: how much longer than the baseline it takes."""
        return lambda runs, config: delay(runs[arm, noise]) / delay(runs["sgd", noise])

    gains("fp-final", "Final test accuracy of FP minus that of the baseline", "fp", "sgd")
    gains("fp-best", "Test accuracy of FP minus that of the baseline at the best epoch",
          "fp", "sgd", at_best_epoch)
    gains("gp-r-final", "Final test accuracy of GP_r minus that of the baseline", "gp_r", "sgd")
    gains("gp-r-best", "Test accuracy of GP_r minus that of the baseline at the best epoch",
          "gp_r", "sgd", at_best_epoch)
    gains("mixup-final", "Final test accuracy of mixup minus that of the baseline", "mixup", "sgd")
    gains("fp-over-gp-x", "Final test accuracy of FP minus that of GP_x", "fp", "gp_x")
    add("fp-over-mixup", "Final test accuracy of FP minus that of mixup",
        gap("fp", "mixup"), gap("sgd", "mixup"), low=0.0, source="sign",
        reason="VGG11's row; in ResNet-52's mixup is first")
    add("order-final", "Kendall's tau of the arms' final test accuracies with the paper's",
        in_order(noise, final), in_order(noise, final, shift=1),
        low=0.6, source="paper", reason=RANDOM)
    add("order-best", "Kendall's tau of the arms' accuracies at the best epoch with the paper's",
        in_order(noise, at_best_epoch), in_order(noise, at_best_epoch, shift=1),
        low=0.6, source="paper", reason=RANDOM)
    add("baseline-memorises", "Wrong labels that the baseline fits at the end",
        last("sgd", "noisy_fit"), last("sgd", "noisy_fit", 0), low=0.95, source="paper",
        reason="it fits them all; the null is the untrained network")
    add("fp-memorises-less", "Wrong labels that FP fits at the end",
        last("fp", "noisy_fit"), last("sgd", "noisy_fit"), high=0.5, source="margin",
        reason="half of those that the baseline, the null, is to fit")
    add("fp-learns-clean", "Right labels that FP fits at the end",
        last("fp", "clean_fit"), last("fp", "clean_fit", 0), low=0.98, source="seeds",
        reason="seen in two trial runs at 25 %: 0.997 and 1; the null is the untrained network")
    add("fp-slows-noisy",
        f"Epochs from fitting {CLEAN:g} of the right labels to {NOISY:g} of the wrong ones, FP "
        "over baseline, at least",
        slower("fp"), slower("sgd"), low=2.0, source="margin",
        reason="twice as long; the null has 1")
    lab.claim(f"true-labels-first-{100 * noise:g}",
              "Wrong labels that the baseline predicts as the true ones where it first fits 0.9 of "
              f"the right ones, at {100 * noise:g} % wrong labels.",
              lambda runs, config: corrected(runs["sgd", noise]),
              low=0.5, source="margin", reason="most of them; the null is the untrained network",
              null=last("sgd", "noisy_recovered", 0), paper="Arpit et al. 2017")

for noise in NOISES:
    claims_at(noise)
# fmt: on


@lab.figure(
    "Labels fitted along training and test accuracies; mean, two standard errors.",
    rows=2, columns=len(NOISES) + 1, panel=(3.8, 3.0),
)  # fmt: skip
def labels(axes: Any, runs: Runs, config: Config) -> None:
    """Right and wrong labels fitted along training, and the table of the paper."""
    for column, noise in enumerate(NOISES):
        for number, arm in enumerate(ARMS):
            records = runs[arm, noise]
            for panel, name in zip(axes[:, column], ("noisy_fit", "clean_fit"), strict=True):
                curve(panel, records["epoch"][0], records[name], number, words(NAMES[arm]))
                panel.set(xlabel="epoch", ylabel=f"{words(name)}, {100 * noise:g} %")
        axes[1, column].set_ylim(0.8, 1.01)
    axes[0, 0].legend(fontsize=8)
    rows = {"final test accuracy": final, "test accuracy at the best epoch": at_best_epoch}
    for panel, (ylabel, of) in zip(axes[:, -1], rows.items(), strict=True):
        for number, noise in enumerate(NOISES):
            values = [of(runs[arm, noise]) for arm in ARMS]
            names = [words(NAMES[arm]) for arm in ARMS]
            points(panel, names, values, number, f"{100 * noise:g} % wrong")
        panel.set(ylabel=ylabel)
    axes[0, -1].legend(fontsize=8)


@lab.table
def accuracies(runs: Runs, config: Config) -> Table:
    """The paper's table."""
    rows = {
        f"{100 * noise:g} % {name}": [of(runs[arm, noise]) for arm in ARMS]
        for noise in NOISES
        for name, of in {"final": final, "best epoch": at_best_epoch}.items()
    }
    columns = [NAMES[arm] for arm in ARMS]
    return accuracy_table(columns, rows, "Per cent, mean and standard error.")


ENDS = ("noisy_fit", "clean_fit", "noisy_recovered", "coef")


@lab.extra
def numbers(runs: Runs, config: Config) -> dict[str, Any]:
    """What every arm ends with."""
    return {
        f"{NAMES[arm]} {noise:g}": {
            "final_test_accuracy": final(r),
            "best_epoch_test_accuracy": at_best_epoch(r),
            **{name: final(r, name) for name in ENDS},
        }
        for (arm, noise), r in runs.items()
    }
