"""Random labels: a network memorises them all, a little slower, and ends where it is sharper.

Zhang et al. (ICLR 2017, "Understanding deep learning requires rethinking generalization"): networks
fit random labels without error, with the same hyperparameters and little more time, while the test
accuracy falls to chance. Here a fraction q of the labels of 500 digits is drawn anew, uniformly,
and an MLP trained by Adam with full batches until the cross-entropy is 0.05: at matched loss, for
the Hessian of cross-entropy vanishes with the loss. What memorising costs shows there, in the
largest Hessian eigenvalue, the trace and the norm of the weights. Beside them, as in the paper's
figure 1, the true labels with the pixels of every image shuffled in an order of its own, and with
Gaussian noise for images: without structure, but quicker to fit than random labels.

    python -m experiments random_labels

Found: random labels take 4.6 times the steps of true ones, more than the paper's small factor;
shuffled pixels and Gaussian images five to six tenths of what random labels take. At the same loss
random labels end 1.4 times as sharp, with 3.1 times the trace and 1.5 times the norm.

paper: their small Inception on CIFAR-10, when prepared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.data.small import SmallData, first_examples, stack_seeds
from experiments.lib.lab import Lab, Options
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.training import curvature
from experiments.lib.training.descent import Descent, descent
from experiments.lib.training.recipes import Recipe
from experiments.lib.training.settings import load_grid, train_grid
from experiments.lib.verdicts.curves import curve, words
from experiments.lib.verdicts.figures import style
from experiments.lib.verdicts.statistics import rank_correlation

Runs = dict[float | str, dict[str, np.ndarray]]
"""By fraction of random labels, or name of the images: where training ends, (seeds,) each;
`records_*` also over the records."""


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 500  # training examples
    fractions: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)  # of labels drawn anew: none to all
    descent: Descent = Descent(optimizer="adam", learning_rate=2e-3)
    measured: int | None = None  # training examples of the Hessian; None for all
    recipe: Recipe = Recipe(
        hidden=(256,), activation="relu", init_scale=2**0.5, batch_size=None, epochs=600,
        record_every=5, stop_loss=0.05,
    )  # network and training; an epoch is one step on the full batch  # fmt: skip


# fmt: off
lab = Lab(
    Config, "Zhang et al. 2017", shares=False, data_parallel=True,
    smoke={"seeds": 1, "train_size": 30, "fractions": (0.0, 1.0),
           "recipe": {"hidden": (16,), "init_scale": 1.0, "epochs": 12, "record_every": 4}},
    real={"data": "fashion_mnist", "seeds": 3, "train_size": 5000,
          "descent": {"learning_rate": 1e-3},
          "recipe": {"network": "s2cnn-16", "batch_size": 128, "epochs": 150}},
    # Where no source is named the paper's value is not known to us, and the value is ours. Their
    # images are cut to 28 x 28 pixels, here they are whole.
    paper={"data": "cifar10", "train_size": 50_000, "measured": 1000,  # section 2
           "descent": {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9,  # appendix A
                       "schedule": "epochs"},  # appendix A: times 0.95 after every epoch
           "recipe": {"network": "experiments.lib.nets.papers:small_inception",  # figure 3
                      "batch_size": 128, "epochs": 200}},
)
# fmt: on
EXPERIMENT = lab.experiment

IMAGES = ("pixels", "gaussian")


def with_random_labels(data: SmallData, fraction: float, seed: int) -> SmallData:
    """Draws exactly this fraction of the training labels anew, uniformly over the classes."""
    rng = np.random.RandomState([seed, 7])
    chosen = rng.permutation(len(data.targets))[: round(fraction * len(data.targets))]
    targets = data.clean_targets.copy()
    targets[chosen] = rng.randint(0, 10, size=len(chosen))
    return data._replace(targets=targets)


def with_other_images(data: SmallData, kind: str, seed: int) -> SmallData:
    """Shuffles the pixels of every training image by itself, or draws Gaussian images.

    The Gaussian ones have mean and standard deviation of each pixel.
    """
    rng, inputs = np.random.default_rng([seed, 8]), data.inputs
    if kind == "pixels":
        flat = rng.permuted(inputs.reshape(len(inputs), -1), axis=1)
        return data._replace(inputs=flat.reshape(inputs.shape))
    drawn = rng.standard_normal(inputs.shape) * inputs.std(0) + inputs.mean(0)
    return data._replace(inputs=drawn.astype(np.float32))


@lab.run
def run(config: Config, out: Path) -> Runs:
    """Where training ends, and what it is like there."""
    seeds = config.seed_range()
    true = load_grid(config.data, config.recipe, seeds, [0.0], train_size=config.train_size)[0.0]

    def changed(change: Any, kind: Any) -> SmallData:
        each = [change(curvature.run_of(true, i), kind, seed) for i, seed in enumerate(seeds)]
        return stack_seeds(each)

    data: dict[float | str, SmallData] = {
        q: changed(with_random_labels, q) for q in config.fractions
    }
    data |= {kind: changed(with_other_images, kind) for kind in IMAGES}
    trained = train_grid(
        out / "training",
        config.recipe,
        data,
        seeds,
        lambda seed, hyper: descent(config.descent, config.recipe, config.train_size),
        {"all": 0.0},
        quiet=config.quiet,
    )

    def measured(kind: float | str) -> dict[str, np.ndarray]:
        runs = trained["all", kind]
        found = kept_arrays(
            out / f"curvature_{kind}.npz",
            lambda: curvature.curvature_of_runs(
                config.recipe, runs, first_examples(data[kind], config.measured, axis=1)
            ),
        )
        names = ("train_accuracy", "test_accuracy", "train_loss", "norm", "epoch")
        found |= {name: runs.records[name][:, -1] for name in names} | {"reached": runs.reached}
        return found | {f"records_{n}": runs.records[n] for n in ("epoch", "train_accuracy")}

    return {kind: measured(kind) for kind in data}


def by_fraction(runs: Runs, config: Config, name: str) -> np.ndarray:
    """A number of every seed and fraction, (seeds, fractions)."""
    return np.stack([runs[q][name] for q in config.fractions], axis=1)


def reached(runs: Runs, kind: float | str, name: str) -> np.ndarray:
    """A number of every seed; NaN where the loss is not reached."""
    return np.where(runs[kind]["reached"], runs[kind][name], np.nan)


def ratio(name: str) -> Any:
    """The measure of a claim: random labels over true ones."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        true, *_, random = config.fractions
        return reached(runs, random, name) / reached(runs, true, name)

    return measure


