"""Learning order: a small rate memorises the patch first, noise hides it until it is annealed.

Li, Wei and Ma (NeurIPS 2019, "Towards Explaining the Regularization Effect of Initial Large
Learning Rate in Training Neural Networks"): some patterns are easy to fit and hard to generalise
from, such as noisy but nearly linear ones, others are fixed and hard to fit, such as a patch that
tells the class. A fifth of the examples have the first pattern alone, a fifth the second alone, the
rest have both. A small learning rate memorises the patch at once, and has the examples without it
alone to learn the first pattern from. A large rate, or a small one with Gaussian noise before every
non-linearity, cannot fit the patch, learns the first pattern from all the examples that have it,
and the patch once rate and noise are annealed. Only the first pattern is there when the network is
tested.

    python -m experiments learning_order

The data are those of the paper's theory: a linear pattern in noise, beside a vector that is z in
one class and z + zeta or z - zeta in the other. All arms are trained alike after annealing, at the
small rate without noise. What no patch can explain is measured as well: the same arms on data where
every example has the first pattern alone.

Found: the small rate fits the patch in 0.16 ± 0.04 of the epochs that it takes for the examples
without it. With noise the patch alone is answered at chance until annealing, 53 ± 2 %, and learned
afterwards by every seed. The test accuracy gains 0.3 ± 0.7 points by that, on 80.9 ± 1.1 %; where
no example has the patch it is 94 %. Noise strong enough to hide the patch hides the first pattern
too, whose test accuracy is 54 ± 2 % at annealing; with half of it, on other seeds, the patch is
learned before. The large rate fits the patch at once, and its gain of 0.8 ± 0.8 points is as large
where there is no patch.

real: 5,000 images of Fashion-MNIST with a patch of 7 x 7 pixels and a small convolutional network
with batch norm. Most runs never learn the patch there, 41 ± 29 % of it with the small rate, 33 ± 20
with the large one once it is annealed, 14 ± 2 with noise; before annealing neither of the latter
two knows it. The small rate ends 2.2 ± 1.2 points behind the large one, which leaves it open.
paper: CIFAR-10 with the patch and a wide residual network, when prepared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments.lib.data.patches import add_patches, make_patches
from experiments.lib.data.small import SmallData, small_data, stack_seeds
from experiments.lib.data.views import BOTH, Views, draw_views, make_directions
from experiments.lib.lab import Lab, Options, Runs, Table
from experiments.lib.training import recipes
from experiments.lib.training.epoch import Measure
from experiments.lib.training.minibatch import Trained
from experiments.lib.training.recipes import Recipe
from experiments.lib.training.settings import train_settings
from experiments.lib.verdicts.curves import curve
from experiments.lib.verdicts.statistics import with_error


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    data: str = "vectors"  # random vectors with two patterns; or the images that get a patch
    dimension: int = 100  # d, of either pattern of the vectors
    train_size: int = 300  # training examples
    test_size: int = 2000  # test examples, with the first pattern alone
    rate: float = 0.02  # the small learning rate
    large_rate: float = 0.5  # the large one, until annealing
    noise: float = 4.0  # standard deviation of the noise on activations, until annealing
    anneal: int = 150  # epochs before
    momentum: float = 0.0
    weight_decay: float = 0.0
    recipe: Recipe = Recipe(
        network="mlp-1-32", classes=2, batch_size=16, epochs=300, record_every=3
    )  # network and training  # fmt: skip

    def __post_init__(self):
        if not 0 < self.anneal < self.recipe.epochs or self.recipe.flat:
            raise ValueError("anneal within the epochs, a network that takes noise: name one")
        if any(n % self.recipe.record_every for n in (self.anneal, self.recipe.epochs)):
            raise ValueError(f"epochs and anneal are multiples of {self.recipe.record_every}")


# fmt: off
lab = Lab(
    Config, "Li, Wei & Ma 2019", shares=False,
    smoke={"seeds": 1, "train_size": 30, "test_size": 20, "dimension": 6, "anneal": 2,
           "recipe": {"network": "mlp-1-8", "epochs": 4, "batch_size": 15, "record_every": 1}},
    # Noise, epochs, the large rate and batch norm are the paper's. With its small rate, a fifth of
    # this one, no arm learns the patch in so few updates.
    real={"data": "fashion_mnist", "seeds": 3, "train_size": 5000, "test_size": 2000,
          "rate": 0.02, "large_rate": 0.1, "noise": 0.4, "anneal": 30, "momentum": 0.9,
          "weight_decay": 5e-4,
          "recipe": {"network": "s2cnn-16-batch", "classes": 10, "batch_size": 50, "epochs": 60,
                     "record_every": 1}},
    # Li, Wei and Ma 2019, but for the shares of the three groups, which are those of all presets.
    paper={"data": "cifar10", "seeds": 3, "train_size": 50_000, "test_size": 10_000,
           "rate": 0.004, "large_rate": 0.1, "noise": 0.4, "anneal": 30, "momentum": 0.9,
           "weight_decay": 5e-4,
           "recipe": {"network": "wide_resnet-16-4", "classes": 10, "batch_size": 128,
                      "epochs": 60, "record_every": 1}},
)
# fmt: on
EXPERIMENT = lab.experiment

SMALL, LARGE, NOISE = ARMS = ("small rate", "large rate", "small rate, noise")
SHARES = (0.2, 0.2, 0.6)
"""Of the examples with the first pattern alone, the patch alone, and both."""

FITTED = 0.99
"""The accuracy at which a group counts as fitted."""


def without_patch(arm: str) -> str:
    """The name of an arm on the data where every example has the first pattern alone."""
    return f"{arm}, no patch"


def examples(config: Config, seed: int, shares: tuple[float, float, float]) -> SmallData:
    """Training examples sorted by group, and test examples with the first pattern alone."""
    fixed, train, test = jax.random.split(jax.random.key(seed), 3)
    if config.data == "vectors":
        directions = make_directions(fixed, config.dimension)
        found = draw_views(train, directions, config.train_size, shares=shares)
        tested = draw_views(test, directions, config.test_size, shares=(1, 0, 0))
    else:
        images = small_data(
            config.data, seed=seed, train_size=config.train_size, test_size=config.test_size,
            num_classes=config.recipe.classes, flat=False,
        )  # fmt: skip
        _, alone, both = shares
        patches = make_patches(
            fixed, channels=images.inputs.shape[-1], num_classes=config.recipe.classes
        )
        found = add_patches(
            train, images.inputs, images.targets, patches, patched=alone + both,
            alone=alone / max(alone + both, alone, 1e-9),
        )  # fmt: skip
        tested = Views(images.test_inputs, images.test_targets, np.zeros(0))
    order = np.argsort(found.views, kind="stable")
    targets = found.targets[order]
    return SmallData(found.inputs[order], targets, targets, tested.inputs, tested.targets)


def of_groups(recipe: Recipe) -> Measure:
    """Records the training accuracy of each group of `examples`, or of as many without patch."""

    def measure(params: Any, model_state: Any, data: SmallData, key: Any) -> dict[str, jax.Array]:
        del key
        found = recipes.hits(recipes.logits(recipe, params, model_state, data.inputs), data.targets)
        first, second = (round(share * len(found)) for share in SHARES[:BOTH])
        groups = np.split(np.arange(len(found)), [first, first + second])
        names = ("first_alone", "patch_alone", "both")
        return {name: found[g].mean() for name, g in zip(names, groups, strict=True)}

    return measure


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The records of all arms, with and without the patch."""
    found = trained(config, out / "patch", SHARES)
    other = trained(config, out / "no_patch", (1, 0, 0))
    return found | {without_patch(arm): records for arm, records in other.items()}


