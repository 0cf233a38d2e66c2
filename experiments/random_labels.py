"""Random labels: a network memorises them all, a little slower, and ends where it is sharper.

Zhang et al. (ICLR 2017, "Understanding deep learning requires rethinking generalization"): networks
fit random labels without error, with the same hyperparameters and little more time, while the test
accuracy falls to chance. Here a fraction q of the labels of 500 digits is drawn anew, uniformly,
and an MLP trained by Adam with full batches until the cross-entropy is 0.05: at matched loss, for
the Hessian of cross-entropy vanishes with the loss. What memorising costs shows there, in the
largest Hessian eigenvalue, the trace and the norm of the weights.

    python -m experiments random_labels                            # three seeds, 23 seconds

Found on seeds 0-4, for q = 0, 1/4, 1/2, 3/4, 1 (means):

    test accuracy        0.954   0.824   0.604   0.360   0.089
    steps                52      204     237     244     246
    largest eigenvalue   1.36    2.01    2.26    2.15    1.95
    trace                16      32      41      49      50
    norm                 24.2    29.4    32.6    34.5    35.2

All labels are fitted. The trace rises with q throughout; the largest eigenvalue, which also knows
how many outlying directions the true classes make, does not.

paper: a fully connected network on CIFAR-10, when prepared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optax

from experiments.lib.data.small import SmallData
from experiments.lib.lab import Lab, Options
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.training import curvature, minibatch
from experiments.lib.training.minibatch import Recipe
from experiments.lib.training.settings import train_grid
from experiments.lib.verdicts.curves import curve, words
from experiments.lib.verdicts.figures import style
from experiments.lib.verdicts.statistics import rank_correlation

Found = dict[str, np.ndarray]
"""By name, (seeds, fractions): where training ends; `records_*` also over the records."""


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 500  # training examples
    fractions: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)  # of labels drawn anew: none to all
    learning_rate: float = 2e-3  # Adam's
    recipe: Recipe = Recipe(
        hidden=(256,), activation="relu", init_scale=2**0.5, batch_size=None, epochs=600,
        record_every=5, stop_loss=0.05,
    )  # network and training; an epoch is one step on the full batch  # fmt: skip


# fmt: off
lab = Lab(
    Config, "Zhang et al. 2017", shares=False,
    smoke={"seeds": 1, "train_size": 30, "fractions": (0.0, 1.0),
           "recipe": {"hidden": (16,), "init_scale": 1.0, "epochs": 12, "record_every": 4}},
    paper={"data": "cifar10", "train_size": 50_000, "learning_rate": 1e-3,
           "recipe": {"hidden": (512,) * 3, "batch_size": 128, "epochs": 500}},
)
# fmt: on
EXPERIMENT = lab.experiment


def with_random_labels(data: SmallData, fraction: float, seed: int) -> SmallData:
    """Draws exactly this fraction of the training labels anew, uniformly over the classes."""
    rng = np.random.RandomState([seed, 7])
    chosen = rng.permutation(len(data.targets))[: round(fraction * len(data.targets))]
    targets = data.clean_targets.copy()
    targets[chosen] = rng.randint(0, 10, size=len(chosen))
    return data._replace(targets=targets)


@lab.run
def run(config: Config, out: Path) -> Found:
    """Where training ends, and what it is like there."""
    seeds = config.seed_range()
    load = minibatch.load_seeds(config.data, seeds, train_size=config.train_size)
    data = {
        q: minibatch.stack_seeds(
            [with_random_labels(curvature.run_of(load, i), q, seed) for i, seed in enumerate(seeds)]
        )
        for q in config.fractions
    }
    trained = train_grid(
        out / "adam",
        config.recipe,
        data,
        seeds,
        lambda seed, hyper: optax.adam(config.learning_rate),
        {"adam": 0.0},
        chunk=10,
        quiet=config.quiet,
    )

    def measured(q: float) -> Found:
        runs = trained["adam", q]
        found = kept_arrays(
            out / f"curvature_{q:g}.npz",
            lambda: curvature.curvature_of_runs(config.recipe, runs.params, data[q]),
        )
        names = ("train_accuracy", "test_accuracy", "train_loss", "norm", "epoch")
        found |= {name: runs.records[name][:, -1] for name in names} | {"reached": runs.reached}
        return found | {f"records_{n}": runs.records[n] for n in ("epoch", "train_accuracy")}

    each = [measured(q) for q in config.fractions]
    return {name: np.stack([found[name] for found in each], axis=1) for name in each[0]}


def ratio(name: str) -> Any:
    """The measure of a claim: random labels over true ones; NaN where one misses the loss."""

    def measure(runs: Found, config: Config) -> np.ndarray:
        return np.where(runs["reached"].all(1), runs[name][:, -1] / runs[name][:, 0], np.nan)

    return measure


def order(name: str) -> Any:
    """The measure of a claim: the rank correlation with the fraction of random labels."""
    return lambda runs, config: [rank_correlation(config.fractions, row) for row in runs[name]]


# fmt: off
SHARP = "Arpit et al. 2017; Keskar et al. 2017"
lab.claim("fits-everything", "The least training accuracy over all fractions of random labels.",
          lambda runs, config: runs["train_accuracy"].min(1), low=0.99,
          source="seeds", reason="0.996 to 1 on seeds 0-4")
lab.claim("chance", "Test accuracy with random labels only; chance is 0.1.",
          lambda runs, config: runs["test_accuracy"][:, -1], low=0.05, high=0.15,
          source="seeds", reason="0.0786 to 0.103 on seeds 0-4")
lab.claim("test-falls", "Rank correlation of the fraction of random labels and test accuracy.",
          order("test_accuracy"), high=-0.95, source="seeds", reason="-1 to -1 on seeds 0-4")
lab.claim("slower-by-a-factor",
          "Steps to the same training loss, random labels only over true labels only.",
          ratio("epoch"), low=1.5, high=8.0, source="seeds", reason="4.39 to 5.09 on seeds 0-4")
lab.claim("sharper", "Largest Hessian eigenvalue at the same loss, random labels over true ones.",
          ratio("sharpness"), low=1.0, source="seeds", reason="1.32 to 1.59 on seeds 0-4",
          paper=SHARP)
lab.claim("larger-trace", "Trace of the Hessian at the same loss, random labels over true ones.",
          ratio("trace"), low=1.0, source="seeds", reason="2.92 to 3.29 on seeds 0-4", paper=SHARP)
lab.claim("trace-rises", "Rank correlation of the fraction of random labels and the trace.",
          order("trace"), low=0.6, source="seeds", reason="1 to 1 on seeds 0-4", paper=SHARP)
lab.claim("larger-norm", "Norm of the weights at the end, random labels over true ones.",
          ratio("norm"), low=1.0, source="seeds", reason="1.44 to 1.47 on seeds 0-4",
          paper="Neyshabur et al. 2017")
# fmt: on


@lab.figure(
    "Fit along training, every seed; the rest means over seeds, two standard errors.",
    rows=2, columns=2,
)  # fmt: skip
def fractions(axes: Any, runs: Found, config: Config) -> None:
    """Fit along training; accuracy, steps and curvature against the fraction of random labels."""
    q = config.fractions
    along, accuracy, steps, relative = axes.flat
    for number, fraction in enumerate(q):
        options = {**style(number, markers=False), "linewidth": 1.0}
        rows = runs["records_epoch"][:, number], runs["records_train_accuracy"][:, number]
        for k, (epochs, row) in enumerate(zip(*rows, strict=True)):
            along.plot(epochs, row, label=None if k else f"{fraction:g} random", **options)
    along.set(xscale="symlog", xlabel="step", ylabel="training accuracy")
    curve(accuracy, q, runs["test_accuracy"], 0, "test", marker="o")
    curve(accuracy, q, runs["train_accuracy"], 1, "training", marker="s")
    curve(steps, q, runs["epoch"], 2, marker="o")
    for number, name in enumerate(("sharpness", "trace", "norm")):
        curve(relative, q, runs[name] / runs[name][:, :1], number, words(name), marker="o")
    for panel, ylabel in (
        (accuracy, "accuracy"),
        (steps, "steps to the loss"),
        (relative, "over that of true labels"),
    ):
        panel.set(xlabel="fraction of random labels", ylabel=ylabel)
    for panel in (along, accuracy, relative):
        panel.legend(fontsize=8)


@lab.extra
def ends(runs: Found, config: Config) -> Found:
    """What is not along training."""
    return {name: values for name, values in runs.items() if not name.startswith("records_")}
