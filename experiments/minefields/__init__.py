"""Minefields: minima that fit all training data and generalise badly are many, near, and narrow.

Huang et al. (2020, "Understanding generalization through visualizations"): a network that learns
wrong labels of other images along with its training set, L = L_train + beta L_poison, ends where
every training example is right and the test accuracy is as low as beta makes it. Such bad minima
lie beside the path of training, nearer than its start; what keeps training out of them is their
volume. Here an MLP learns 400 digits, with 400 others as poison. "near" starts at the good
minimum, with SGD, which goes less far than Adam, and is held back by mu |w - w_good|^2; with the
right labels for poison it is a null.

Radii are those at which the training loss first exceeds 0.1 along filter-normalised directions;
log10 of the volume, in units of the filters, is d E[log10 r] (the mean volume itself would rest on
the one largest of the radii).

    python -m experiments minefields

Found: every minimum fits all 400 digits, while beta takes the test accuracy from 95.7 to 89, 62 and
53 % and the mean radius from 0.38 to 0.24, 0.14 and 0.12. SGD from the good minimum finds a bad one
at 0.94 of the distance of the start, with 23 ± 1 points less; whether these are more than 20 five
seeds leave open. Its training loss is 0.05, that of the others 0.01 and less, so that its radii are
smaller than its test accuracy would have it: among all five the rank correlation of volume and test
accuracy is 0.78 ± 0.05, and stays open too. On Fashion-MNIST, with convolutions, 40 epochs are too
few: with the most poison 96.2 ± 0.6 % of the training set is fitted, at a loss above the threshold,
so that there is no volume to compare; beta takes the test accuracy down by 25.2 ± 0.5 points, and
the minimum near the good one is no nearer than the start (1.03 ± 0.01).

paper: their ResNet-18 on SVHN with poison of 35 %, when prepared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.data.small import stack_seeds
from experiments.lib.lab import Lab, Options, Runs
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.training import minibatch
from experiments.lib.training.curvature import run_of
from experiments.lib.training.descent import Descent
from experiments.lib.training.recipes import Recipe
from experiments.lib.verdicts.figures import COLORS, style
from experiments.lib.verdicts.statistics import rank_correlation
from experiments.minefields import measuring, training
from flatjax import plots
from flatjax.landscape import Projection


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 400  # training examples
    poison_size: int = 400  # others, whose labels are wrong
    betas: tuple[float, ...] = (0.02, 0.1, 1.0)  # weights of the poison's loss
    near_beta: float = 0.2  # that of the minimum near the good one, and mu, ...
    pull: float = 2e-3  # ... which holds it there
    threshold: float = 0.1  # the training loss that a radius leads to
    directions: int = 50  # radii
    measured: int | None = None  # training examples of the radii; None for all
    descent: Descent = Descent(optimizer="adam", learning_rate=3e-3, schedule="cosine")
    near_descent: Descent = Descent(learning_rate=0.05, momentum=0.9, schedule="cosine")
    recipe: Recipe = Recipe(
        hidden=(64, 64, 64), activation="relu", init_scale=2**0.5, batch_size=None, epochs=400,
        record_every=10,
    )  # network and training; an epoch is one step on the full batch  # fmt: skip


# fmt: off
lab = Lab(
    Config, "Huang et al. 2020", shares=False,
    smoke={"seeds": 1, "train_size": 30, "poison_size": 20, "betas": (0.1, 1.0), "directions": 3,
           "threshold": 10.0, "recipe": {"hidden": (16,), "epochs": 6, "record_every": 2}},
    real={"data": "fashion_mnist", "seeds": 3, "train_size": 5000, "poison_size": 5000,
          "betas": (0.1, 1.0), "directions": 20, "measured": 1000,
          "descent": {"learning_rate": 1e-3},
          "recipe": {"network": "s2cnn-16", "batch_size": 128, "epochs": 40, "record_every": 2}},
    # Where no source is named the paper's value is not known to us, and the value is ours.
    paper={"data": "svhn_cropped", "seeds": 1, "train_size": 47_000,
           "poison_size": 25_000,  # 35 % of all
           "directions": 500, "measured": 5000, "descent": {"learning_rate": 1e-3},
           "recipe": {"network": "resnet-18-64", "batch_size": 256,  # ResNet-18, batches of 256
                      "epochs": 100, "record_every": 10}},
)
# fmt: on
EXPERIMENT = lab.experiment

GOOD, NEAR, RIGHT = "good", "near", "near, right labels"


def worst(config: Config) -> str:
    """The arm with the most poison."""
    return f"beta {config.betas[-1]:g}"


def ladder(config: Config) -> list[str]:
    """The arms from no poison to the most, all from the same start."""
    return [GOOD, *(f"beta {beta:g}" for beta in config.betas)]


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The good minimum, the bad ones and those near the good one."""
    recipe, seeds = config.recipe, config.seed_range()
    whole = minibatch.load_seeds(
        config.data,
        seeds,
        train_size=config.train_size + config.poison_size,
        flat=recipe.flat,
        num_classes=recipe.classes,
    )
    parts = [
        training.with_poison(run_of(whole, i), config.train_size, seed)
        for i, seed in enumerate(seeds)
    ]
    data, poison = (stack_seeds(each) for each in zip(*parts, strict=True))
    good = training.train_good(config, out / "good", data)
    bad = {f"beta {beta:g}": (beta, poison.targets) for beta in config.betas}
    near = {
        NEAR: (config.near_beta, poison.targets),
        RIGHT: (config.near_beta, poison.clean_targets),
    }
    trained = {
        GOOD: good,
        **training.train_poisoned(config, out / "bad", data, poison, bad, config.descent),
        **training.train_poisoned(
            config, out / "near", data, poison, near, config.near_descent,
            pull=config.pull, start=(good.params, good.model_state),
        ),
    }  # fmt: skip
    runs = {
        arm: kept_arrays(
            out / f"minimum_{arm.replace(' ', '_').replace(',', '')}.npz",
            lambda found=found: measuring.end(config, found, good, data),
        )
        for arm, found in trained.items()
    }
    runs[GOOD] |= kept_arrays(out / "exact.npz", lambda: measuring.exact(config, good))
    runs[GOOD] |= kept_arrays(
        out / "map.npz",
        lambda: measuring.of_map(good, [found for arm, found in trained.items() if arm != GOOD]),
    )
    return runs


