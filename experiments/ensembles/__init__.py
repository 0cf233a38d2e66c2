"""Deep ensembles: how the loss falls with members and width, and how to split the memory.

Lobacheva, Chirkova, Kodryan and Vetrov (NeurIPS 2020, "On power laws in deep ensembles"): the
negative log-likelihood of an ensemble, at its best temperature, is a power law with an offset in
the number of members and in the width of one of them; for a given memory several networks of
medium width do better than one that fills it, the more so the larger it is, and the laws foretell
the best split. Without calibration theory knows the law in the members: a mean of n independent
probabilities p of the target has the loss c + b / n + O(1 / n^2), b = E Var(p) / (2 (mean p)^2).

Networks with one hidden layer of 8 to 128 units learn 400 digits with weight decay, 16 members of
each width. All of them train side by side as one program: what is missing to the widest is filled
up with units whose weights are zero, and stay so. The uncalibrated loss of n members is the mean
over all their subsets, exact; the calibrated one that of the 16 / n subsets of one partition.

    python -m experiments ensembles

Found: the uncalibrated loss has the exponent 0.99 ± 0.01, but its factor is 1.14 ± 0.03 times what
the spread of 16 members says: 1.26 and 1.22 with 8 and 16 units, of which some give the right class
next to no probability, 1.11, 1.05 and 1.06 with more. The law in the width is off by 2.8 ± 0.4 % at
most. For the memory of one network of 128 units 2 to 8 smaller ones are best, 3.6 ± 1.2, for that
of 16 units always one; the other seeds' laws say 2 for the largest memory, and are a doubling off
in four seeds and two in one. With weight decay 3e-3 and 500 test examples, on other seeds, the best
temperature of half of them was so low that the loss of the other half was up to twenty times as
large: networks that are not sure enough need many examples to be calibrated by.

paper: VGG-like networks on CIFAR-100, widths up to 64 channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatjax
from experiments.ensembles.subsets import measured
from experiments.lib.data.small import SmallData
from experiments.lib.lab import Lab, Options
from experiments.lib.runs.errors import BadNetwork
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.training import minibatch, recipes
from experiments.lib.training.descent import Descent, descent
from experiments.lib.training.recipes import Recipe
from experiments.lib.verdicts.curves import curve
from experiments.lib.verdicts.figures import COLORS
from flatjax import plots

Runs = dict[str, np.ndarray]
"""Of every seed and width: `nll` and `best` at `sizes`, `calibrated` at `halvings`, (seeds, widths,
members); `b` and `b_log`, (seeds, widths); `size`, the params of a network, (widths,)."""


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 400  # training examples
    test_size: int | None = None  # test examples; None for all
    widths: tuple[int, ...] = (8, 16, 32, 64, 128)  # each twice the one before
    members: int = 16  # networks of each width, a power of two
    descent: Descent = Descent(learning_rate=0.2, weight_decay=1e-3)
    recipe: Recipe = Recipe(
        hidden=(128,), activation="relu", init_scale=2**0.5, batch_size=50, epochs=40,
        record_every=40,
    )  # network, of the largest width, and training  # fmt: skip


# fmt: off
lab = Lab(
    Config, "Lobacheva et al. 2020", shares=False,
    smoke={"seeds": 1, "train_size": 30, "test_size": 40, "widths": (2, 4, 8, 16), "members": 16,
           "recipe": {"hidden": (16,), "batch_size": 15, "epochs": 2, "record_every": 2}},
    real={"data": "fashion_mnist", "seeds": 3, "train_size": 2000, "test_size": 2000,
          "recipe": {"epochs": 60}},
    # Section 4: CIFAR-100, VGG, 200 epochs, learning rate and weight decay tuned for each width,
    # more than a hundred networks. The values are ours.
    paper={"data": "cifar100", "train_size": 50_000,
           "widths": (4, 8, 16, 32, 64), "members": 64,
           "descent": {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 3e-4,
                       "schedule": "cosine"},
           "recipe": {"network": "cnn-5", "classes": 100, "batch_size": 128, "epochs": 200,
                      "flip": True, "crop": 4, "record_every": 200}},
)
# fmt: on
EXPERIMENT = lab.experiment

FROM = 4
"""Members from which on the law of theory is asked for."""


def halvings(config: Config) -> list[int]:
    """Numbers of members that divide them all: 1, 2, 4, ..."""
    return [2**k for k in range(config.members.bit_length())]


def sizes(config: Config) -> list[int]:
    """Numbers of members, three to a doubling at most."""
    return [n for n in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64) if n <= config.members]


def filled_up(params: Any, widest: Any) -> Any:
    """Every array with zeros after its entries, up to the shape of the widest network's."""
    return jax.tree.map(
        lambda a, b: jnp.pad(a, [(0, m - n) for n, m in zip(a.shape, b.shape, strict=True)]),
        params, widest,
    )  # fmt: skip


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The losses of all ensembles."""
    seeds, widths, members = config.seed_range(), config.widths, config.members
    given = {"train_size": config.train_size, "test_size": config.test_size}
    recipe = recipes.of_width(config.recipe, max(widths))
    data = minibatch.load_seeds(
        config.data, seeds, flat=recipe.flat, num_classes=recipe.classes, **given
    )
    # Runs are ordered by width, then seed, then member; every network has a seed of its own.
    own = np.arange(len(widths) * len(seeds) * members) + len(widths) * members * config.first_seed
    size, starts = [], []
    for width, ours in zip(widths, np.split(own, len(widths)), strict=True):
        start = recipes.init_runs(recipes.of_width(config.recipe, width), data, ours)
        size.append(optax.tree.size(start[0]) // len(ours))
        starts.append(start)
    if starts[-1][1]:
        raise BadNetwork("units that are filled up stay zero only without normalisation")
    filled = [filled_up(params, starts[-1][0]) for params, _ in starts]
    each: SmallData = jax.tree.map(
        lambda a: np.concatenate([a] * len(widths)), minibatch.repeat(data, members)
    )
    trained = minibatch.train_arm(
        out / "training", recipe, each, own,
        lambda seed, hyper: descent(config.descent, recipe, config.train_size),
        start=(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *filled), starts[-1][1]),
        quiet=config.quiet,
    )  # fmt: skip

    def losses() -> dict[str, np.ndarray]:
        answer = recipe.over_runs(lambda *state: recipes.logits(recipe, *state))
        logits = np.asarray(
            jax.jit(answer)(trained.params, trained.model_state, each.test_inputs)
        ).reshape(len(widths), len(seeds), members, *each.test_targets.shape[1:], -1)
        found = [
            [
                measured(logits[w, s], data.test_targets[s], sizes(config), halvings(config))
                for w in range(len(widths))
            ]
            for s in range(len(seeds))
        ]
        return jax.tree.map(lambda *a: np.stack(a), *[
            jax.tree.map(lambda *a: np.stack(a), *row) for row in found
        ])  # fmt: skip

    return kept_arrays(out / "losses.npz", losses) | {"size": np.array(size)}


def from_four(runs: Runs, config: Config, name: str = "nll") -> tuple[np.ndarray, np.ndarray]:
    """The numbers of members from `FROM` on, and their losses, (seeds, widths, numbers)."""
    n = np.array(sizes(config))
    return n[n >= FROM], runs[name][..., n >= FROM]


def exponent(name: str) -> Any:
    """The measure of a claim: minus the exponent of the fitted law, the mean over widths."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        n, losses = from_four(runs, config, name)
        found = [[-flatjax.fit_power_law(n, row).exponent for row in rows] for rows in losses]
        return np.mean(found, axis=1)

    return measure


