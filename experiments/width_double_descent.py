"""Double descent in the width: the test error peaks where a network just fits its training set.

Nakkiran et al. (2020, "Deep double descent: where bigger models and more data hurt"): with wrong
labels the test error of a ResNet-18 falls with its width, rises until the training error is
zero, and falls for a second time; without wrong labels there is hardly a peak. Here networks of one
hidden layer on 200 digits, a fifth of the labels wrong or none, by Adam on squared error.

Lobacheva et al. (2020, "On power laws in deep ensembles"): once the likelihood is evaluated at the
temperature that suits it, each width its own, the double descent is gone. So networks with
cross-entropy, by SGD on 400 digits with a fifth of the labels wrong, before and after calibration.

    python -m experiments width_double_descent

Found: with wrong labels the test loss rises by 1.69 ± 0.01 and falls to 0.76 ± 0.01 of its peak.
The peak lies 2.4 ± 0.4 widths beyond the first one with no training error, where the training loss
vanishes too. The test error rises by 7.4 ± 1.1 points, and by 5.1 ± 0.7 without wrong labels, where
the paper has hardly a peak; the widest networks are only as good as the best before it. The
likelihood peaks at 1.36 ± 0.07; calibrated it rises by 2.1 ± 1.0 % at most: both stay open.

real: a small convolutional network on 800 images of Fashion-MNIST, with the likelihood on 2,000.
It looks as in the papers there, though three seeds leave most claims open: with wrong labels the
test loss rises by 1.39 ± 0.02 and falls to 0.74 ± 0.03 of that, the test error rises by 5.8 ± 0.3
points, and without wrong labels by 1.2 ± 0.4. The mean likelihood peaks; calibrated it falls with
every width. paper: their ResNet-18 on CIFAR-10 with a constant rate, 4,000 epochs, when prepared.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import flatjax
from experiments.lib.lab import Lab, Options
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.training import minibatch, recipes
from experiments.lib.training.descent import Descent, descent
from experiments.lib.training.recipes import Recipe
from experiments.lib.training.settings import load_grid, train_grid
from experiments.lib.verdicts.curves import curve
from experiments.lib.verdicts.statistics import climb

Runs = dict[float | str, dict[str, np.ndarray]]
"""By fraction of wrong labels, and `likelihood`: numbers at the end, (seeds, widths)."""


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 200  # training examples
    widths: tuple[int, ...] = (2, 4, 8, 16, 24, 32, 48, 64, 128, 256)  # from narrow to wide
    label_noise: float = 0.2  # of the labels are wrong, beside the same without
    descent: Descent = Descent(optimizer="adam", learning_rate=3e-3, schedule="cosine")
    recipe: Recipe = Recipe(
        hidden=(64,), activation="relu", init_scale=2**0.5, loss="squared_error", batch_size=None,
        epochs=2500, record_every=2500,
    )  # network, its width apart, and training on squared error  # fmt: skip
    likelihood_size: int = 400  # training examples of the networks with cross-entropy
    likelihood_descent: Descent = Descent(learning_rate=0.2)
    likelihood_batch: int = 40  # examples an update of theirs
    likelihood_epochs: int = 300  # epochs of theirs


# fmt: off
lab = Lab(
    Config, "Nakkiran et al. 2020", shares=False,
    smoke={"seeds": 1, "train_size": 30, "widths": (2, 4), "likelihood_size": 30,
           "likelihood_batch": 15, "likelihood_epochs": 2,
           "recipe": {"epochs": 4, "record_every": 4}},
    real={"data": "fashion_mnist", "seeds": 3, "train_size": 800,
          "widths": (1, 2, 3, 4, 6, 8, 12, 16, 32),
          "descent": {"learning_rate": 1e-3}, "likelihood_size": 2000, "likelihood_batch": 128,
          "likelihood_epochs": 60, "likelihood_descent": {"learning_rate": 0.05, "momentum": 0.9},
          "recipe": {"network": "s2cnn", "batch_size": 100, "epochs": 250, "record_every": 250}},
    # From memory: CIFAR-10, 15 % wrong labels, ResNet-18 of widths 1 to 64, Adam with rate 1e-4,
    # batches of 128, 4,000 epochs, shifts and mirrors; the loss there is cross-entropy. Of
    # Lobacheva et al. the epochs; the rest is ours.
    paper={"data": "cifar10", "train_size": 50_000, "label_noise": 0.15,
           "widths": (1, 2, 4, 6, 8, 10, 12, 16, 32, 64), "likelihood_size": 50_000,
           "descent": {"learning_rate": 1e-4, "schedule": "constant"}, "likelihood_batch": 128,
           "likelihood_epochs": 200, "likelihood_descent": {"learning_rate": 0.05, "momentum": 0.9},
           "recipe": {"network": "resnet-18", "loss": "cross_entropy", "batch_size": 128,
                      "epochs": 4000, "record_every": 4000, "flip": True, "crop": 4}},
)
# fmt: on
EXPERIMENT = lab.experiment

LIKELIHOOD = "likelihood"


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The errors and losses of every width at the end."""
    seeds, noises = config.seed_range(), (0.0, config.label_noise)
    data = load_grid(config.data, config.recipe, seeds, noises, train_size=config.train_size)
    rows: dict[float, list[Any]] = {noise: [] for noise in noises}
    for width in config.widths:
        recipe = recipes.of_width(config.recipe, width)
        found = train_grid(
            out / f"width_{width}", recipe, data, seeds,
            lambda seed, hyper, recipe=recipe: descent(config.descent, recipe, config.train_size),
            {"all": 0.0}, quiet=config.quiet,
        )  # fmt: skip
        for noise in noises:
            rows[noise].append(found["all", noise].records)
    runs: Runs = {noise: _by_width(rows[noise]) for noise in noises}
    return runs | {LIKELIHOOD: _likelihoods(config, out)}


