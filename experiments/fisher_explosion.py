"""The catastrophic Fisher explosion: small steps let tr F grow, and penalising it makes up for it.

Jastrzebski et al. (ICML 2021, "Catastrophic Fisher Explosion: Early Phase Fisher Matrix Impacts
Generalization"): SGD with a small learning rate generalises worse than with the best one, and the
trace of the Fisher information matrix explodes early in training; penalising it (FP) closes the
gap, the squared norm of the gradient on uniformly random labels (GP_r) nearly so, that of the
training gradient (GP) and of the input gradient (GP_x) less.

Their table (test accuracy in per cent; TinyImageNet and CIFAR, WideResNet, DenseNet, VGG11, CNN):

    setting        eta*    baseline  GP_x    GP      FP      GP_r
    TinyImageNet   54.67   52.57     52.79   56.44   56.73   55.41
    CIFAR-100      66.09   58.51     62.12   64.42   66.41   66.39
    CIFAR-100      45.86   36.86     45.26   47.35   49.87   48.26
    CIFAR-100      53.96   46.38     58.68   57.68   57.05   58.15
    CIFAR-10       76.94   71.32     75.68   75.73   79.66   79.76

Here: an MLP on 400 digits, a quarter of the labels wrong (with clean labels the learning rate makes
half a point there), cross-entropy, SGD with eta* = 1 against 0.05, and the penalties at 0.05.

    python -m experiments fisher_explosion                         # three seeds, 62 seconds

Found on seeds 0-4 (per cent, standard errors about 1), in the same columns:

    digits, final          73.1    70.8      79.7    82.9    88.4    86.7
    best on the way        81.8    87.2      92.2    90.7    90.5    88.9

tr F reaches 3.7 times as high at 0.05 as at 1, and FP holds it to an eighth. The gap between the
learning rates is small, 2 points, and the other way round in the best accuracy on the way: with a
quarter of the labels wrong, stopping early is the better regulariser for all but the penalties.

paper: fully connected networks on CIFAR-100, when it is prepared; the authors' are convolutional.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.lab import Lab, Options, Runs, shared
from experiments.lib.training import minibatch, penalties
from experiments.lib.training.minibatch import Recipe
from experiments.lib.training.settings import train_settings
from experiments.lib.verdicts.curves import points
from experiments.lib.verdicts.figures import style
from experiments.lib.verdicts.report import Table
from experiments.lib.verdicts.statistics import accuracy_table, rank_correlation


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 400  # training examples
    label_noise: float = 0.25  # the fraction of wrong labels
    recipe: Recipe = Recipe(init_scale=0.6, epochs=400, record_every=5)  # network and training
    best_rate: float = 1.0  # eta*, the learning rate with the best final test accuracy of three
    middle_rate: float = 0.3  # one in between, for the correlation
    small_rate: float = 0.05  # of the baseline and all penalties
    fp: float = 1.0  # coefficients of the squared norms, chosen on seeds 0 and 1: of FP ...
    gp: float = 1.0  # ... of GP ...
    gp_r: float = 1.0  # ... of GP_r ...
    gp_x: float = 1.0  # ... and of GP_x
    early_epochs: int = 100  # the early phase: tr F is its maximum up to here


# fmt: off
lab = Lab(
    Config, "Jastrzebski et al. 2021",
    smoke={"seeds": 1, "train_size": 24, "early_epochs": 1,
           "recipe": {"hidden": (6,), "batch_size": 12, "epochs": 2, "record_every": 1}},
    paper={"data": "cifar100", "train_size": 50_000, "label_noise": 0.0, "early_epochs": 20,
           "best_rate": 0.3, "middle_rate": 0.1, "small_rate": 0.01,
           "recipe": {"hidden": (512,) * 3, "batch_size": 128, "epochs": 200, "record_every": 2}},
)
# fmt: on
EXPERIMENT = lab.experiment

COLUMNS = ("eta*", "baseline", "GP_x", "GP", "FP", "GP_r")
ARMS = ("eta*", "middle", *COLUMNS[1:])


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The records of every arm, by seed and point."""
    seeds, small = list(config.seed_range()), config.small_rate
    data = minibatch.load_seeds(
        config.data,
        seeds,
        train_size=config.train_size,
        label_noise=config.label_noise,
        flat=config.recipe.flat,
    )
    rates = {"eta*": config.best_rate, "middle": config.middle_rate, "baseline": small}
    settings = {"sgd": {arm: {"rate": rate, "coef": 0.0} for arm, rate in rates.items()}} | {
        kind: {penalties.NAMES[kind]: {"rate": small, "coef": getattr(config, kind)}}
        for kind in ("gp_x", "gp", "fp", "gp_r")
    }

    def train(kind: str) -> Runs:
        found = train_settings(
            out / kind,
            config.recipe,
            data,
            seeds,
            penalties.optimizer(kind, config.recipe),
            settings[kind],
            measure=penalties.measure(config.recipe),
            quiet=config.quiet,
        )
        return {arm: runs.records for arm, runs in found.items()}

    found = shared(config, {kind: functools.partial(train, kind) for kind in settings})
    return {arm: records for arms in found.values() for arm, records in arms.items()}


