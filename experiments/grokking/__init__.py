"""Grokking: long after everything is memorised a network generalises, if its weights decay.

Power et al. (2022, "Grokking: generalization beyond overfitting on small algorithmic datasets"): on
the table of a modular operation the training accuracy is perfect early, the validation accuracy at
chance for ten and more times as long, and then perfect too; the sooner, the more of the table is
trained on, and weight decay is what helps most. Here a + b mod 23, two unit vectors side by side,
and a network of one hidden layer with squared activation (Gromov 2023), by AdamW on full batches.

The talk's reading is a slow drift to wider minima. With cross-entropy the Hessian vanishes with the
loss whatever the minimum, so the width is measured of networks trained on squared error, where they
have memorised and where they generalise, each brought to the same training loss without decay:
normalised sharpness, which no rescaling of nodes changes, and the local learning coefficient. Full
batches have no noise to drift by; beside them stands an arm with small batches and without decay.

    python -m experiments grokking

Found: 95 % of the rest are right 14.6 ± 0.3 times as late as the training set is, which is fitted
at chance; the more of the table, the sooner. Without decay the test accuracy stays at 2.8 ± 0.4 %,
with small batches at 1.1 ± 0.3 %. At the same squared error a network that generalises has 0.66 ±
0.01 of the normalised sharpness and 0.92 ± 0.01 of the learning coefficient of one that had just
memorised (whose test accuracy has come to a half there); its largest eigenvalue is higher. With a
decay of 0.3 not every seed is done after 3,000 updates: that claim is open. A transformer of one
layer on a - b mod 31 memorises at chance and has 88 ± 10 % of the rest right 6,000 updates later,
7 ± 1 % without decay; one of three seeds is not done then, and squared error is not even fitted,
so that all of its claims are open.

real: a transformer of one layer, width 32. paper: its transformer of two layers and four heads on
a / b mod 97.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax

from experiments.grokking.matched import first, flattened, memorised, squared, widths
from experiments.lib.data.modular import Operation, modular_arithmetic, one_hot_pairs
from experiments.lib.data.small import SmallData, stack_seeds
from experiments.lib.lab import Lab, Options, Runs, Table
from experiments.lib.runs.errors import BadData
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.training.recipes import Recipe
from experiments.lib.training.settings import train_settings
from experiments.lib.verdicts.curves import curve
from experiments.lib.verdicts.figures import style
from experiments.lib.verdicts.statistics import rank_correlation, with_error


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    data: Literal["modular"] = "modular"  # the table of one operation
    modulus: int = 23  # p
    operation: Operation = "+"  # of two residues
    fraction: float = 0.6  # of the table is trained on
    other_fractions: tuple[float, ...] = (0.65, 0.7, 0.8)  # more, with the largest decay
    decays: tuple[float, ...] = (0.0, 0.3, 1.0)  # of AdamW, from none to the most
    learning_rate: float = 3e-3  # AdamW's
    small_batch: int = 32  # examples an update of the arm with noise and without decay
    matched_loss: float = 5e-5  # squared error at which widths are compared
    chain_steps: int = 1000  # of each chain of the learning coefficient
    recipe: Recipe = Recipe(
        hidden=(128,), activation="square", init_scale=0.5, classes=23, batch_size=None,
        epochs=3000, record_every=10,
    )  # network and training; an epoch is one update on the full batch  # fmt: skip

    def __post_init__(self):
        if self.recipe.classes != self.modulus:
            raise BadData(
                f"there are {self.modulus} results: set --recipe.classes {self.modulus}, not "
                f"{self.recipe.classes}"
            )


# fmt: off
lab = Lab(
    Config, "Power et al. 2022", shares=False,
    smoke={"seeds": 1, "modulus": 5, "other_fractions": (0.8,), "decays": (0.0, 1.0),
           "small_batch": 5, "matched_loss": 0.3, "chain_steps": 8,
           "recipe": {"hidden": (8,), "classes": 5, "epochs": 20, "record_every": 5}},
    # The paper's network with one layer of width 32, on a - b, where order counts.
    real={"seeds": 3, "modulus": 31, "operation": "-", "fraction": 0.75,
          "other_fractions": (0.85,), "decays": (0.0, 0.5), "learning_rate": 2e-3,
          "small_batch": 64, "matched_loss": 1e-3, "chain_steps": 400,
          "recipe": {"network": "experiments.lib.nets.papers:small_two_tokens", "classes": 31,
                     "epochs": 6000, "record_every": 20}},
    # From memory of appendix A.1: the network, AdamW with rate 1e-3 and decay 1, batches of 512 or
    # half the training set; here full batches for 1e5 updates. The fractions are ours.
    paper={"modulus": 97, "operation": "/", "fraction": 0.5, "other_fractions": (0.3, 0.4, 0.7),
           "learning_rate": 1e-3, "small_batch": 512,
           "recipe": {"network": "experiments.lib.nets.papers:TwoTokens", "classes": 97,
                      "epochs": 100_000, "record_every": 100}},
)
# fmt: on
EXPERIMENT = lab.experiment

SQUARED = "squared error"
"""Begins the names of the arms whose widths are measured."""


def tables(config: Config, fraction: float) -> SmallData:
    """The table of each seed, split at random; the residues as the network takes them."""
    each = []
    for seed in config.seed_range():
        pairs = modular_arithmetic(
            jax.random.key(seed), config.modulus, operation=config.operation,
            train_fraction=fraction,
        )  # fmt: skip
        train, test = pairs.inputs, pairs.test_inputs
        if config.recipe.flat:
            train, test = (one_hot_pairs(part, config.modulus) for part in (train, test))
        each.append(SmallData(train, pairs.targets, pairs.targets, test, pairs.test_targets))
    return stack_seeds(each)


def adamw(config: Config) -> Any:
    """The optimiser of a run with some decay."""
    return lambda seed, decay: optax.adamw(config.learning_rate, b2=0.98, weight_decay=decay)


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The records of every arm, and what is measured where the loss is the same."""
    seeds, recipe, most = config.seed_range(), config.recipe, config.decays[-1]
    data, decays = tables(config, config.fraction), {d: d for d in config.decays}
    quiet: dict[str, Any] = {"quiet": config.quiet}
    make = adamw(config)
    found = train_settings(out / "decays", recipe, data, seeds, make, decays, **quiet)
    runs = {f"decay {decay:g}": dict(each.records) for decay, each in found.items()}
    for fraction in config.other_fractions:
        each = train_settings(
            out / f"fraction_{fraction:g}", recipe, tables(config, fraction), seeds, make,
            {most: most}, **quiet,
        )  # fmt: skip
        runs[f"fraction {fraction:g}"] = dict(each[most].records)
    updates = max(1, data.targets.shape[1] // config.small_batch)
    noisy = dataclasses.replace(
        recipe, batch_size=config.small_batch, epochs=max(1, recipe.epochs // updates),
        record_every=max(1, recipe.record_every // updates),
    )  # fmt: skip
    each = train_settings(out / "noise", noisy, data, seeds, make, {0.0: 0.0}, **quiet)
    runs["noise"] = dict(each[0.0].records)
    of_error = {d: d for d in (config.decays[0], config.decays[1])}
    found = train_settings(
        out / "squared_error", squared(config), data, seeds, make, of_error,
        measure=flattened, **quiet,
    )  # fmt: skip
    for decay, each in found.items():
        name = f"{SQUARED} {decay:g}"
        records = dict(each.records)
        vectors = records.pop("params")
        of_decay = functools.partial(
            widths, config, out / f"matched_{decay:g}", data, records, vectors
        )
        runs[name] = records | kept_arrays(out / f"widths_{decay:g}.npz", of_decay)
    return runs


def steps(records: dict[str, np.ndarray], name: str = "test_accuracy", level: float = 0.95) -> Any:
    """Epochs until then; NaN where it never is."""
    at = first(records, name, level)
    return np.where(at < 0, np.nan, records["epoch"][np.arange(len(at)), at])


def delay(records: dict[str, np.ndarray]) -> np.ndarray:
    """Steps until it generalises over steps until all is memorised."""
    return steps(records) / steps(records, "train_accuracy", 0.99)


def decayed(config: Config, place: int = -1) -> str:
    """The arm of one of the decays, by default of the largest."""
    return f"decay {config.decays[place]:g}"


def by_fraction(runs: Runs, config: Config) -> tuple[list[float], np.ndarray]:
    """The fractions in order, and the steps of every seed with the largest decay."""
    arms = {config.fraction: decayed(config)}
    arms |= {f: f"fraction {f:g}" for f in config.other_fractions}
    order = sorted(arms)
    return order, np.stack([steps(runs[arms[f]]) for f in order], 1)


def last(name: str, place: int) -> Any:
    """A measure: a number of the arm of one of the decays at the end."""
    return lambda runs, config: runs[decayed(config, place)][name][:, -1]


def width_ratio(name: str, place: int) -> Any:
    """A measure: of squared error, where it ends over where all is memorised."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        records = runs[f"{SQUARED} {config.decays[place]:g}"]
        ratio = records[name][:, 1] / records[name][:, 0]
        return np.where(records["reached"].all(1), ratio, np.nan)

    return measure


def order_of_fractions(runs: Runs, config: Config) -> list[float]:
    """A measure: the rank correlation of fraction and steps."""
    fractions, taken = by_fraction(runs, config)
    return [rank_correlation(fractions, row) for row in taken]


def order_of_seeds(runs: Runs, config: Config) -> list[float]:
    """The null: of one fraction the steps of as many seeds in turn."""
    taken, count = steps(runs[decayed(config)]), len(config.other_fractions) + 1
    rows = [np.resize(np.roll(taken, -i), count) for i in range(len(taken))]
    return [rank_correlation(range(count), row) for row in rows]


def at_memorised(runs: Runs, config: Config) -> np.ndarray:
    """A measure: the test accuracy where all is first memorised."""
    records = runs[decayed(config)]
    return np.take_along_axis(records["test_accuracy"], memorised(records)[:, None], 1)[:, 0]


def rise(name: str) -> Any:
    """A measure: the largest loss over the first one."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        loss = runs[decayed(config)][name]
        return loss.max(1) / loss[:, 0]

    return measure


# fmt: off
OTHER = "the null is the same without weight decay"
lab.claim("memorises-at-chance", "Test accuracy where the training set is first fitted.",
          at_memorised, high=0.1, source="paper",
          reason="chance, 1 / p, with a margin; the null is the end",
          null=last("test_accuracy", -1))
lab.claim("delay", "Steps until 95 % of the rest are right over those until all is memorised.",
          lambda runs, config: delay(runs[decayed(config)]), low=10.0, source="paper",
          reason="orders of magnitude in its figure 1; the null is the largest fraction",
          null=lambda runs, config: delay(runs[f"fraction {max(config.other_fractions):g}"]))
lab.claim("generalises", "Test accuracy at the end.", last("test_accuracy", -1), low=0.95,
          source="paper", reason=OTHER, null=last("test_accuracy", 0))
lab.claim("not-without-decay", "The same without weight decay.", last("test_accuracy", 0),
          high=0.1, source="margin", reason="chance and a margin; the null is the largest decay",
          null=last("test_accuracy", -1))
lab.claim("more-decay-sooner", "Steps until then, with the largest decay over the next smaller.",
          lambda runs, config: (
              steps(runs[decayed(config)]) / steps(runs[decayed(config, -2)])
          ), high=0.9, source="margin", reason="the null is the next seed with the same decay",
          null=lambda runs, config: (
              steps(runs[decayed(config)]) / np.roll(steps(runs[decayed(config)]), 1)
          ))
lab.claim("more-data-sooner", "Rank correlation of the fraction trained on and the steps.",
          order_of_fractions, high=-0.9, source="paper",
          reason="falls steeply in its figure 1; the null has one fraction for all",
          null=order_of_seeds)
lab.claim("test-loss-rises", "The largest test loss over the first.", rise("test_loss"), low=1.2,
          source="margin", reason="the double descent of its figure 4; the null is the training "
          "loss", null=rise("train_loss"))
lab.claim("flatter", "Normalised sharpness at the same squared error, generalising over memorised.",
          width_ratio("normalised", 1), high=0.7, source="margin", reason=OTHER,
          null=width_ratio("normalised", 0))
lab.claim("simpler", "Local learning coefficient there, generalising over memorised.",
          width_ratio("coefficient", 1), high=1.0, source="sign", reason=OTHER,
          null=width_ratio("coefficient", 0))
# fmt: on


@lab.figure(
    "As the paper's figure 1 (thin: every seed) and its loss; widths at the same squared error.",
    rows=2, columns=2,
)  # fmt: skip
def grokking(axes: Any, runs: Runs, config: Config) -> None:
    """Accuracies and loss along training; steps by fraction; widths."""
    accuracy, loss, needed, wide = axes.flat
    records = runs[decayed(config)]
    for number, (name, label) in enumerate(
        {"train_accuracy": "training", "test_accuracy": "test"}.items()
    ):
        options = style(number, markers=False)
        for x, row in zip(records["epoch"], records[name], strict=True):
            accuracy.plot(1 + x, row, **{**options, "linewidth": 0.6})
        accuracy.plot([], [], label=label, **options)
    accuracy.set(xscale="log", xlabel="update", ylabel="accuracy")
    arms = [decayed(config, place) for place in range(len(config.decays))] + ["noise"]
    for number, arm in enumerate(arms):
        each = runs[arm]
        updates = each["epoch"][0] * (records["epoch"][0, -1] / each["epoch"][0, -1])
        label = "no decay, small batches" if arm == "noise" else arm.replace("decay", "decay of")
        curve(loss, 1 + updates, each["test_loss"], number, label)
    loss.set(xscale="log", yscale="log", xlabel="update", ylabel="test loss")
    fractions, taken = by_fraction(runs, config)
    curve(needed, fractions, taken, 0, "95 % right", marker="o")
    needed.set(xlabel="fraction of the table", ylabel="updates")
    for number, decay in enumerate(config.decays[:2]):
        each = runs[f"{SQUARED} {decay:g}"]
        options = style(number) | {"linestyle": "none"}
        for offset, name in enumerate(("normalised", "coefficient")):
            ratio = each[name][:, 1] / each[name][:, 0]
            wide.plot(np.full(len(ratio), offset + 0.2 * number), ratio, **options)
        wide.plot([], [], label=f"decay of {decay:g}", **options)
    wide.axhline(1.0, color="0.5", linewidth=0.8)
    wide.set(
        xticks=[0.1, 1.1], xticklabels=["normalised sharpness", "learning coefficient"],
        ylabel="end over memorised",
    )  # fmt: skip
    for panel in (needed, wide):
        if panel.dataLim.y1 > 0:  # something was reached
            panel.set_yscale("log")
    for panel in axes.flat:
        panel.legend(fontsize=8)


@lab.table
def ends(runs: Runs, config: Config) -> Table:
    """Every arm where it ends."""
    rows = [
        (
            arm,
            with_error(records["train_accuracy"][:, -1]),
            with_error(records["test_accuracy"][:, -1]),
            with_error(records["norm"][:, -1]),
            with_error(steps(records)),
        )
        for arm, records in runs.items()
    ]
    columns = ("arm", "training accuracy", "test accuracy", "norm", "updates until 95 %")
    return Table(columns, rows, "Means over seeds, standard errors; of noise epochs, not updates.")


@lab.extra
def at_the_same_loss(runs: Runs, config: Config) -> dict[str, Any]:
    """The measures of squared error by arm, memorised and at the end."""
    names = ("normalised", "coefficient", "r_hat", "sharpness", "matched_loss", "matched_test")
    return {
        arm: {name: records[name].tolist() for name in names}
        for arm, records in runs.items()
        if arm.startswith(SQUARED)
    }
