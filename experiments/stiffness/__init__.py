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

import functools
from dataclasses import dataclass
from typing import Any

from experiments.lib.runs.shares import shared
from experiments.lib.training.minibatch import Recipe
from experiments.lib.verdicts.claims import judge_all
from experiments.lib.verdicts.summary import Figure, run_folder, write_summary
from experiments.registry import Experiment, Options
from experiments.stiffness.claims import CLAIMS, numbers
from experiments.stiffness.minima import one_dimension, sgd_ends
from experiments.stiffness.pictures import draw_minima, draw_stiffness
from experiments.stiffness.training import run_training


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    data: str = "digits"
    """The data set."""

    train_size: int = 500
    """Training examples of the first part."""

    pairs: int = 200
    """Stiffness is measured over all pairs of so many examples."""

    rates: tuple[float, float] = (0.03, 0.3)
    """Learning rates of the first part; the claims are about the first."""

    recipe: Recipe = Recipe(batch_size=50, epochs=60, record_every=5)
    """Network and training of the first part."""

    stable_size: int = 200
    """Training examples of the second part."""

    stable_rates: tuple[float, float] = (0.05, 0.2)
    """Learning rates of the second part."""

    batch_sizes: tuple[int, int, int] = (4, 20, 200)
    """Batch sizes of the second part, from the smallest; the last is the full batch."""

    stable_steps: int = 16_000
    """Updates in the second part, at most."""

    stable: Recipe = Recipe(hidden=(32, 32), loss="squared_error", stop_loss=0.005)
    """Network and loss of the second part; its epochs follow from the number of updates."""

    walkers: int = 500
    """Runs of SGD in one dimension."""


PRESETS = {
    "smoke": Config(
        seeds=1, first_seed=0, train_size=40, pairs=20, walkers=20, stable_size=20,
        batch_sizes=(4, 20, 20),
        recipe=Recipe(hidden=(6,), batch_size=20, epochs=4, record_every=2),
        stable=Recipe(hidden=(6,), loss="squared_error", stop_loss=0.45), stable_steps=20,
    ),
    "cpu": Config(),
    "gpu": Config(
        data="cifar10", train_size=5000, pairs=500,
        recipe=Recipe(hidden=(512, 512), batch_size=100, epochs=100, record_every=5),
    ),
    "paper": Config(
        data="mnist", train_size=10_000, pairs=500,
        recipe=Recipe(hidden=(500, 300, 100), activation="relu", batch_size=32, epochs=50),
    ),
}  # fmt: skip


def main(config: Config) -> None:
    """Runs the experiment, or shows the finished run."""
    with run_folder(config) as out:
        seeds = list(config.seed_range())
        work = {"training": functools.partial(run_training, config, out)} | sgd_ends(config, out)
        found: dict[str, Any] = shared(config, work)
        training = found.pop("training")
        lines = [one_dimension(seed, config.walkers) for seed in seeds]
        values = {k: v.tolist() for k, v in numbers(training, found).items()}
        values |= {name: [line[name] for line in lines] for name in lines[0]}
        draw_stiffness(out / "stiffness.png", config, training)
        draw_minima(out / "minima.png", config, found)
        write_summary(
            out,
            config,
            judge_all(CLAIMS, values, seeds),
            [
                Figure("stiffness.png", "Along training; mean over seeds, two standard errors."),
                Figure(
                    "minima.png",
                    "Minima of SGD, every seed; below its line a batch size is stable.",
                ),
            ],
            {
                "minima": found,
                "rates": {
                    f"{rate:g}": {k: v[:, -1] for k, v in records.items() if k != "classes"}
                    for rate, records in zip(config.rates, training, strict=True)
                },
            },
        )


EXPERIMENT = Experiment(main=main, presets=PRESETS, shares=True)