def decades(records: dict[str, np.ndarray]) -> np.ndarray:
    """E log10 r of every seed: log10 of the volume, over the number of weights."""
    return np.log10(records["radii"]).mean(1)


def of_arms(runs: Runs, arms: list[str], of: Any) -> np.ndarray:
    """A number of every seed and arm, (seeds, arms)."""
    return np.stack([of(runs[arm]) for arm in arms], axis=1)


def test_accuracy(records: dict[str, np.ndarray]) -> np.ndarray:
    """The test accuracy of every seed."""
    return records["test_accuracy"]


def lost(arm: str | None) -> Any:
    """The measure of a claim: test accuracy lost against the good minimum; None: the worst arm."""
    return lambda runs, config: (
        test_accuracy(runs[GOOD]) - test_accuracy(runs[arm or worst(config)])
    )


def lost_to_others(runs: Runs, config: Config) -> np.ndarray:
    """The null of a claim: lost against the good minimum of the seed before."""
    good = test_accuracy(runs[GOOD])
    return np.roll(good, 1) - good if len(good) > 1 else np.full(1, np.nan)


def falls(runs: Runs, config: Config) -> list[float]:
    """The measure of a claim: the rank correlation of beta and test accuracy."""
    rows = of_arms(runs, ladder(config), test_accuracy)
    return [rank_correlation((0.0, *config.betas), row) for row in rows]


def falls_among_good(runs: Runs, config: Config) -> list[float]:
    """The null of a claim: the same of good minima alone, of as many seeds in turn."""
    return [
        rank_correlation((0.0, *config.betas), row)
        for row in in_turn(test_accuracy(runs[GOOD]), 1 + len(config.betas))
    ]


def in_turn(values: np.ndarray, count: int) -> list[np.ndarray]:
    """Of every seed the numbers of so many seeds, itself first."""
    return [np.resize(np.roll(values, -i), count) for i in range(len(values))]


def radius_over(arm: str | None) -> Any:
    """The measure of a claim: the good minimum's mean radius over an arm's; None: the worst."""
    return lambda runs, config: (
        runs[GOOD]["radii"].mean(1) / runs[arm or worst(config)]["radii"].mean(1)
    )


def radius_over_others(runs: Runs, config: Config) -> np.ndarray:
    """The null of a claim: over the mean radius of the good minimum of the seed before."""
    good = runs[GOOD]["radii"].mean(1)
    return good / np.roll(good, 1) if len(good) > 1 else np.full(1, np.nan)


def volume_order(runs: Runs, config: Config) -> list[float]:
    """The measure of a claim: the rank correlation of volume and test accuracy, over all arms."""
    arms = [*ladder(config), NEAR]
    pairs = zip(of_arms(runs, arms, decades), of_arms(runs, arms, test_accuracy), strict=True)
    return [rank_correlation(volumes, tests) for volumes, tests in pairs]


def volume_order_among_good(runs: Runs, config: Config) -> list[float]:
    """The null of a claim: with the volumes of good minima alone, of as many seeds in turn."""
    arms = [*ladder(config), NEAR]
    volumes = in_turn(decades(runs[GOOD]), len(arms))
    tests = of_arms(runs, arms, test_accuracy)
    return [rank_correlation(v, t) for v, t in zip(volumes, tests, strict=True)]


def nearness(arm: str | None) -> Any:
    """The measure of a claim: the distance from the good minimum over that of the start."""
    return lambda runs, config: runs[arm or worst(config)]["distance"] / runs[GOOD]["length"]


