"""Stiffness: gradients agree within a class, not between; and SGD settles where they are uniform.

Fort, Nowak, Jastrzebski & Narayanan (2019, "Stiffness: A New Perspective on Generalization in
Neural Networks"): the gradients of two examples of one class have a positive cosine, all through
training, those of different classes none; so for pairs of training examples and for a training
with a test example. Wu, Ma & E (NeurIPS 2018, "How SGD Selects the Global Minima"): SGD with step
eta and batches of B stays at a minimum if (1 - eta a)^2 + eta^2 (n - B) / (B (n - 1)) s^2
is at most 1, with a the sharpness and s the non-uniformity of the examples' Hessians, so that small
batches select uniform minima. Three parts: stiffness along training, with two learning rates; the
bound where SGD of three batch sizes and two learning rates ends; and the paper's example in one
dimension, where the mean square grows by a known factor.

    python -m experiments stiffness

Found: cosines 0.385 within classes and -0.001 between, 0.381 with test examples. SGD ends at 0.89
of the bound at most, at 0.88 ± 0.02 with the smallest batches and the large rate, small batches in
flatter and more uniform minima. In one dimension the mean square grows by 0.999 of the factor of
theory.

Much of stiffness is there before training, so each claim about classes must fail for shuffled
labels, and the one about signs for the untrained network. That the gradients of one logit at two
inputs are alike, and those of two logits are not (Fort & Ganguli 2019), is in the summary and the
figure, without a claim.

real: a small convolutional network on Fashion-MNIST. paper: the first part with the fully connected
network of Fort et al. on MNIST, when prepared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.lib.lab import Lab, Options, Runs, shared
from experiments.lib.training.recipes import Recipe
from experiments.lib.verdicts.curves import curve
from experiments.lib.verdicts.figures import style
from experiments.lib.verdicts.statistics import rank_correlation
from experiments.stiffness.gradients import training
from experiments.stiffness.stability import most_uniform, one_dimension, sgd_ends


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 500  # training examples of the first part
    pairs: int = 200  # stiffness is measured over all pairs of so many examples
    rates: tuple[float, float] = (0.03, 0.3)  # of the first part; the claims are about the first
    recipe: Recipe = Recipe(batch_size=50, epochs=60, record_every=5)  # of the first part
    stable_size: int = 200  # training examples of the second part
    stable_rates: tuple[float, float] = (0.05, 0.2)  # learning rates of the second part
    batch_sizes: tuple[int, int, int] = (4, 20, 200)  # likewise, from the smallest to all
    stable_steps: int = 16_000  # updates in the second part, at most
    # network and loss of the second part; its epochs follow from the number of updates
    stable: Recipe = Recipe(hidden=(32, 32), loss="squared_error", stop_loss=0.005)
    walkers: int = 100_000  # runs of SGD in one dimension


class Found(NamedTuple):
    """What is found.

    Attributes:
      training: the records along training by learning rate.
      minima: where SGD ends by batch size, (seeds, learning rates) each.
      line: the walkers in one dimension, see `one_dimension`; a leading axis of seeds.
    """

    training: Runs
    minima: Runs
    line: dict[str, np.ndarray]


# fmt: off
lab = Lab(
    Config, "Fort et al. 2019", data_parallel=True,
    smoke={"seeds": 1, "train_size": 40, "pairs": 20, "walkers": 2000, "stable_size": 20,
           "stable_steps": 20, "batch_sizes": (4, 20, 20),
           "recipe": {"hidden": (6,), "batch_size": 20, "epochs": 4, "record_every": 2},
           "stable": {"hidden": (6,), "stop_loss": 0.45}},
    real={"data": "fashion_mnist", "seeds": 3, "train_size": 2000, "pairs": 500,
          "rates": (0.01, 0.1),
          "recipe": {"network": "s2cnn-8", "epochs": 40, "record_every": 2}},
    # Of Fort et al. 2019; where no source is named the value is ours, as in all of the second part.
    paper={"data": "mnist", "train_size": 10_000, "pairs": 500,  # section 4.1
           "recipe": {"hidden": (500, 300, 100), "activation": "relu",  # section 4.1
                      "init_scale": 2**0.5, "batch_size": 32, "epochs": 50, "record_every": 1}},
)
# fmt: on
EXPERIMENT = lab.experiment


@lab.run
def run(config: Config, out: Path) -> Found:
    """The three parts."""
    work: dict[str, Any] = {"training": training(config, out)} | sgd_ends(config, out)
    found: dict[str, Any] = shared(config, work)
    lines = [one_dimension(seed, config.walkers) for seed in config.seed_range()]
    line = {name: np.array([row[name] for row in lines]) for name in lines[0]}
    return Found(found.pop("training"), found, line)


def first_rate(found: Found) -> dict[str, np.ndarray]:
    """The records with the first learning rate."""
    return next(iter(found.training.values()))


def least(name: str, *, start: int = 0) -> Any:
    """The measure of a claim on the least value of a record along training."""
    return lambda found, config: first_rate(found)[name][:, start:].min(1)


def largest(name: str, *, start: int = 0) -> Any:
    """The measure of a claim on the largest value of a record along training."""
    return lambda found, config: first_rate(found)[name][:, start:].max(1)


def untrained(name: str) -> Any:
    """The null of a claim on a record: the untrained network's."""
    return lambda found, config: first_rate(found)[name][:, 0]