def factor(name: str) -> Any:
    """The measure of a claim: b of c + b / n + d / n^2 over b by a formula; mean over widths."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        n, losses = from_four(runs, config)
        fits = np.polyfit(1 / n, losses.reshape(-1, len(n)).T, 2)
        return (fits[1].reshape(losses.shape[:2]) / runs[name]).mean(1)

    return measure


def width_law(losses: Any, config: Config) -> Any:
    """The law of a loss in the width."""
    return flatjax.fit_power_law(config.widths, losses)


def width_residual(turn: int) -> Any:
    """The measure of a claim: the largest residual of the law in the width, relative.

    With the losses turned by so many widths.
    """

    def measure(runs: Runs, config: Config) -> list[float]:
        rows = np.roll(runs["calibrated"][..., 0], turn, axis=1)
        return [float(abs(width_law(row, config).residuals / row).max()) for row in rows]

    return measure


def budgets(runs: Runs) -> np.ndarray:
    """The memory of one network of each width but the least, and a fiftieth for rounding up."""
    return 1.02 * runs["size"][1:]


def best_split(runs: Runs, config: Config, losses: np.ndarray, budget: float) -> int:
    """The measured number of members of the least loss, (widths, halvings), within a budget."""
    fits = np.minimum(budget // runs["size"], config.members)
    options = {
        int(np.log2(n)): float(losses[w, int(np.log2(n))]) for w, n in enumerate(fits) if n >= 1
    }
    return 2 ** min(options, key=lambda k: options[k])


def split_laws(runs: Runs, config: Config, seed: int) -> dict[float, Any]:
    """The law in the members of every width, by its size: of all seeds but one, if there are more.

    Fitted to ensembles of half of the members at most.
    """
    losses = runs["calibrated"]
    mean = (np.delete(losses, seed, 0) if len(losses) > 1 else losses).mean(0)
    n = halvings(config)[:-1]
    return {
        float(size): flatjax.fit_power_law(n, row[:-1])
        for size, row in zip(runs["size"], mean, strict=True)
    }


def splits(runs: Runs, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Measured and predicted numbers of members, (seeds, budgets)."""
    measured, predicted = [], []
    for seed, losses in enumerate(runs["calibrated"]):
        laws = split_laws(runs, config, seed)
        measured.append([best_split(runs, config, losses, b) for b in budgets(runs)])
        predicted.append([flatjax.memory_split(laws, float(b)).members for b in budgets(runs)])
    return np.array(measured, float), np.array(predicted, float)