# fmt: off
OTHER = "the null is the good minimum of another seed"
lab.claim("fits-everything", "The least training accuracy over all minima.",
          lambda runs, config: of_arms(runs, [*ladder(config), NEAR],
                                       lambda records: records["train_accuracy"]).min(1),
          low=0.999, source="paper", reason="100 % in the paper, here to a tenth of a point; the "
          "null is the untrained network", null=lambda runs, config: runs[GOOD]["untrained"])
lab.claim("bad-minima", "Test accuracy of the good minimum minus that with the most poison.",
          lost(None), low=0.2, source="margin", reason=f"20 points; {OTHER}", null=lost_to_others)
lab.claim("ladder", "Rank correlation of beta and test accuracy.", falls, high=-0.9,
          source="margin", reason="more poison, less accuracy; the null has good minima only, of "
          "one seed for each beta", null=falls_among_good)
for name, arm in (("narrow", None), ("near-narrow", NEAR)):
    lab.claim(name, "Mean filter-normalised radius of the good minimum over that "
              f"{'near it' if arm else 'with the most poison'}.", radius_over(arm), low=2.5,
              source="margin", reason=OTHER, null=radius_over_others)
lab.claim("volume", "Rank correlation of volume and test accuracy, over all minima.",
          volume_order, low=0.9 - 1e-9, source="margin",
          reason="of five no more than two neighbours in the wrong order, up to rounding; the null "
          "has the volumes of good minima, of one seed for each beta",
          null=volume_order_among_good)
lab.claim("near", "Distance of the near bad minimum from the good one over that of the start.",
          nearness(NEAR), high=1.0, source="sign", null=nearness(None),
          reason="the null is the minimum with the most poison, trained from the start")
lab.claim("near-bad", "Test accuracy of the good minimum minus that of the bad one near it.",
          lost(NEAR), low=0.2, source="margin", null=lost(RIGHT),
          reason="20 points; the null has the right labels for poison")
lab.claim("exact", "Largest relative error of the radii of a quadratic, sqrt(2 threshold).",
          lambda runs, config: runs[GOOD]["quadratic"], high=1e-3, source="theory",
          reason="r = sqrt(2 threshold / u'Hu), in brackets 1e-3 wide; the null is of a level 1 % "
          "higher, 5e-3 off", null=lambda runs, config: runs[GOOD]["other_quadratic"])
# fmt: on


def shown(config: Config) -> dict[str, str]:
    """The arms of the figures, and what they are called."""
    bad = {f"beta {beta:g}": rf"$\beta$ = {beta:g}" for beta in config.betas}
    return {GOOD: "good minimum", **bad, NEAR: "near the good one"}


@lab.figure(
    "The first seed's minima in their principal plane, with the path of training; the radii of all "
    "seeds; and volume against test accuracy, every seed.",
    columns=3, panel=(4.8, 4.0),
)  # fmt: skip
def minefield(axes: Any, runs: Runs, config: Config) -> None:
    """Where the minima lie, how wide they are, and what that says."""
    plane, along, against = axes
    good, names = runs[GOOD], shown(config)
    path = Projection(good["way"][0], good["way_off"][0])
    plots.plot_projection(path, explained=good["explained"][0], ax=plane)
    order = [arm for arm in runs if arm != GOOD]
    for number, (arm, name) in enumerate(names.items()):
        marker = {k: v for k, v in style(number).items() if k != "linestyle"}
        label = f"{name}: {100 * runs[arm]['test_accuracy'][0]:.0f} %"
        point = good["way"][0, -1] if arm == GOOD else good["others"][0, order.index(arm)]
        plane.plot(*point, linestyle="none", markeredgecolor="white", markersize=9, zorder=4,
                   label=label, **marker)  # fmt: skip
        radii = np.sort(runs[arm]["radii"].ravel())
        share = np.arange(1, len(radii) + 1) / len(radii)
        along.step(radii, share, where="post", color=COLORS[number % len(COLORS)], label=name)
        against.plot(decades(runs[arm]), test_accuracy(runs[arm]), linestyle="none", label=name,
                     **marker)  # fmt: skip
    plane.legend(title="test accuracy", fontsize=8, title_fontsize=8)
    plane.set(title="where they lie")
    along.set(title="how wide they are", xscale="log", xlabel="filter-normalised radius",
              ylabel="share of directions")  # fmt: skip
    against.set(title="volume and test accuracy", ylabel="test accuracy",
                xlabel=r"E $\log_{10} r$ = $\log_{10}$ volume per weight")  # fmt: skip


@lab.extra
def ends(runs: Runs, config: Config) -> dict[str, Any]:
    """All numbers of all arms; the radii by their mean and mean logarithm."""
    return {
        arm: {k: v for k, v in records.items() if v.ndim == 1}
        | {"mean_radius": records["radii"].mean(1), "mean_log10_radius": decades(records)}
        for arm, records in runs.items()
    }
