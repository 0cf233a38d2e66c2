"""SAM and gradient penalties against SGD on wrong labels, at equal steps and at equal cost.

An MLP learns 1,000 digits, 20 % of whose labels are wrong, with SGD, SAM (Foret et al. 2021), the
Fisher penalty and the gradient penalty (FP and GP in Jastrzebski et al. 2021, "Catastrophic Fisher
Explosion"), and implicit gradient regularisation made explicit (IGR, Barrett and Dherin 2021) with
h the learning rate, which adds as much of it as SGD has by itself. All share initialisations, data,
batches and the learning rate of a seed. The null is SGD with other batches.

    python -m experiments flat_optimisers

Two ways to compare: at the end, after the same number of steps; and at the best epoch within the
same number of gradient evaluations (a step of SAM costs 2, of GP and IGR 3, of FP refreshed every
10 steps 4/3). One half of the test set chooses that epoch, and of each of SAM, FP and GP the
coefficient; the other half is measured.

Found: after as many steps SAM gains 7.6 points, FP 7.2, GP 2.9 and IGR 0.6 ± 0.5; at equal cost SAM
1.6 ± 0.8, GP 1.1 and FP nothing, for SGD stopped in time has learned few wrong labels. At the end
FP has fitted 0.42 of the wrong labels that SGD fits, SAM 0.66 and GP nearly all: the coefficients
are those of the best epoch, and larger ones memorise less. SAM ends with a fifth of the largest
eigenvalue, FP and GP with two thirds of tr F.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optax

import flatjax
from experiments.lib.lab import Lab, Options, Runs, Table, shared
from experiments.lib.nets import losses
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.training import curvature, minibatch, penalties, recipes
from experiments.lib.training.cost import GRADIENTS, within
from experiments.lib.training.epoch import MakeOptimizer
from experiments.lib.training.recipes import Recipe
from experiments.lib.training.settings import train_settings
from experiments.lib.training.validation import at_best_epoch, best_setting, final, halves
from experiments.lib.verdicts.curves import curve, words
from experiments.lib.verdicts.statistics import with_error

COST = GRADIENTS | {"other batches": 1.0}
"""Gradients per step."""


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 1000  # training examples
    label_noise: float = 0.2  # the fraction of wrong labels
    recipe: Recipe = Recipe(
        hidden=(128, 128), activation="relu", init_scale=2**0.5, batch_size=64, epochs=96,
        record_every=8,
    )  # network and training  # fmt: skip
    rate: float = 0.1  # the learning rate of all
    sam: tuple[float, ...] = (0.5, 1.0, 2.0)  # radii, of which validation chooses one ...
    fp: tuple[float, ...] = (0.1, 0.3, 1.0)  # ... and coefficients of the squared norms, of FP ...
    gp: tuple[float, ...] = (0.3, 1.0, 3.0)  # ... and of GP


# fmt: off
lab = Lab(
    Config, "Jastrzebski et al. 2021", data_parallel=True,
    smoke={"seeds": 1, "train_size": 32, "sam": (0.5,), "fp": (0.1, 0.3), "gp": (0.3,),
           "recipe": {"hidden": (8,), "batch_size": 16, "epochs": 6, "record_every": 1}},
)
# fmt: on
EXPERIMENT = lab.experiment


def make_optimizer(arm: str, config: Config) -> MakeOptimizer:
    """`make(seed, coef)`: what an arm does to the gradient, and SGD."""
    model_fn, loss = recipes.model_of(config.recipe), losses.OUTPUT_LOSSES[config.recipe.loss]

    def make(seed, coef):
        heads = {
            "SAM": lambda: flatjax.sam(coef),
            "FP": lambda: flatjax.fisher_penalty(model_fn, loss, coef=coef, every=10, seed=seed),
            "GP": lambda: flatjax.gradient_penalty(coef),
            "IGR": lambda: flatjax.implicit_gradient_regularization(config.rate),
        }
        return optax.chain(heads.get(arm, optax.identity)(), optax.sgd(config.rate))

    return make


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The records of every arm with its best coefficient, and its sharpness at the end."""
    seeds, recipe = list(config.seed_range()), config.recipe
    data = minibatch.load_seeds(
        config.data,
        seeds,
        train_size=config.train_size,
        label_noise=config.label_noise,
        num_classes=recipe.classes,
        flat=recipe.flat,
    )

    def measure(*state: Any) -> dict[str, Any]:
        return penalties.measure(recipe)(*state) | halves(recipe, *state)

    def train(arm: str) -> dict[str, np.ndarray]:
        other, folder = arm == "other batches", out / arm.replace(" ", "_").lower()
        found = train_settings(
            folder,
            recipe,
            data,
            [seed + 1000 for seed in seeds] if other else seeds,
            make_optimizer(arm, config),
            {coef: coef for coef in getattr(config, arm.lower(), (0.0,))},
            start=recipes.init_runs(recipe, data, seeds) if other else None,
            measure=measure,
            quiet=config.quiet,
        )
        coef = best_setting(found)
        trained = found[coef]
        ends = kept_arrays(
            folder / f"end_{coef:g}.npz",
            lambda: curvature.curvature_of_runs(recipe, trained, data),
        )
        return trained.records | {"sharpness": ends["sharpness"], "coef": np.full(len(seeds), coef)}

    return shared(config, {arm: functools.partial(train, arm) for arm in COST})