def shuffled(within: str, between: str, same: str) -> Any:
    """The null of a claim on cosines: the mean over all shuffled labels, the least and largest."""

    def null(found: Found, config: Config) -> np.ndarray:
        records = first_rate(found)
        # A pair has one class by shuffled labels as often whatever its own are.
        share = records[same]
        return (share * records[within] + (1 - share) * records[between]).mean(1)

    return null


def of_minima(found: Found, name: str) -> np.ndarray:
    """(seeds, minima) a number of all minima."""
    return np.concatenate([minima[name] for minima in found.minima.values()], axis=1)


def uniformity(arm: int) -> Any:
    """The measure of a claim on minima at the large rate, over what the smallest batches hold."""

    def measure(found: Found, config: Config) -> np.ndarray:
        most = most_uniform(config.stable_rates[-1], config.batch_sizes[0], config.stable_size)
        return where_reached(found, of_arm(found, "non_uniformity", arm) / most)

    return measure


def full_batch_minima(found: Found, config: Config) -> np.ndarray:
    """The left side for the smallest batches at the minima of the full batch, at the large rate."""
    rate = config.stable_rates[-1]
    most = most_uniform(rate, config.batch_sizes[0], config.stable_size)
    curved = (1 - rate * of_arm(found, "sharpness", -1)) ** 2
    return curved + (of_arm(found, "non_uniformity", -1) / most) ** 2


def of_arm(found: Found, name: str, arm: int) -> np.ndarray:
    """A number of the minima at the large rate of the batch size of this place."""
    return list(found.minima.values())[arm][name][:, -1]


def where_reached(found: Found, values: np.ndarray) -> np.ndarray:
    """The values of the seeds all of whose minima have the same training loss."""
    return np.where(of_minima(found, "reached").all(1), values, np.nan)


def flatness(found: Found, config: Config) -> np.ndarray:
    """The sharpness with the smallest batches over that with all examples."""
    return where_reached(found, of_arm(found, "sharpness", 0) / of_arm(found, "sharpness", -1))


def flatness_of_another(found: Found, config: Config) -> np.ndarray:
    """The same of two minima that only differ by their seed."""
    small = of_arm(found, "sharpness", 0)
    return where_reached(found, small / np.roll(small, 1))