def final(runs: Runs, arm: str) -> np.ndarray:
    """The last test accuracy, for every seed."""
    return runs[arm]["test_accuracy"][:, -1]


def largest(runs: Runs, arm: str) -> np.ndarray:
    """The largest tr F."""
    return runs[arm]["trace_fisher"].max(1)


def early_trace(runs: Runs, arm: str, config: Config) -> np.ndarray:
    """The largest tr F of the early phase."""
    records = runs[arm]
    early = records["epoch"] <= config.early_epochs
    return np.where(early, records["trace_fisher"], -np.inf).max(1)


def gap(a: str, b: str) -> Any:
    """The measure of a claim on the final test accuracy of one arm less that of another."""
    return lambda runs, config: final(runs, a) - final(runs, b)


def share_of_gain(runs: Runs, config: Config) -> np.ndarray:
    """The gain of GP over that of FP."""
    gain = final(runs, "FP") - final(runs, "baseline")
    return (final(runs, "GP") - final(runs, "baseline")) / np.where(gain == 0, np.nan, gain)


def prediction(runs: Runs, config: Config) -> list[float]:
    """The rank correlation over the arms, for every seed."""
    early = np.array([early_trace(runs, arm, config) for arm in ARMS])
    ends = np.array([final(runs, arm) for arm in ARMS])
    return [rank_correlation(a, b) for a, b in zip(early.T, ends.T, strict=True)]


# fmt: off
lab.claim("explosion", "The largest tr F of the small learning rate over that of eta*.",
          lambda runs, config: largest(runs, "baseline") / largest(runs, "eta*"),
          low=2.0, source="seeds", reason="2.73 to 4.23 on seeds 0-4")
lab.claim("rate-gap", "Final test accuracy of eta* minus that of the small learning rate.",
          gap("eta*", "baseline"), low=0.0, source="sign")
lab.claim("fp-recovers", "Final test accuracy of FP minus that of eta*: the gap is closed.",
          gap("FP", "eta*"), low=0.0, source="sign")
lab.claim("fp-gains", "Final test accuracy of FP minus that of the baseline.",
          gap("FP", "baseline"), low=0.08, source="seeds", reason="0.156 to 0.194 on seeds 0-4")
lab.claim("fp-prevents-explosion", "The largest tr F with FP over that of the baseline.",
          lambda runs, config: largest(runs, "FP") / largest(runs, "baseline"),
          high=0.25, source="seeds", reason="0.0978 to 0.133 on seeds 0-4")
lab.claim("gp-r-close-to-fp", "Final test accuracy of GP_r minus that of FP.",
          gap("GP_r", "FP"), low=-0.03, high=0.03,
          source="seeds", reason="-0.0236 to -0.00501 on seeds 0-4")
lab.claim("gp-between", "Where GP stands between the baseline (0) and FP (1) in final accuracy.",
          share_of_gain, low=0.2, high=1.0, source="seeds", reason="0.649 to 0.79 on seeds 0-4")
lab.claim("gp-x-below-fp", "Final test accuracy of FP minus that of GP_x.",
          gap("FP", "GP_x"), low=0.0, source="sign")
lab.claim("early-trace-predicts",
          "Rank correlation over all arms of early tr F and final test accuracy.",
          prediction, high=-0.6, source="seeds", reason="-0.964 to -0.929 on seeds 0-4")
# fmt: on

lab.curves("trace_fisher", "test_accuracy", "noisy_fit", log=("trace_fisher",))


@lab.figure("The columns of the paper's table, and the early trace of every run.", columns=2)
def table(axes: Any, runs: Runs, config: Config) -> None:
    """Final accuracies as points, and against early tr F."""
    points(axes[0], COLUMNS, [final(runs, arm) for arm in COLUMNS], 0)
    axes[0].set(ylabel="final test accuracy")
    for number, arm in enumerate(runs):
        at = early_trace(runs, arm, config), final(runs, arm)
        axes[1].plot(*at, **{**style(number), "linestyle": "none"}, label=arm)
    axes[1].set(xscale="log", xlabel="largest early tr $F$", ylabel="final test accuracy")
    axes[1].legend(ncols=2, fontsize=8)


@lab.table
def accuracies(runs: Runs, config: Config) -> Table:
    """The paper's table."""
    rows = {
        "final test accuracy": [final(runs, arm) for arm in COLUMNS],
        "best on the way": [runs[arm]["test_accuracy"].max(1) for arm in COLUMNS],
    }
    return accuracy_table(COLUMNS, rows, "Per cent, mean and standard error.")