def off(runs: Runs, config: Config) -> np.ndarray:
    """The measure of a claim: the most halvings between predicted and measured split."""
    measured, predicted = splits(runs, config)
    return abs(np.log2(predicted / measured)).max(1)


def off_most(runs: Runs, config: Config) -> np.ndarray:
    """The null of a claim: the same of as many of the smallest networks as fit."""
    most = np.minimum(budgets(runs) // runs["size"][0], config.members)
    return abs(np.log2(most / splits(runs, config)[0])).max(1)


def growth(runs: Runs, config: Config) -> np.ndarray:
    """The measure of a claim: how often the best number doubles, from least to largest budget."""
    measured = splits(runs, config)[0]
    return np.log2(measured[:, -1] / measured[:, 0])


def growth_alone(runs: Runs, config: Config) -> np.ndarray:
    """The null of a claim: the same if an ensemble were no better than one of its members."""
    alone = np.repeat(runs["calibrated"][..., :1], len(halvings(config)), axis=-1)
    return growth(runs | {"calibrated": alone}, config)


# fmt: off
DELTA = "the delta method"
lab.claim("exponent",
          "Minus the exponent of the uncalibrated loss in the members, from 4 on; over widths.",
          exponent("nll"), low=0.9, high=1.1, source="theory",
          reason=DELTA + "; the null: the loss of the best of n members", null=exponent("best"))
lab.claim("factor",
          "b of c + b / n + d / n^2, fitted from 4 members on, over E Var(p) / (2 (mean p)^2); "
          "over widths.",
          factor("b"), low=0.9, high=1.1, source="theory",
          reason=DELTA + "; the null: half the variance of log p, the same only for small ones",
          null=factor("b_log"))
lab.claim("width-law",
          "Largest residual of the law in the width, over the calibrated loss of one network.",
          width_residual(0), high=0.04, source="margin",
          reason="that of the law; the null: the widths in another order, for a law that fits any "
          "five numbers says nothing", null=width_residual(2))
lab.claim("several-win", "Best number of networks at the largest budget.",
          lambda runs, config: splits(runs, config)[0][:, -1], low=2.0, source="paper",
          reason="section 6; the null: the smallest budget",
          null=lambda runs, config: splits(runs, config)[0][:, 0])
lab.claim("more-for-more",
          "Doublings of the best number of networks from the smallest to the largest budget.",
          growth, low=0.0, source="sign", reason="the null: of ensembles as good as one member",
          null=growth_alone)
lab.claim("split-foretold",
          "Most doublings between the best number of networks and that of the other seeds' laws, "
          "over all budgets.",
          off, high=1.0, source="margin", reason="one step; the null: as many of the "
          "smallest as fit", null=off_most)
# fmt: on


@lab.figure(
    "The loss of ensembles against the number of members, mean over seeds; the law fitted to the "
    "full points, the band of its exponent's 95 % interval, and its offset, dotted.",
    columns=2, panel=(4.8, 4.2),
)  # fmt: skip
def members(axes: Any, runs: Runs, config: Config) -> None:
    """The laws in the members, of every width."""
    for panel, name, n in zip(
        axes, ("nll", "calibrated"), (from_four(runs, config)[0], halvings(config)), strict=True
    ):
        for w, (width, color) in enumerate(zip(config.widths, COLORS, strict=False)):
            losses = runs[name][:, w]
            law = flatjax.fit_power_law(n, losses[:, -len(n) :].mean(0))
            plots.plot_power_law(
                law, n, span=(1, 4 * config.members), ax=panel, color=color,
                label=f"{width} units, exponent {float(law.exponent):.2f}",
            )  # fmt: skip
            if name == "nll":
                before = [k for k in sizes(config) if k < FROM]
                panel.plot(before, losses.mean(0)[: len(before)], "o", color=color,
                           markerfacecolor="white", markersize=4)  # fmt: skip
        panel.set(xlabel="members", title={"nll": "uncalibrated", "calibrated": "calibrated"}[name])
        panel.set_ylabel("negative log-likelihood")
        panel.legend(fontsize=7)


@lab.figure(
    "Left: the loss against the width, with laws of the calibrated one. Right: the best number of "
    "networks within a memory; mean over seeds, two standard errors.",
    columns=2, panel=(4.8, 3.8),
)  # fmt: skip
def width_and_split(axes: Any, runs: Runs, config: Config) -> None:
    """The laws in the width, and the split of a memory."""
    left, right = axes
    every = halvings(config)
    for number, k in enumerate((0, len(every) // 2, len(every) - 1)):
        law = width_law(runs["calibrated"][..., k].mean(0), config)
        plots.plot_power_law(law, config.widths, ax=left, color=COLORS[number],
                             label=f"calibrated, members: {every[k]}")  # fmt: skip
    left.plot(config.widths, runs["nll"][..., 0].mean(0), "x--", color="#555555",
              label="uncalibrated, members: 1")  # fmt: skip
    left.set(xlabel="width", ylabel="negative log-likelihood")
    left.legend(fontsize=8)
    right.set(xscale="log")
    for number, (label, found) in enumerate(
        zip(("measured", "foretold by the other seeds' laws"), splits(runs, config), strict=True)
    ):
        curve(right, budgets(runs), np.log2(found), number, label, marker="os"[number])
    right.set_yticks(range(len(every)), every)
    right.set(xlabel="parameters in all", ylabel="best number of networks")
    right.legend()


@lab.extra
def losses(runs: Runs, config: Config) -> dict[str, Any]:
    """What was measured."""
    return dict(runs)
