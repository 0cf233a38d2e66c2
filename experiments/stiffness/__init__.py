"""Stiffness: gradients agree within a class, not between; and SGD settles where they are uniform.

Fort, Nowak, Jastrzebski & Narayanan (2019, "Stiffness: A New Perspective on Generalization in
Neural Networks"): the gradients of two examples of one class have a positive cosine, all through
training, those of different classes none; so for pairs of training examples and for a training
with a test example. Wu, Ma & E (NeurIPS 2018, "How SGD Selects the Global Minima"): SGD with step
eta and batches of B can stay at a minimum only if (1 - eta a)^2 + eta^2 (n - B) / (B (n - 1)) s^2
is at most 1, with a the sharpness and s the non-uniformity of the examples' Hessians, so that small
batches select uniform minima. Three parts: stiffness along training, with two learning rates; the
bound where SGD of three batch sizes and two learning rates ends; and the paper's example in one
dimension, where the bound is exact.

    python -m experiments stiffness                                # three seeds, 51 seconds

Found on seeds 0-4: within a class a cosine of 0.40 to 0.46, between -0.03, the same between
training and test; 0.35 with a learning rate of 0.3. At eta = 0.2 the minima of batches of 4, 20 and
200 have a sharpness of 4.2, 7.1 and 9.2 and a non-uniformity of 9, 16 and 21, each close below its
own bound: small batches are held at uniform minima, which are flat ones, for the two go together.

The clustering of logits (Fort & Ganguli 2019), the mean squared distance to the class mean over the
total variance, is in the summary, without a claim: it hardly moves at this size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.lib.lab import Lab, Options, Runs, shared
from experiments.lib.training.minibatch import Recipe
from experiments.lib.verdicts.curves import curve
from experiments.lib.verdicts.figures import style
from experiments.lib.verdicts.statistics import rank_correlation
from experiments.stiffness.gradients import training
from experiments.stiffness.stability import one_dimension, sgd_ends


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
    walkers: int = 500  # runs of SGD in one dimension


class Found(NamedTuple):
    """What is found.

    Attributes:
      training: the records along training by learning rate.
      minima: where SGD ends by batch size, (seeds, learning rates) each.
      line: the fractions of the walkers in one dimension, (seeds,) each.
    """

    training: Runs
    minima: Runs
    line: dict[str, np.ndarray]


# fmt: off
lab = Lab(
    Config, "Fort et al. 2019",
    smoke={"seeds": 1, "train_size": 40, "pairs": 20, "walkers": 20, "stable_size": 20,
           "stable_steps": 20, "batch_sizes": (4, 20, 20),
           "recipe": {"hidden": (6,), "batch_size": 20, "epochs": 4, "record_every": 2},
           "stable": {"hidden": (6,), "stop_loss": 0.45}},
    real={"data": "fashion_mnist", "seeds": 3, "train_size": 2000, "pairs": 500,
          "rates": (0.01, 0.1),
          "recipe": {"network": "s2cnn-8", "epochs": 40, "record_every": 2}},
    paper={"data": "mnist", "train_size": 10_000, "pairs": 500,
           "recipe": {"hidden": (500, 300, 100), "activation": "relu", "batch_size": 32,
                      "epochs": 50, "record_every": 1}},
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


def likeness(found: Found, config: Config) -> np.ndarray:
    """The cosine of a training with a test example over that of two training examples."""
    records = first_rate(found)
    return records["test_cos_within"][:, -1] / records["cos_within"][:, -1]


def of_minima(found: Found, name: str) -> np.ndarray:
    """(seeds, minima) a number of all minima."""
    return np.concatenate([minima[name] for minima in found.minima.values()], axis=1)


def small_over_full(name: str) -> Any:
    """The measure of a claim on the minima of the smallest batches over those of the largest."""

    def measure(found: Found, config: Config) -> np.ndarray:
        small, *_, full = found.minima.values()
        reached = of_minima(found, "reached").all(1)
        return np.where(reached, small[name][:, -1] / full[name][:, -1], np.nan)

    return measure


def flat_is_uniform(found: Found, config: Config) -> list[float]:
    """The rank correlation of sharpness and non-uniformity, for every seed."""
    pairs = zip(of_minima(found, "sharpness"), of_minima(found, "non_uniformity"), strict=True)
    return [rank_correlation(a, b) for a, b in pairs]


def share(name: str) -> Any:
    """The measure of a claim on walkers in one dimension."""
    return lambda found, config: found.line[name]


WU = "Wu, Ma & E 2018"

# fmt: off
lab.claim("within", "Cosine of two gradients of one class, the least of all records.",
          least("cos_within"), low=0.25, source="seeds", reason="0.375 to 0.419 on seeds 0-4")
lab.claim("between", "Cosine of two gradients of different classes, the largest of all records.",
          largest("cos_between"), high=0.05,
          source="seeds", reason="-0.00747 to -0.000953 on seeds 0-4")
lab.claim("sign-within", "Sign stiffness within a class, the least after the first record.",
          least("sign_within", start=1), low=0.75,
          source="seeds", reason="0.859 to 0.928 on seeds 0-4")
lab.claim("sign-between", "Sign stiffness between classes, the largest after the first record.",
          largest("sign_between", start=1), high=0.05,
          source="seeds", reason="-0.331 to -0.3 on seeds 0-4")
lab.claim("test-within", "Cosine of a training and a test gradient of one class, the least.",
          least("test_cos_within"), low=0.2, source="seeds", reason="0.381 to 0.405 on seeds 0-4")
lab.claim("test-like-train",
          "Cosine within a class at the end: training and test over training only.",
          likeness, low=0.8, high=1.1, source="seeds", reason="0.931 to 1.04 on seeds 0-4")
lab.claim("stable", "The stability condition's left side where SGD ends, the largest of all.",
          lambda found, config: of_minima(found, "value").max(1), high=1.0, paper=WU,
          source="theory", reason="beyond 1 fluctuations grow")
lab.claim("small-batches-uniform",
          "Non-uniformity with the smallest batches over the full batch, at large eta.",
          small_over_full("non_uniformity"), high=0.95, paper=WU,
          source="seeds", reason="0.373 to 0.454 on seeds 0-4")
lab.claim("small-batches-flat",
          "Sharpness with the smallest batches over the full batch, at large eta.",
          small_over_full("sharpness"), high=0.95, paper=WU,
          source="seeds", reason="0.402 to 0.52 on seeds 0-4")
lab.claim("flat-is-uniform",
          "Rank correlation of sharpness and non-uniformity over all minima.",
          flat_is_uniform, low=0.8, paper=WU, source="seeds", reason="0.943 to 1 on seeds 0-4")
lab.claim("one-dimension-stays",
          "SGD that stays at the non-uniform minimum at eta = 0.5, left side 0.81.",
          share("one-dimension-stays"), low=0.99, paper=WU,
          source="theory", reason="every factor is 0.9 in magnitude")
lab.claim("one-dimension-leaves",
          "SGD that leaves it for the uniform minimum at eta = 0.7, left side 1.75.",
          share("one-dimension-leaves"), low=0.99, paper=WU,
          source="theory", reason="the mean logarithm of the factors is 0.18")
lab.claim("one-dimension-descent-stays", "Gradient descent that stays there at eta = 0.7.",
          share("one-dimension-descent-stays"), low=0.99, paper=WU,
          source="theory", reason="the factor is -0.4")
# fmt: on


@lab.figure("Along training; mean over seeds, two standard errors.", columns=3, panel=(3.8, 3.1))
def stiffness(axes: Any, found: Found, config: Config) -> None:
    """Stiffness along training, and the class blocks at the end."""
    left, middle, right = axes
    for number, (rate, records) in enumerate(found.training.items()):
        epochs = records["epoch"][0]
        for panel, prefix in ((left, "cos"), (middle, "sign")):
            within, between = records[f"{prefix}_within"], records[f"{prefix}_between"]
            curve(panel, epochs, within, number, rf"within, $\eta$ {rate}")
            curve(panel, epochs, between, number + 2, rf"between, $\eta$ {rate}")
    records = first_rate(found)
    curve(left, records["epoch"][0], records["test_cos_within"], 4, "within, train and test")
    left.set(ylabel="cosine of gradients", xlabel="epoch")
    middle.set(ylabel="sign of inner products", xlabel="epoch")
    left.legend(fontsize=7)
    blocks = records["classes"][:, -1].mean(0)
    reach = np.nanmax(abs(blocks))
    image = right.imshow(blocks, cmap="RdBu_r", vmin=-reach, vmax=reach)  # white: no stiffness
    right.grid(False)
    right.set(xlabel="class", ylabel="class", xticks=range(0, 10, 3))
    right.figure.colorbar(image, ax=right, label="cosine at the end")


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
