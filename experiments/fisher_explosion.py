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

gpu and paper: fully connected networks on CIFAR-10 and CIFAR-100, when they are prepared. The
authors' networks are convolutional; on a CPU those do not train inside a compiled loop.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.lib.runs.progress import say
from experiments.lib.runs.shares import shared
from experiments.lib.training import minibatch, penalties
from experiments.lib.training.minibatch import Recipe
from experiments.lib.training.settings import train_settings
from experiments.lib.verdicts.claims import Claim, by_name, judge_all
from experiments.lib.verdicts.curves import curve, points
from experiments.lib.verdicts.figures import figure, style
from experiments.lib.verdicts.report import print_table
from experiments.lib.verdicts.statistics import accuracy_table, rank_correlation
from experiments.lib.verdicts.summary import Figure, run_folder, write_summary
from experiments.registry import Experiment, Options

Runs = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    data: str = "digits"
    """The data set."""

    train_size: int = 400
    """Training examples."""

    label_noise: float = 0.25
    """The fraction of wrong labels."""

    recipe: Recipe = Recipe(init_scale=0.6, epochs=400, record_every=5)
    """Network and training."""

    best_rate: float = 1.0
    """eta*, the learning rate with the best final test accuracy of 0.05, 0.3 and 1."""

    middle_rate: float = 0.3
    """One in between, for the correlation."""

    small_rate: float = 0.05
    """Of the baseline and all penalties."""

    fp: float = 1.0
    """Coefficients of the squared norms; chosen on seeds 0 and 1."""

    gp: float = 1.0
    """The same of GP ..."""

    gp_r: float = 1.0
    """... of GP_r ..."""

    gp_x: float = 1.0
    """... and of GP_x."""

    early_epochs: int = 100
    """The early phase: tr F is its maximum up to here."""


_LARGE = Recipe(hidden=(512, 512, 512), init_scale=0.6, batch_size=128, epochs=200, record_every=2)

PRESETS = {
    "smoke": Config(
        seeds=1, first_seed=0, train_size=24,
        recipe=Recipe(hidden=(6,), batch_size=12, epochs=2, record_every=1), early_epochs=1,
    ),
    "cpu": Config(),
    "gpu": Config(
        data="cifar10", train_size=10_000, recipe=_LARGE,
        best_rate=0.3, middle_rate=0.1, small_rate=0.01, early_epochs=20,
    ),
    "paper": Config(
        data="cifar100", train_size=50_000, label_noise=0.0, recipe=_LARGE,
        best_rate=0.3, middle_rate=0.1, small_rate=0.01, early_epochs=20,
    ),
}  # fmt: skip

ARMS = ("eta*", "middle", "baseline", "GP_x", "GP", "FP", "GP_r")
COLUMNS = ("eta*", "baseline", "GP_x", "GP", "FP", "GP_r")

_PAPER = "Jastrzebski et al. 2021"

CLAIMS = by_name(
    Claim(
        name="explosion",
        statement="The largest tr F of the small learning rate over that of eta*.",
        paper=_PAPER,
        low=2.0,
        reason="2.73 to 4.23 on seeds 0-4",
    ),
    Claim(
        name="rate-gap",
        statement="Final test accuracy of eta* minus that of the small learning rate.",
        paper=_PAPER,
        low=0.0,
        reason="0.00143 to 0.0422 on seeds 0-4",
    ),
    Claim(
        name="fp-recovers",
        statement="Final test accuracy of FP minus that of eta*: the gap is closed.",
        paper=_PAPER,
        low=0.0,
        reason="0.14 to 0.163 on seeds 0-4",
    ),
    Claim(
        name="fp-gains",
        statement="Final test accuracy of FP minus that of the baseline.",
        paper=_PAPER,
        low=0.08,
        reason="0.156 to 0.194 on seeds 0-4",
    ),
    Claim(
        name="fp-prevents-explosion",
        statement="The largest tr F with FP over that of the baseline.",
        paper=_PAPER,
        high=0.25,
        reason="0.0978 to 0.133 on seeds 0-4",
    ),
    Claim(
        name="gp-r-close-to-fp",
        statement="Final test accuracy of GP_r minus that of FP.",
        paper=_PAPER,
        low=-0.03,
        high=0.03,
        reason="-0.0236 to -0.00501 on seeds 0-4",
    ),
    Claim(
        name="gp-between",
        statement="Where GP stands between the baseline (0) and FP (1) in final test accuracy.",
        paper=_PAPER,
        low=0.2,
        high=1.0,
        reason="0.649 to 0.79 on seeds 0-4",
    ),
    Claim(
        name="gp-x-below-fp",
        statement="Final test accuracy of FP minus that of GP_x.",
        paper=_PAPER,
        low=0.0,
        reason="0.0673 to 0.115 on seeds 0-4",
    ),
    Claim(
        name="early-trace-predicts",
        statement="Rank correlation over all arms of early tr F and final test accuracy.",
        paper=_PAPER,
        high=-0.6,
        reason="-0.964 to -0.929 on seeds 0-4",
    ),
)