def _by_width(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The last records of every width, (seeds, widths)."""

    def last(name):
        return np.stack([row[name][:, -1] for row in rows], axis=1)

    return {
        "test_error": 1 - last("test_accuracy"),
        "train_error": 1 - last("train_accuracy"),
        "test_loss": last("test_loss"),
        "train_loss": last("train_loss"),
    }


def _likelihoods(config: Config, out: Path) -> dict[str, np.ndarray]:
    """The test likelihood of networks with cross-entropy, before and after calibration."""
    recipe = dataclasses.replace(
        config.recipe, loss="cross_entropy", batch_size=config.likelihood_batch,
        epochs=config.likelihood_epochs, record_every=config.likelihood_epochs,
    )  # fmt: skip
    seeds, size = config.seed_range(), config.likelihood_size
    data = minibatch.load_seeds(
        config.data, seeds, train_size=size, label_noise=config.label_noise, flat=recipe.flat,
        num_classes=recipe.classes,
    )  # fmt: skip

    def of_width(width: int) -> dict[str, np.ndarray]:
        own = recipes.of_width(recipe, width)
        trained = minibatch.train_arm(
            out / f"likelihood_{width}", own, data, seeds,
            lambda seed, hyper: descent(config.likelihood_descent, own, size), quiet=config.quiet,
        )  # fmt: skip
        answer = own.over_runs(lambda *state: recipes.logits(own, *state))
        logits = jax.jit(answer)(trained.params, trained.model_state, data.test_inputs)
        return kept_arrays(
            out / f"likelihood_{width}.npz",
            lambda: likelihoods(np.asarray(logits), data.test_targets),
        )

    each = [of_width(width) for width in config.widths]
    return {name: np.stack([row[name] for row in each], axis=1) for name in each[0]}


def likelihoods(logits: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Of every seed the likelihood of its logits, `plain` and `calibrated`."""
    found = [
        flatjax.calibrated_nll(row[None], labels, key=jax.random.key(0))
        for row, labels in zip(logits, targets, strict=True)
    ]
    return {
        "plain": np.array([f.uncalibrated for f in found], float),
        "calibrated": np.array([f.value for f in found], float),
    }


def peak(row: np.ndarray) -> tuple[int, int]:
    """The places of the largest rise, from the least before it: (bottom, top)."""
    rises = [row[i] / row[:i].min() for i in range(1, len(row))]
    top = 1 + int(np.argmax(rises))
    return int(row[:top].argmin()), top


def rise(row: np.ndarray) -> float:
    """The height of the peak over the least before it; below 1 where every width is better."""
    bottom, top = peak(row)
    return float(row[top] / row[bottom])


def rows_of(noise: str, name: str) -> Any:
    """The rows of all seeds: `wrong` for those with wrong labels, `right`, or `likelihood`."""

    def rows(runs: Runs, config: Config) -> np.ndarray:
        arms = {"wrong": config.label_noise, "right": 0.0, LIKELIHOOD: LIKELIHOOD}
        return runs[arms[noise]][name]

    return rows


def each(number: Any, noise: str, name: str) -> Any:
    """The measure of a claim: a number of the row of every seed."""
    rows = rows_of(noise, name)
    return lambda runs, config: [float(number(row)) for row in rows(runs, config)]


def from_threshold(place: Any) -> Any:
    """The measure of a claim: widths between a place of the test loss and the threshold."""

    def measure(runs: Runs, config: Config) -> list[float]:
        records = runs[config.label_noise]
        found = []
        for loss, error in zip(records["test_loss"], records["train_error"], strict=True):
            fitted = error < 0.01
            at = abs(place(loss) - fitted.argmax()) if fitted.any() else np.nan
            found.append(float(at))
        return found

    return measure


def end_over(place: Any) -> Any:
    """A number of a row: its end over what is at a place."""
    return lambda row: row[-1] / row[place(row)]


# fmt: off
TAU = "Lobacheva et al. 2020"
lab.claim("peak", "Largest test loss over the least of narrower networks, with wrong labels.",
          each(rise, "wrong", "test_loss"), low=1.2, source="margin",
          reason="the null is the training loss", null=each(rise, "wrong", "train_loss"))
lab.claim("peak-at-the-threshold",
          "Widths between that peak and the first with less than 1 % training error.",
          from_threshold(lambda row: peak(row)[1]), high=1.0, source="paper",
          reason="the nearest or the next; the null is the widest network",
          null=from_threshold(lambda row: len(row) - 1))
lab.claim("peak-of-the-error", "Test error, the most above that of a narrower network.",
          each(climb, "wrong", "test_error"), low=0.02, source="margin",
          reason="the paper's is some 5 points; the null is the training error",
          null=each(climb, "wrong", "train_error"))
lab.claim("no-peak-without-noise", "The same without wrong labels.",
          each(climb, "right", "test_error"), high=0.02, source="paper",
          reason="hardly a peak; the null has wrong labels",
          null=each(climb, "wrong", "test_error"))
lab.claim("second-descent", "Test loss of the widest network over that at the peak.",
          each(end_over(lambda row: peak(row)[1]), "wrong", "test_loss"), high=0.85,
          source="margin", reason="the null is the way from the least to the peak",
          null=each(lambda row: rise(row), "wrong", "test_loss"))
lab.claim("below-the-first", "Test error of the widest network over the least before the peak.",
          each(end_over(lambda row: peak(row)[0]), "wrong", "test_error"), high=1.0, source="paper",
          reason="the modern regime is the better one; the null is the peak",
          null=each(rise, "wrong", "test_error"))
lab.claim("likelihood-peaks", "Largest negative log-likelihood over the least of narrower ones.",
          each(rise, LIKELIHOOD, "plain"), low=1.2, source="margin", paper=TAU,
          reason="the null is after calibration", null=each(rise, LIKELIHOOD, "calibrated"))
lab.claim("calibration-removes-it", "The same after calibration.",
          each(rise, LIKELIHOOD, "calibrated"), high=1.02, source="paper", paper=TAU,
          reason="no rise, 2 % for the noise of a seed; the null is before calibration",
          null=each(rise, LIKELIHOOD, "plain"))
# fmt: on


@lab.figure(
    "Error and loss against the width, dotted where the training error is first below 1 %; and "
    "the likelihood before and after calibration. Means over seeds, two standard errors.",
    columns=3,
)
def widths(axes: Any, runs: Runs, config: Config) -> None:
    """Error, loss and likelihood against the width."""
    error, loss, likelihood = axes
    x = np.array(config.widths)
    for number, (noise, label) in enumerate(
        ((config.label_noise, f"{config.label_noise:.0%} wrong"), (0.0, "all right"))
    ):
        of = runs[noise]
        curve(error, x, of["test_error"], number, f"test, {label}")
        curve(loss, x, of["test_loss"], number, f"test, {label}")
    of = runs[config.label_noise]
    curve(error, x, of["train_error"], 2, f"training, {config.label_noise:.0%} wrong")
    fitted = of["train_error"].mean(0) < 0.01
    if fitted.any():
        for panel in (error, loss):
            panel.axvline(x[fitted.argmax()], color="0.4", linestyle=":", linewidth=1.0)
    for number, name in enumerate(("plain", "calibrated")):
        curve(likelihood, x, runs[LIKELIHOOD][name], 3 + number, name)
    for panel, ylabel in (
        (error, "error"), (loss, config.recipe.loss.replace("_", " ")),
        (likelihood, "negative log-likelihood"),
    ):  # fmt: skip
        panel.set(xscale="log", xlabel="width", ylabel=ylabel)
        panel.legend(fontsize=8)
    loss.set(yscale="log")


@lab.extra
def by_width(runs: Runs, config: Config) -> dict[str, Any]:
    """Means over seeds by width."""
    return {"widths": list(config.widths)} | {
        f"{arm} {name}": rows.mean(0).tolist()
        for arm, records in runs.items()
        for name, rows in records.items()
    }