def trained(config: Config, folder: Path, shares: tuple[float, float, float]) -> Runs:
    """The records of all arms: until annealing each as it is, afterwards all alike."""
    seeds = list(config.seed_range())
    data = stack_seeds([examples(config, seed, shares) for seed in seeds])

    def arms(folder: Path, recipe: Recipe, rates: dict[str, float], **options: Any) -> Any:
        return train_settings(
            folder, recipe, data, seeds, optimizer, rates,
            measure=of_groups(recipe), quiet=config.quiet, **options,
        )  # fmt: skip

    def optimizer(seed: Any, rate: Any) -> optax.GradientTransformation:
        del seed
        decay = optax.add_decayed_weights(config.weight_decay)
        return optax.chain(decay, optax.sgd(rate, config.momentum or None))

    plain = dataclasses.replace(config.recipe, epochs=config.anneal)
    noisy = dataclasses.replace(plain, network=f"{plain.network}-noise{config.noise:g}")
    first = arms(folder / "plain", plain, {SMALL: config.rate, LARGE: config.large_rate})
    first |= arms(folder / "noise", noisy, {NOISE: config.rate})
    rest = dataclasses.replace(plain, epochs=config.recipe.epochs - config.anneal)
    last = arms(folder / "annealed", rest, dict.fromkeys(ARMS, config.rate), start=ends(first))
    return {arm: joined(first[arm], last[arm], config.anneal) for arm in ARMS}


def ends(found: dict[str, Trained]) -> Any:
    """Where the arms end, as a start of all of them side by side: those of one seed in a row."""
    each = [(of_arm.params, of_arm.model_state) for of_arm in found.values()]
    return jax.tree.map(lambda *a: np.stack(a, 1).reshape(-1, *np.shape(a[0])[1:]), *each)


def joined(first: Trained, last: Trained, anneal: int) -> dict[str, np.ndarray]:
    """Records of one run after the other; the first of the second are the last of the first."""
    later = {name: values[:, 1:] for name, values in last.records.items()}
    later["epoch"] = later["epoch"] + anneal
    return {name: np.concatenate([a, later[name]], 1) for name, a in first.records.items()}


