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

    python -m experiments fisher_noisy_labels                      # three seeds, 93 seconds

Found on seeds 0-4 (per cent, standard errors 1 to 2), 400 digits, an MLP:

    25 %  final        70.8    73.8    79.7    88.4    86.7
          best epoch   86.6    87.9    91.8    90.1    88.2
    50 %  final        45.4    48.6    55.2    75.3    74.4
          best epoch   77.8    78.4    85.2    76.0    75.7

The baseline fits all wrong labels, FP 13 and 15 % of them, and it takes FP three to four times as
long from the right labels to the wrong ones. Stopped at the best epoch, FP with half the labels
wrong has no gain, against the paper ("not reproduced"): its coefficient was chosen for the final
accuracy at 25 %, and is too large here. On seeds 0-2 the baseline's best is 79.0, FP's 76.8 with a
coefficient of 1, and 80.4 with 0.3, well within the errors; with so few examples the baseline
learns the right labels long before it memorises. GP_x is best at that, and near the edge of
stability: now and then a run loses its fit for some epochs.

The test set is split in two halves: the first chooses the epoch ("at the best epoch"), the second
is measured. gpu and paper: fully connected networks on CIFAR-10 and CIFAR-100, when prepared.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.lib.data.small import stack_seeds
from experiments.lib.runs.progress import say
from experiments.lib.runs.shares import shared
from experiments.lib.training import minibatch, penalties
from experiments.lib.training.minibatch import Recipe
from experiments.lib.training.penalties import NAMES
from experiments.lib.verdicts.claims import Claim, judge_all
from experiments.lib.verdicts.curves import curve, points
from experiments.lib.verdicts.figures import figure
from experiments.lib.verdicts.report import print_table
from experiments.lib.verdicts.statistics import accuracy_table
from experiments.lib.verdicts.summary import Figure, run_folder, write_summary
from experiments.registry import Experiment, Options