def flat_is_uniform(found: Found, config: Config, shift: int = 0) -> list[float]:
    """The rank correlation of sharpness and non-uniformity, for every seed."""
    tops, spreads = of_minima(found, "sharpness"), of_minima(found, "non_uniformity")
    pairs = zip(np.roll(tops, shift, axis=1), spreads, strict=True)
    return [rank_correlation(a, b) for a, b in pairs]


def farthest(name: str) -> Any:
    """The measure of a claim on the growth in one dimension, of the rate that is worst."""

    def measure(found: Found, config: Config) -> np.ndarray:
        ratios = found.line[name]
        return np.take_along_axis(ratios, abs(ratios - 1).argmax(1)[:, None], 1)[:, 0]

    return measure


WU = "Wu, Ma & E 2018"

# fmt: off
lab.claim("within", "Cosine of two gradients of one class, the least of all records.",
          least("cos_within"), low=0.3, source="paper", reason="the least that the figures show",
          null=shuffled("cos_within", "cos_between", "same"))
lab.claim("test-within", "Cosine of a training and a test gradient of one class, the least.",
          least("test_cos_within"), low=0.3, source="paper", reason="as high as in training",
          null=shuffled("test_cos_within", "test_cos_between", "test_same"))
lab.claim("between", "Cosine of two gradients of different classes, the largest of all records.",
          largest("cos_between"), high=0.02, source="paper",
          reason="none; null: those of one class", null=largest("cos_within"))
lab.claim("sign-between", "Sign stiffness between classes, the largest after the first record.",
          largest("sign_between", start=1), high=-0.2, source="seeds",
          reason="training makes classes compete; the paper has no number: -0.33 to -0.3 on 0-4",
          null=untrained("sign_between"))
lab.claim("stable", "The stability condition's left side where SGD ends, the largest of all.",
          lambda found, config: of_minima(found, "value").max(1), high=1.02, paper=WU,
          source="theory", reason="beyond 1 fluctuations can grow; 0.02 for the eigenvalues; null: "
          "the smallest batches at full-batch minima", null=full_batch_minima)
lab.claim("bound-is-met", "The left side with the smallest batches at the large rate.",
          lambda found, config: where_reached(found, of_arm(found, "value", 0)),
          low=0.9, high=1.02, paper=WU, source="theory", reason="held by the bound, close below it",
          null=lambda found, config: list(found.minima.values())[-1]["value"][:, 0])
lab.claim("small-batches-uniform",
          "Non-uniformity with the smallest batches at the large rate, over the largest at which "
          "SGD can stay.", uniformity(0), high=1.0, paper=WU,
          source="theory", reason="sqrt(B (n - 1) / (n - B)) / eta", null=uniformity(-1))
lab.claim("small-batches-flat",
          "Sharpness with the smallest batches over the full batch, at the large rate.",
          flatness, high=1.0, paper=WU, source="sign", null=flatness_of_another)
lab.claim("flat-is-uniform",
          "Rank correlation of sharpness and non-uniformity over all minima.",
          flat_is_uniform, low=0.8, paper=WU, source="seeds",
          reason="the paper shows points along a line; 0.943 to 1 on seeds 0-4",
          null=lambda found, config: flat_is_uniform(found, config, shift=1))
lab.claim("one-dimension-grows",
          "Growth of the mean square near the non-uniform minimum in a step of SGD, over "
          "(1 - 2 eta)^2 + 3.24 eta^2; the learning rate that is farthest from 1.",
          farthest("growth"), low=0.98, high=1.02, paper=WU, source="theory",
          null=farthest("descent"))
lab.claim("one-dimension-leaves",
          "SGD that leaves it for the uniform minimum at eta = 0.7.",
          lambda found, config: found.line["leaves"], low=0.99, paper=WU,
          source="theory", reason="the mean logarithm of the factors is 0.18; -0.92 of descent",
          null=lambda found, config: found.line["descent_leaves"])
# fmt: on