def at_annealing(name: str, arm: str) -> Callable[[Runs, Config], np.ndarray]:
    """The measure of a claim: a record just before annealing."""
    return lambda runs, config: runs[arm][name][:, config.anneal // config.recipe.record_every]


def at_the_end(name: str, arm: str) -> Callable[[Runs, Config], np.ndarray]:
    """The measure of a claim: the last of some records."""
    return lambda runs, config: runs[arm][name][:, -1]


def gained(arm: str, *, patch: bool) -> Callable[[Runs, Config], np.ndarray]:
    """The measure of a claim: test accuracy of an arm at the end less that of the small rate."""

    def measured(runs: Runs, config: Config) -> np.ndarray:
        del config
        names = (arm, SMALL) if patch else (without_patch(arm), without_patch(SMALL))
        large, small = (runs[name]["test_accuracy"][:, -1] for name in names)
        return large - small

    return measured


def fitted_after(records: dict[str, np.ndarray], name: str) -> np.ndarray:
    """(seeds,) the epoch at which a group is first fitted, the last one where it never is."""
    there = records[name] >= FITTED
    at = np.where(there.any(1), there.argmax(1), there.shape[1] - 1)
    return np.take_along_axis(records["epoch"], at[:, None], 1)[:, 0]


def patch_over_first(arm: str) -> Callable[[Runs, Config], np.ndarray]:
    """The measure of a claim: epochs until the patch is fitted over those until the rest is."""
    return lambda runs, config: (
        fitted_after(runs[arm], "patch_alone") / fitted_after(runs[arm], "first_alone")
    )


# fmt: off
lab.claim("noise-hides-the-patch",
          "With noise, accuracy on the training examples with the patch alone before annealing.",
          at_annealing("patch_alone", NOISE), high=0.6, source="margin",
          reason="a tenth above the chance of one in two; null: no noise",
          null=at_annealing("patch_alone", SMALL))
lab.claim("patch-is-learned-afterwards",
          "With noise until annealing, accuracy on the examples with the patch alone at the end.",
          at_the_end("patch_alone", NOISE), low=FITTED, source="paper",
          reason="learned after annealing; null: before",
          null=at_annealing("patch_alone", NOISE))
lab.claim("small-rate-fits-the-patch-first",
          "Small rate: epochs until examples with the patch alone are fitted over those until "
          "examples without it are.",
          patch_over_first(SMALL), high=1.0, source="sign",
          reason="null: as many examples of the data without the patch",
          null=patch_over_first(without_patch(SMALL)))
lab.claim("noise-generalises",
          "Test accuracy at the end, noise until annealing less none.",
          gained(NOISE, patch=True), low=0.02, source="margin",
          reason="two points; null: no example has the patch", null=gained(NOISE, patch=False))
lab.claim("large-rate-generalises",
          "Test accuracy at the end, large rate until annealing less small one.",
          gained(LARGE, patch=True), low=0.0, source="sign",
          reason="null: no example has the patch", null=gained(LARGE, patch=False))
# fmt: on


@lab.figure(
    "Accuracy on the test set, which has no patch, on the training examples with the patch alone, "
    "and on those with the first pattern alone. The grey line is where rate and noise are "
    "annealed. Mean over seeds, two standard errors.",
    columns=3,
)  # fmt: skip
def learning_order(axes: Any, runs: Runs, config: Config) -> None:
    """The two panels of the paper's figure, and what else is fitted."""
    names = {"test_accuracy": "clean test accuracy", "patch_alone": "accuracy, patch alone",
             "first_alone": "training accuracy without patch"}  # fmt: skip
    for panel, (name, text) in zip(axes, names.items(), strict=True):
        for number, arm in enumerate(ARMS):
            curve(panel, runs[arm]["epoch"][0], runs[arm][name], number, arm)
        panel.axvline(config.anneal, color="#999999", linewidth=1, zorder=0)
        panel.set(xlabel="epoch", ylabel=text)
    axes[-1].set(xscale="symlog", xlim=(0, None))
    axes[0].legend(fontsize=8)


@lab.table
def accuracies(runs: Runs, config: Config) -> Table:
    """The accuracies in numbers."""
    rows = []
    for arm in ARMS:
        columns = (
            at_annealing("patch_alone", arm), at_the_end("patch_alone", arm),
            at_annealing("test_accuracy", arm), at_the_end("test_accuracy", arm),
            at_the_end("test_accuracy", without_patch(arm)),
        )  # fmt: skip
        rows.append([arm, *(with_error(100 * each(runs, config)) for each in columns)])
    names = ("arm", "patch alone, annealing", "patch alone, end", "test, annealing", "test, end",
             "test, end, no patch in the data")  # fmt: skip
    return Table(names, rows, "Accuracy, %; standard error over seeds.")


@lab.extra
def order(runs: Runs, config: Config) -> dict[str, Any]:
    """The epochs at which groups are fitted."""
    del config
    return {
        arm: {name: fitted_after(runs[arm], name) for name in ("patch_alone", "first_alone")}
        for arm in ARMS
    }