Runs = dict[tuple[str, float], dict[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    data: str = "digits"
    """The data set."""

    train_size: int = 400
    """Training examples."""

    noises: tuple[float, float] = (0.25, 0.5)
    """Fractions of wrong labels."""

    recipe: Recipe = Recipe(init_scale=0.6, epochs=400, record_every=5)
    """Network and training."""

    rate: float = 0.05
    """The learning rate of all."""

    fp: float = 1.0
    """Coefficients of the squared norms, those of `fisher_explosion`; here of FP ..."""

    gp_r: float = 1.0
    """... of GP_r ..."""

    gp_x: float = 1.0
    """... and of GP_x."""

    mixup: float = 1.0
    """Mixup's weights are drawn from Beta(mixup, mixup)."""


_LARGE = Recipe(hidden=(512, 512, 512), init_scale=0.6, batch_size=128, epochs=200, record_every=2)

PRESETS = {
    "smoke": Config(
        seeds=1, first_seed=0, train_size=24,
        recipe=Recipe(hidden=(6,), batch_size=12, epochs=2, record_every=1),
    ),
    "cpu": Config(),
    "gpu": Config(data="cifar10", train_size=10_000, recipe=_LARGE, rate=0.01),
    "paper": Config(data="cifar100", train_size=50_000, recipe=_LARGE, rate=0.01),
}  # fmt: skip

ARMS = ("sgd", "mixup", "gp_x", "fp", "gp_r")

_PAPER = "Jastrzebski et al. 2021"
_CLEAN, _NOISY = 0.8, 0.3


def claims(noises: tuple[float, ...]) -> dict[str, Claim]:
    """The claims, some of them for every fraction of wrong labels."""
    found = {}
    for noise in noises:
        part = f"{100 * noise:g}"
        for name, statement, limits in (
            ("fp-final", "Final test accuracy of FP minus that of the baseline", {"low": 0.08}),
            ("fp-best", "The same at the best epoch", {"low": 0.0}),
            ("gp-r-final", "Final test accuracy of GP_r minus that of the baseline", {"low": 0.08}),
            ("fp-over-mixup", "Final test accuracy of FP minus that of mixup", {"low": 0.0}),
            ("fp-over-gp-x", "Final test accuracy of FP minus that of GP_x", {"low": 0.0}),
            ("mixup-final", "Final test accuracy of mixup minus that of the baseline",
             {"low": 0.0}),
            ("baseline-memorises", "Wrong labels that the baseline fits at the end",
             {"low": 0.95}),
            ("fp-memorises-less", "Wrong labels that FP fits at the end", {"high": 0.5}),
            ("fp-learns-clean", "Right labels that FP fits at the end", {"low": 0.9}),
            ("fp-slows-noisy",
             f"Epochs from fitting {_CLEAN:g} of the right labels to {_NOISY:g} of the wrong ones, "
             "FP over baseline, at least", {"low": 2.0}),
        ):  # fmt: skip
            found[f"{name}-{part}"] = Claim(
                name=f"{name}-{part}",
                statement=f"{statement}, at {part} % wrong labels.",
                paper=_PAPER,
                reason=REASONS.get(f"{name}-{part}", "as for the fractions of the preset cpu"),
                **limits,
            )
    return found


REASONS = {
    "fp-final-25": "0.156 to 0.194 on seeds 0-4",
    "fp-best-25": "0.0114 to 0.0515 on seeds 0-4",
    "gp-r-final-25": "0.15 to 0.172 on seeds 0-4",
    "fp-over-mixup-25": "0.117 to 0.173 on seeds 0-4",
    "fp-over-gp-x-25": "0.0673 to 0.115 on seeds 0-4",
    "mixup-final-25": "0.00859 to 0.0458 on seeds 0-4",
    "baseline-memorises-25": "1 to 1 on seeds 0-4",
    "fp-memorises-less-25": "0.06 to 0.18 on seeds 0-4",
    "fp-learns-clean-25": "0.98 to 0.99 on seeds 0-4",
    "fp-slows-noisy-25": "3.84 to 4.69 on seeds 0-4",
    "fp-final-50": "0.253 to 0.327 on seeds 0-4",
    "fp-best-50": "-0.0472 to 0 on seeds 0-4",
    "gp-r-final-50": "0.228 to 0.326 on seeds 0-4",
    "fp-over-mixup-50": "0.211 to 0.301 on seeds 0-4",
    "fp-over-gp-x-50": "0.16 to 0.229 on seeds 0-4",
    "mixup-final-50": "-0.00286 to 0.0523 on seeds 0-4",
    "baseline-memorises-50": "1 to 1 on seeds 0-4",
    "fp-memorises-less-50": "0.125 to 0.175 on seeds 0-4",
    "fp-learns-clean-50": "0.905 to 0.945 on seeds 0-4",
    "fp-slows-noisy-50": "2.39 to 4.29 on seeds 0-4",
}


def measure(recipe: Recipe, params: Any, data: Any, key: Any) -> dict[str, jax.Array]:
    """Trace of the Fisher information, and the accuracy of both halves of the test set."""
    logits = minibatch.model_of(recipe)(params, data.test_inputs)
    hits = logits.argmax(-1) == data.test_targets
    half = len(hits) // 2
    found = penalties.measure(recipe)(params, data, key)
    return {**found, "validation_accuracy": hits[:half].mean(), "half_accuracy": hits[half:].mean()}


def run(config: Config, out: Path) -> Runs:
    """The records by arm and fraction of wrong labels, by seed and point."""
    seeds, count = list(config.seed_range()), len(config.noises)
    load = functools.partial(minibatch.small_data, config.data, train_size=config.train_size)
    data = stack_seeds([load(seed=s, label_noise=n) for s in seeds for n in config.noises])
    coefs = {"fp": config.fp, "gp_r": config.gp_r, "gp_x": config.gp_x}

    def train(arm: str) -> dict[str, np.ndarray]:
        say(NAMES[arm], enabled=not config.quiet)
        recipe = dataclasses.replace(config.recipe, mixup=config.mixup if arm == "mixup" else 0.0)
        return minibatch.train_arm(
            out / arm,
            recipe,
            data,
            np.repeat(seeds, count),
            penalties.optimizer(arm, recipe),
            hyper={
                "rate": np.full(len(seeds) * count, config.rate),
                "coef": np.full(len(seeds) * count, coefs.get(arm, 0.0)),
            },
            measure=functools.partial(measure, recipe),
            quiet=config.quiet,
        ).records

    found = shared(config, {arm: functools.partial(train, arm) for arm in ARMS})
    return {
        (arm, noise): {k: v[i::count] for k, v in records.items()}
        for arm, records in found.items()
        for i, noise in enumerate(config.noises)
    }


def at_best_epoch(records: dict[str, np.ndarray]) -> np.ndarray:
    """Accuracy on the second half of the test set where the first half's is best."""
    best = records["validation_accuracy"].argmax(1)
    return np.take_along_axis(records["half_accuracy"], best[:, None], axis=1)[:, 0]


def delay(records: dict[str, np.ndarray]) -> np.ndarray:
    """Epochs between fitting the right labels and the wrong ones; at least, if it ends before."""

    def first(name, level):
        fitted = records[name] >= level
        return np.where(fitted.any(1), fitted.argmax(1), fitted.shape[1] - 1)

    epochs, rows = records["epoch"], np.arange(len(records["epoch"]))
    right, wrong = first("clean_fit", _CLEAN), first("noisy_fit", _NOISY)
    step = epochs[:, 1] - epochs[:, 0]
    return np.maximum(epochs[rows, wrong] - epochs[rows, right], step).astype(float)


def numbers(runs: Runs, noises: tuple[float, ...]) -> dict[str, np.ndarray]:
    """The measured number of every claim, one a seed."""
    found = {}
    for noise in noises:
        part = f"{100 * noise:g}"
        records = {arm: runs[arm, noise] for arm in ARMS}
        final = {arm: r["test_accuracy"][:, -1] for arm, r in records.items()}
        best = {arm: at_best_epoch(r) for arm, r in records.items()}
        found |= {
            f"fp-final-{part}": final["fp"] - final["sgd"],
            f"fp-best-{part}": best["fp"] - best["sgd"],
            f"gp-r-final-{part}": final["gp_r"] - final["sgd"],
            f"fp-over-mixup-{part}": final["fp"] - final["mixup"],
            f"fp-over-gp-x-{part}": final["fp"] - final["gp_x"],
            f"mixup-final-{part}": final["mixup"] - final["sgd"],
            f"baseline-memorises-{part}": records["sgd"]["noisy_fit"][:, -1],
            f"fp-memorises-less-{part}": records["fp"]["noisy_fit"][:, -1],
            f"fp-learns-clean-{part}": records["fp"]["clean_fit"][:, -1],
            f"fp-slows-noisy-{part}": delay(records["fp"]) / delay(records["sgd"]),
        }
    return found


def draw(path: Path, runs: Runs, noises: tuple[float, ...]) -> None:
    """Right and wrong labels fitted along training, and the table of the paper."""
    names = [NAMES[arm] for arm in ARMS]
    with figure(path, 2, len(noises) + 1, panel=(3.8, 3.0), dpi=90) as axes:
        for column, noise in enumerate(noises):
            for number, arm in enumerate(ARMS):
                records = runs[arm, noise]
                epochs = records["epoch"][0]
                top, bottom = axes[0][column], axes[1][column]
                curve(top, epochs, records["noisy_fit"], number, NAMES[arm])
                curve(bottom, epochs, records["clean_fit"], number)
            axes[0][column].set(title=f"wrong labels fitted, {100 * noise:g} %")
            axes[1][column].set(title="right labels fitted", xlabel="epoch")
            axes[1][column].set_ylim(0.8, 1.01)
        axes[0][0].legend(fontsize=8)
        for row, (title, of) in enumerate(
            (
                ("final test accuracy", lambda r: r["test_accuracy"][:, -1]),
                ("test accuracy at the best epoch", at_best_epoch),
            )
        ):
            for number, noise in enumerate(noises):
                values = [of(runs[arm, noise]) for arm in ARMS]
                label = f"{100 * noise:g} % wrong"
                points(axes[row][-1], names, values, number, label)
            axes[row][-1].set(title=title)
        axes[0][-1].legend(fontsize=8)


def main(config: Config) -> None:
    """Runs the experiment, or shows the finished run."""
    with run_folder(config) as out:
        runs, noises = run(config, out), config.noises
        found = numbers(runs, noises)
        draw(out / "labels.png", runs, noises)
        rows = {}
        for noise in noises:
            part = f"{100 * noise:g} %"
            rows[f"{part} final"] = [runs[a, noise]["test_accuracy"][:, -1] for a in ARMS]
            rows[f"{part} best epoch"] = [at_best_epoch(runs[a, noise]) for a in ARMS]
        columns = [NAMES[arm] for arm in ARMS]
        print_table(accuracy_table(columns, rows, "Per cent, mean and standard error."))
        caption = "Labels fitted along training and test accuracies; mean, two standard errors."
        write_summary(
            out,
            config,
            judge_all(claims(noises), found, config.seed_range()),
            [Figure("labels.png", caption)],
            {
                f"{NAMES[arm]} {noise:g}": {
                    "final_test_accuracy": r["test_accuracy"][:, -1],
                    "best_epoch_test_accuracy": at_best_epoch(r),
                    "noisy_fit": r["noisy_fit"][:, -1],
                    "clean_fit": r["clean_fit"][:, -1],
                    "noisy_recovered": r["noisy_recovered"][:, -1],
                    "largest_trace": r["trace_fisher"].max(1),
                }
                for (arm, noise), r in runs.items()
            },
        )


EXPERIMENT = Experiment(main=main, presets=PRESETS, shares=True)