def other_draw(name: str) -> Any:
    """The null of a claim: true labels over those of the seed before; NaN with a single seed."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        true = reached(runs, config.fractions[0], name)
        return true / np.roll(true, 1) if len(true) > 1 else np.full(1, np.nan)

    return measure


def order(name: str) -> Any:
    """The measure of a claim: the rank correlation with the fraction of random labels."""
    return lambda runs, config: [
        rank_correlation(config.fractions, row) for row in by_fraction(runs, config, name)
    ]


def order_of_draws(name: str) -> Any:
    """The null of a claim: true labels all along, a number of as many seeds in turn."""

    def measure(runs: Runs, config: Config) -> list[float]:
        true, count = runs[config.fractions[0]][name], len(config.fractions)
        rows = [np.resize(np.roll(true, -i), count) for i in range(len(true))]
        return [rank_correlation(config.fractions, row) for row in rows]

    return measure


def sooner(kind: str) -> Any:
    """The measure of a claim: the steps to the loss over those with random labels."""
    return lambda runs, config: (
        reached(runs, kind, "epoch") / reached(runs, config.fractions[-1], "epoch")
    )


def sooner_with_fewer(runs: Runs, config: Config) -> np.ndarray:
    """The null of a claim: the same of the fraction before all."""
    return reached(runs, config.fractions[-2], "epoch") / reached(
        runs, config.fractions[-1], "epoch"
    )


# fmt: off
SHARP = "Arpit et al. 2017; Keskar et al. 2017"
DRAW = "the null is another draw of the true labels"
ORDER = ("a random order of five has it with probability 1 / 120; in the null all labels are true, "
         "of one seed for each fraction")
lab.claim("fits-everything", "The least training accuracy over all fractions of random labels.",
          lambda runs, config: by_fraction(runs, config, "train_accuracy").min(1),
          low=0.99, source="paper", reason="no training error; the null is the untrained network",
          null=lambda runs, config: runs[config.fractions[-1]]["records_train_accuracy"][:, 0])
lab.claim("chance", "Test accuracy with random labels only; chance is 0.1.",
          lambda runs, config: runs[config.fractions[-1]]["test_accuracy"], low=0.075, high=0.125,
          source="theory", reason="three standard errors of 1,297 test images; the null has true "
          "labels", null=lambda runs, config: runs[config.fractions[0]]["test_accuracy"])
lab.claim("test-falls", "Rank correlation of the fraction of random labels and test accuracy.",
          order("test_accuracy"), high=-0.95, source="paper", reason=ORDER,
          null=order_of_draws("test_accuracy"))
lab.claim("slower-by-a-factor",
          "Epochs to the same training loss, random labels only over true labels only.",
          ratio("epoch"), low=1.5, high=3.5, source="paper",
          reason="what its figure 1 shows; " + DRAW, null=other_draw("epoch"))
for kind, what in {"pixels": "shuffled pixels", "gaussian": "Gaussian images"}.items():
    lab.claim(f"{kind}-sooner",
              f"Epochs to the same training loss, {what} with true labels over random labels only.",
              sooner(kind), high=0.9, source="margin", null=sooner_with_fewer,
              reason="a tenth at least; the null has the fraction of random labels before all")
for name, what, number, paper in (
    ("sharper", "Largest Hessian eigenvalue", "sharpness", SHARP),
    ("larger-trace", "Trace of the Hessian", "trace", SHARP),
    ("larger-norm", "Norm of the weights", "norm", "Neyshabur et al. 2017"),
):
    lab.claim(name, f"{what} at the same loss, random labels over true ones.", ratio(number),
              low=1.0, source="sign", reason=DRAW, null=other_draw(number), paper=paper)
lab.claim("trace-rises", "Rank correlation of the fraction of random labels and the trace.",
          order("trace"), low=0.95, source="margin", reason=ORDER, paper=SHARP,
          null=order_of_draws("trace"))
# fmt: on


@lab.figure(
    "Fit along training, every seed; the rest means over seeds, two standard errors.",
    rows=2, columns=2,
)  # fmt: skip
def fractions(axes: Any, runs: Runs, config: Config) -> None:
    """Fit along training; accuracy, steps and curvature against the fraction of random labels."""
    q = config.fractions
    along, accuracy, steps, relative = axes.flat
    for number, (kind, records) in enumerate(runs.items()):
        options = {**style(number, markers=False), "linewidth": 1.0}
        label = kind if kind in IMAGES else f"{kind:g} random"
        rows = records["records_epoch"], records["records_train_accuracy"]
        for k, (epochs, row) in enumerate(zip(*rows, strict=True)):
            along.plot(epochs, row, label=None if k else label, **options)
    along.set(xscale="symlog", xlabel="epoch", ylabel="training accuracy")

    def of(name: str) -> np.ndarray:
        return by_fraction(runs, config, name)

    curve(accuracy, q, of("test_accuracy"), 0, "test", marker="o")
    curve(accuracy, q, of("train_accuracy"), 1, "training", marker="s")
    curve(steps, q, of("epoch"), 2, "random labels", marker="o")
    for number, kind in enumerate(IMAGES, 3):
        steps.axhline(runs[kind]["epoch"].mean(), **style(number, markers=False), label=kind)
    for number, name in enumerate(("sharpness", "trace", "norm")):
        curve(relative, q, of(name) / of(name)[:, :1], number, words(name), marker="o")
    for panel, ylabel in (
        (accuracy, "accuracy"),
        (steps, "epochs to the loss"),
        (relative, "over that of true labels"),
    ):
        panel.set(xlabel="fraction of random labels", ylabel=ylabel)
    for panel in axes.flat:
        panel.legend(fontsize=8)


@lab.extra
def ends(runs: Runs, config: Config) -> dict[str, Any]:
    """What is not along training."""
    return {
        str(kind): {k: v for k, v in records.items() if not k.startswith("records_")}
        for kind, records in runs.items()
    }