@lab.figure("Along training; mean over seeds, two standard errors.", columns=3, panel=(3.8, 3.1))
def stiffness(axes: Any, found: Found, config: Config) -> None:
    """Stiffness of examples, and of logits, along training."""
    names = ("cosine of gradients", "sign of inner products", "cosine of logits' gradients")
    for panel, name in zip(axes, names, strict=True):
        panel.set(xlabel="epoch", ylabel=name)
    for number, (rate, records) in enumerate(found.training.items()):
        epochs = records["epoch"][0]
        for panel, kind, words in (
            (axes[0], "cos_{}", ("within", "between")),
            (axes[1], "sign_{}", ("within", "between")),
            (axes[2], "{}_logit", ("same", "other")),
        ):
            for place, word in enumerate(words):
                label = rf"{word}, $\eta$ = {rate}" if panel is not axes[1] else ""
                curve(panel, epochs, records[kind.format(word)], number + 2 * place, label)
    records = first_rate(found)
    curve(axes[0], records["epoch"][0], records["test_cos_within"], 4, "within, train and test")
    axes[0].legend(fontsize=7)
    axes[2].legend(fontsize=7)


@lab.figure(
    "Cosine of gradients by their classes before, in the middle and at the end of training, mean "
    "over seeds.",
    columns=3,
    panel=(3.6, 3.1),
)
def classes(axes: Any, found: Found, config: Config) -> None:
    """The class blocks; white is no stiffness."""
    records = first_rate(found)
    blocks = records["classes"].mean(0)
    reach = np.nanmax(abs(blocks))
    for panel, place in zip(axes, (0, len(blocks) // 2, -1), strict=True):
        image = panel.imshow(blocks[place], cmap="RdBu_r", vmin=-reach, vmax=reach)
        panel.grid(False)
        ticks = range(0, 10, 3)
        panel.set(xlabel=f"class, epoch {records['epoch'][0][place]}", xticks=ticks, yticks=ticks)
    axes[0].set(ylabel="class")
    axes[0].figure.colorbar(image, ax=list(axes), label="cosine")


@lab.figure(
    "Minima of SGD, every seed; below its line a batch size is stable.",
    columns=2,
    panel=(4.2, 3.2),
)
def minima(axes: Any, found: Found, config: Config) -> None:
    """Sharpness and non-uniformity of all minima, with the stability bounds."""
    for column, (panel, eta) in enumerate(zip(axes, config.stable_rates, strict=True)):
        for number, (size, end) in enumerate(found.minima.items()):
            x, y = end["sharpness"][:, column], end["non_uniformity"][:, column]
            look = {**style(number), "linestyle": "none"}
            panel.plot(x, y, label=f"batches of {size}", **look)
            b, n = int(size), config.stable_size
            part = (n - b) / (b * (n - 1))
            if part > 0:
                a = np.linspace(0, 2 / eta, 200)
                room = np.sqrt(np.maximum(1 - (1 - eta * a) ** 2, 0) / part) / eta
                panel.plot(a, room, **{**style(number, markers=False), "linewidth": 1})
        panel.axvline(2 / eta, color="#555555", linewidth=1, linestyle=":")
        ends = [np.max([e[k][:, column] for e in found.minima.values()])
                for k in ("sharpness", "non_uniformity")]  # fmt: skip
        panel.set(
            xlabel="sharpness", ylabel=rf"non-uniformity, $\eta$ = {eta:g}",
            xlim=(0, 1.3 * ends[0]), ylim=(0, 1.5 * ends[1]),
        )  # fmt: skip
    axes[0].legend(fontsize=8)


@lab.extra
def ends(found: Found, config: Config) -> dict[str, Any]:
    """The minima, and the last record of both learning rates."""
    last = {
        rate: {name: values[:, -1] for name, values in records.items() if name != "classes"}
        for rate, records in found.training.items()
    }
    return {"minima": found.minima, "rates": last}