def at_the_end(runs: Runs, config: Config, arm: str) -> np.ndarray:
    """Test accuracy after all steps."""
    del config
    return final(runs[arm], "half_accuracy")


def at_equal_cost(runs: Runs, config: Config, arm: str) -> np.ndarray:
    """Test accuracy at the best epoch within the gradients that SGD has spent at its end."""
    return at_best_epoch(runs[arm], within(runs[arm], config.recipe.epochs / COST[arm]))


def gain(of: Any, arm: str) -> Any:
    """The measure of a claim: a test accuracy minus that of SGD."""
    return lambda runs, config: of(runs, config, arm) - of(runs, config, "SGD")


def over_sgd(name: str, arm: str) -> Any:
    """The measure of a claim: a number at the end over that of SGD."""
    return lambda runs, config: end(runs[arm], name) / end(runs["SGD"], name)


def end(records: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A number at the end, for every seed."""
    return records[name].reshape(len(records[name]), -1)[:, -1]


def share(runs: Runs, config: Config) -> np.ndarray:
    """The measure of a claim: the gain of IGR over the mean gain of GP."""
    whole = gain(at_the_end, "GP")(runs, config).mean()
    return gain(at_the_end, "IGR")(runs, config) / (whole or np.nan)


# fmt: off
HALF = "a half at most, where the null keeps all"
def add(arm: str, name: str, statement: str, measure: Any, *of: Any, **limits: Any) -> None:
    """Adds a claim on an arm, whose null is SGD with other batches."""
    papers = {"SAM": "Foret et al. 2021", "IGR": "Barrett and Dherin 2021"}
    lab.claim(f"{arm.lower()}-{name}", statement, measure(*of, arm), paper=papers.get(arm),
              null=measure(*of, "other batches"), **limits)

for arm in ("SAM", "FP", "GP", "IGR"):
    add(arm, "at-equal-steps", f"Test accuracy after as many steps, {arm} minus SGD.",
        gain, at_the_end, low=0.0, source="sign")
for arm in ("SAM", "FP", "GP"):
    add(arm, "at-equal-cost", "Test accuracy at the best epoch within as many gradients, "
        f"{arm} minus SGD.", gain, at_equal_cost, low=0.0, source="sign")
    add(arm, "memorises-less", f"Wrong labels reproduced after as many steps, {arm} over SGD.",
        over_sgd, "noisy_fit", high=0.5, source="margin", reason=HALF)
add("SAM", "flatter", "Largest Hessian eigenvalue after as many steps, SAM over SGD.",
    over_sgd, "sharpness", high=0.5, source="margin", reason=HALF)
for arm in ("FP", "GP"):
    add(arm, "lowers-the-trace", f"tr F after as many steps, {arm} over SGD.",
        over_sgd, "trace_fisher", high=0.5, source="margin", reason=HALF)
add("IGR", "flatter", "Largest Hessian eigenvalue after as many steps, IGR over SGD.",
    over_sgd, "sharpness", high=1.0, source="sign")
lab.claim("igr-is-weak", "The gain of IGR in test accuracy after as many steps over that of GP.",
          share, high=0.25, source="margin", paper="Barrett and Dherin 2021",
          reason="its coefficient, rate / 4, is a twelfth of the least tried of GP; the null is GP",
          null=lambda runs, config: np.ones(config.seeds))
# fmt: on


@lab.figure(
    "Test accuracy and wrong labels reproduced, over epochs and over gradient evaluations as many "
    "as SGD's in so many epochs; mean over seeds, two standard errors.",
    rows=2, columns=2,
)  # fmt: skip
def training(axes: Any, runs: Runs, config: Config) -> None:
    """Both ways to compare, along training."""
    for row, name in zip(axes, ("test_accuracy", "noisy_fit"), strict=True):
        for number, (arm, records) in enumerate(runs.items()):
            epochs = records["epoch"][0]
            curve(row[0], epochs, records[name], number, arm)
            curve(row[1], COST[arm] * epochs, records[name], number, arm)
        row[0].set(xlabel="epoch", ylabel=words(name))
        row[1].set(xlabel="epochs of SGD of that cost", xlim=(None, 1.02 * config.recipe.epochs))
    least = min(end(records, "test_accuracy").min() for records in runs.values())
    for panel in axes[0]:
        panel.set_ylim(bottom=min(0.8, least - 0.05))
    axes[1][0].legend(fontsize=8)


@lab.table
def comparison(runs: Runs, config: Config) -> Table:
    """Every arm both ways, and what it is at the end."""
    columns = ("arm", "coefficient", "test, equal steps", "test, equal cost", "wrong labels fitted",
               "tr F", "largest eigenvalue")  # fmt: skip
    rows = []
    for arm, records in runs.items():
        tests = [100 * of(runs, config, arm) for of in (at_the_end, at_equal_cost)]
        ends = [end(records, name) for name in ("noisy_fit", "trace_fisher", "sharpness")]
        rows.append(
            [arm, f"{records['coef'][0]:g}", *map(with_error, tests), *map(with_error, ends)]
        )
    return Table(columns, rows, "Mean and standard error over seeds; test accuracies in per cent.")