def run(config: Config, out: Path) -> Runs:
    """The records of every arm, by seed and point."""
    seeds = list(config.seed_range())
    data = minibatch.load_seeds(
        config.data, seeds, train_size=config.train_size, label_noise=config.label_noise
    )
    small = config.small_rate

    def setting(rate: float, coef: float = 0.0) -> dict[str, float]:
        return {"rate": rate, "coef": coef}

    settings = {
        "sgd": {
            "eta*": setting(config.best_rate),
            "middle": setting(config.middle_rate),
            "baseline": setting(small),
        },
        "gp_x": {"GP_x": setting(small, config.gp_x)},
        "gp": {"GP": setting(small, config.gp)},
        "fp": {"FP": setting(small, config.fp)},
        "gp_r": {"GP_r": setting(small, config.gp_r)},
    }

    def train(kind: str) -> Runs:
        say(" ".join(settings[kind]), enabled=not config.quiet)
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


def early_trace(records: dict[str, np.ndarray], epochs: int) -> np.ndarray:
    """The largest tr F of the early phase, for every seed."""
    return np.where(records["epoch"] <= epochs, records["trace_fisher"], -np.inf).max(1)


def numbers(runs: Runs, early_epochs: int) -> dict[str, np.ndarray]:
    """The measured number of every claim, one a seed."""
    final = {arm: records["test_accuracy"][:, -1] for arm, records in runs.items()}
    top = {arm: records["trace_fisher"].max(1) for arm, records in runs.items()}
    early = np.array([early_trace(runs[arm], early_epochs) for arm in ARMS])
    ends = np.array([final[arm] for arm in ARMS])
    gain = final["FP"] - final["baseline"]
    return {
        "explosion": top["baseline"] / top["eta*"],
        "rate-gap": final["eta*"] - final["baseline"],
        "fp-recovers": final["FP"] - final["eta*"],
        "fp-gains": gain,
        "fp-prevents-explosion": top["FP"] / top["baseline"],
        "gp-r-close-to-fp": final["GP_r"] - final["FP"],
        "gp-between": (final["GP"] - final["baseline"]) / np.where(gain == 0, np.nan, gain),
        "gp-x-below-fp": final["FP"] - final["GP_x"],
        "early-trace-predicts": np.array(
            [rank_correlation(a, b) for a, b in zip(early.T, ends.T, strict=True)]
        ),
    }


def draw_curves(path: Path, runs: Runs) -> None:
    """The trace and the accuracies along training."""
    with figure(path, 1, 3, panel=(4.0, 3.2), dpi=90) as (left, middle, right):
        for number, (arm, records) in enumerate(runs.items()):
            epochs = records["epoch"][0]
            curve(left, epochs, records["trace_fisher"], number, arm)
            curve(middle, epochs, records["test_accuracy"], number, arm)
            curve(right, epochs, records["noisy_fit"], number, arm)
        left.set(xlabel="epoch", title="tr F", yscale="log")
        middle.set(xlabel="epoch", title="test accuracy")
        right.set(xlabel="epoch", title="wrong labels fitted")
        left.legend(ncols=2, fontsize=8)


def draw_table(path: Path, runs: Runs, early_epochs: int) -> None:
    """The table of the paper as points, and final accuracy against early tr F."""
    with figure(path, 1, 2, panel=(4.6, 3.2), dpi=90) as (left, right):
        finals = [runs[arm]["test_accuracy"][:, -1] for arm in COLUMNS]
        points(left, COLUMNS, finals, 0)
        left.set(title="final test accuracy")
        for number, (arm, records) in enumerate(runs.items()):
            x, y = early_trace(records, early_epochs), records["test_accuracy"][:, -1]
            right.plot(x, y, **{**style(number), "linestyle": "none"}, label=arm)
        right.set(xscale="log", xlabel="largest early tr F", title="final test accuracy")
        right.legend(ncols=2, fontsize=8)


def main(config: Config) -> None:
    """Runs the experiment, or shows the finished run."""
    with run_folder(config) as out:
        runs = run(config, out)
        found = numbers(runs, config.early_epochs)
        draw_curves(out / "training.png", runs)
        draw_table(out / "table.png", runs, config.early_epochs)
        rows = {
            "final test accuracy": [runs[a]["test_accuracy"][:, -1] for a in COLUMNS],
            "best on the way": [runs[a]["test_accuracy"].max(1) for a in COLUMNS],
        }
        print_table(accuracy_table(COLUMNS, rows, "Per cent, mean and standard error."))
        write_summary(
            out,
            config,
            judge_all(CLAIMS, found, config.seed_range()),
            [
                Figure("training.png", "Along training; mean over seeds, two standard errors."),
                Figure(
                    "table.png",
                    "The columns of the paper's table, and the early trace of every run.",
                ),
            ],
            {
                "final_test_accuracy": {a: r["test_accuracy"][:, -1] for a, r in runs.items()},
                "best_test_accuracy": {a: r["test_accuracy"].max(1) for a, r in runs.items()},
                "largest_trace": {a: r["trace_fisher"].max(1) for a, r in runs.items()},
                "early_trace": {a: early_trace(r, config.early_epochs) for a, r in runs.items()},
                "clean_fit": {a: r["clean_fit"][:, -1] for a, r in runs.items()},
                "noisy_fit": {a: r["noisy_fit"][:, -1] for a, r in runs.items()},
            },
        )


EXPERIMENT = Experiment(main=main, presets=PRESETS, shares=True)
