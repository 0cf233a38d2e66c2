"""Mode connectivity: a straight line between two networks is high, a curve with one bend is low.

Garipov et al. (NeurIPS 2018, "Loss surfaces, mode connectivity, and fast ensembling of DNNs") and
Draxler et al. (ICML 2018): minima that are found apart are no separate valleys. The loss is high
between two of them along the chord, and as low as in them along a quadratic Bezier curve or a chain
of two straight pieces, whose one point in the middle is trained for the mean loss over the curve.
Here two MLPs per seed learn 1,000 digits, with initialisations and batches of their own. The same
is done between a network and its copy with the hidden units in another order, the same function far
away. Some of the height of a chord is nothing but that order (Entezari et al. 2022): units are
matched by their weights (Ainsworth et al. 2023), and the chord is measured anew.

    python -m experiments mode_connectivity

Found: the training loss rises from 0.001 to 1.50 along the chord, to 0.035 along a Bezier curve and
to 0.014 along a chain; the test error of 2.2 % to 36, 3.1 and 2.9 %. Between a network and its copy
it is the same, though the units of the copy are all found again. Matching units takes 94 % of the
barrier between networks trained apart, and leaves nearly three times that of a Bezier curve. On
Fashion-MNIST, with convolutions, curves are trained for half as many epochs as networks: the chord
rises to 1.34 ± 0.04, the chain to 0.088 ± 0.004, 15.6 ± 0.9 times less high and 0.5 ± 0.2 points
above the test error of its ends; the Bezier curve stays at 0.167 ± 0.007, 8.1 ± 0.2 times less
high, and misses what is accepted of it.

Losses are cross-entropies without the weight decay that curves are trained with, but over planes
with it, as in the paper. Where there is batch norm its statistics are estimated anew at every
point. Networks of one's own are refused: the order of their units is not known.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import flatjax
from experiments.lib.lab import Lab, Options, Runs, Table
from experiments.lib.nets.units import Units
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.training import minibatch
from experiments.lib.training.between import Between
from experiments.lib.training.curvature import run_of
from experiments.lib.training.descent import Descent, descent, updates
from experiments.lib.training.recipes import Recipe
from experiments.lib.verdicts.curves import curve
from experiments.lib.verdicts.statistics import with_error
from flatjax import plots
from flatjax.landscape import Surface

KINDS = {"Bezier": flatjax.bezier, "chain": flatjax.chain}
"""Curves with one bend."""


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 1000  # training examples
    test_size: int | None = None  # test examples; None for all that are left
    measured: int | None = None  # training examples of the losses along curves; None for all
    recipe: Recipe = Recipe(
        activation="relu", init_scale=2**0.5, batch_size=50, epochs=60, record_every=20
    )  # network and training of the ends
    descent: Descent = Descent(momentum=0.9, weight_decay=5e-4, schedule="cosine")
    curve_epochs: int = 60  # of a curve ...
    curve_rate: float = 0.03  # ... and its first learning rate
    points: int = 61  # along curves
    grid: int = 25  # points each way of the planes


# fmt: off
lab = Lab(
    Config, "Garipov et al. 2018", shares=False,
    smoke={"seeds": 1, "train_size": 60, "test_size": 40, "curve_epochs": 1, "points": 3, "grid": 2,
           "recipe": {"hidden": (8,), "batch_size": 20, "epochs": 1}},
    real={"data": "fashion_mnist", "seeds": 3, "train_size": 4000, "test_size": 2000,
          "measured": 1000, "descent": {"learning_rate": 0.05}, "curve_epochs": 15, "points": 25,
          "grid": 17, "recipe": {"network": "s2cnn-16", "batch_size": 64, "epochs": 30,
                                 "record_every": 5}},
    # The authors' code, timgaripov/dnn-mode-connectivity, on CIFAR-10. Where it anneals linearly
    # from the half on, here a cosine does.
    paper={"data": "cifar10", "seeds": 3, "train_size": 50_000, "measured": 10_000,
           "curve_epochs": 200,
           "recipe": {"network": "wide_resnet-28-10", "batch_size": 128, "epochs": 200,
                      "flip": True, "crop": 4}},
)
# fmt: on
EXPERIMENT = lab.experiment


@lab.run
def run(config: Config, out: Path) -> Runs:
    """Trains ends and curves, and measures what lies between."""
    seeds, recipe = list(config.seed_range()), config.recipe
    data = minibatch.load_seeds(
        config.data, seeds, train_size=config.train_size, test_size=config.test_size,
        num_classes=recipe.classes, flat=recipe.flat,
    )  # fmt: skip
    units = Units(recipe, data.test_inputs[0, :1])
    # Two ends of every seed, and one more of the first seed, for the plane through three.
    starts = [*seeds, *(seed + 1000 for seed in seeds), seeds[0] + 2000]
    of_seed = [*range(len(seeds)), *range(len(seeds)), 0]
    ends = minibatch.train_arm(
        out / "ends",
        recipe,
        run_of(data, np.array(of_seed)),
        starts,
        lambda seed, hyper: descent(config.descent, recipe, config.train_size),
        quiet=config.quiet,
    )
    found: list[Runs] = []
    planes: Runs = {}
    for i, seed in enumerate(seeds):
        between = Between(
            recipe, run_of(data, i), run_of(ends.model_state, i),
            decay=config.descent.weight_decay, measured=config.measured,
        )  # fmt: skip
        folder, key = out / f"seed_{seed}", jax.random.key(seed)
        one, other = run_of(ends.params, i), run_of(ends.params, len(seeds) + i)
        pairs = {"apart": (one, other), "copy": (one, units.reordered(one, key))}
        curves = {
            (pair, kind): connected(config, between, folder, f"{pair}_{kind}", *ends_, seed)
            for pair, ends_ in pairs.items()
            for kind in KINDS
        }
        found.append(lengthwise(config, between, units, folder, pairs, curves, key))
        if i == 0:
            bends = {kind: run_of(curves["apart", kind].free, 0) for kind in KINDS}
            bends = {"third": run_of(ends.params, len(starts) - 1)} | bends
            for name, bend in bends.items():
                path = None if name == "third" else curves["apart", name]
                planes[f"plane, {name}"] = across(
                    config, between, folder, name, (one, other, bend), path
                )
    return jax.tree.map(lambda *rows: np.stack(rows), *found) | planes


def connected(
    config: Config, between: Between, folder: Path, name: str, a: Any, b: Any, seed: int
) -> Any:
    """A curve with one bend between two networks, trained from the chord on."""
    long = dataclasses.replace(config.recipe, epochs=config.curve_epochs)
    # The decay is that of the points of the curve, not that of its bend.
    how = dataclasses.replace(config.descent, learning_rate=config.curve_rate, weight_decay=0.0)
    return between.fitted(
        folder / name.lower(),
        KINDS[name.partition("_")[2]]([a, None, b]),
        descent(how, long, config.train_size),
        steps=config.curve_epochs * updates(config.recipe, config.train_size),
        seed=seed,
    )


def lengthwise(
    config: Config,
    between: Between,
    units: Units,
    folder: Path,
    pairs: Any,
    curves: Any,
    key: jax.Array,
) -> Runs:
    """What lies along all paths of a seed, and how far apart their ends are."""
    found: Runs = {}
    paths = {f"{pair}, {kind}": path for (pair, kind), path in curves.items()}
    for pair, (a, b) in pairs.items():
        matched = units.matched(a, b, key)
        paths[f"{pair}, chord"] = flatjax.bezier([a, b])
        paths[f"{pair}, chord after matching"] = flatjax.bezier([a, matched])
        answers = [np.asarray(between.answers(params)) for params in (a, b)]
        found[f"{pair}, ends"] = {
            "difference": np.abs(answers[0] - answers[1]).max() / np.abs(answers[0]).max(),
            "distance": _distance(a, b),
            "distance after matching": _distance(a, matched),
        }
    a, b = pairs["apart"]
    paths["apart, chord after shuffling"] = flatjax.bezier([a, units.reordered(b, key)])
    positions = np.linspace(0, 1, config.points)
    for name, path in paths.items():
        file = folder / f"{name.replace(', ', '_').replace(' ', '_').lower()}.npz"
        found[name] = kept_arrays(file, functools.partial(between.along, path, positions))
    return found


def _distance(a: Any, b: Any) -> np.ndarray:
    """Between two networks, in units of the norm of the first."""
    return np.asarray(optax.tree.norm(optax.tree.sub(a, b)) / optax.tree.norm(a))


def across(
    config: Config, between: Between, folder: Path, name: str, corners: Any, path: Any
) -> dict[str, np.ndarray]:
    """The loss over a square of the plane through three networks, a leading axis of one seed."""
    plane = flatjax.plane_through(*corners)
    places = np.asarray(plane.coordinates)
    middle = (places.min(0) + places.max(0)) / 2
    reach = 0.75 * np.ptp(places, axis=0).max()
    x, y = np.linspace(middle - reach, middle + reach, config.grid).T
    found = kept_arrays(
        folder / f"plane_{name.lower()}.npz", lambda: {"losses": between.over(plane, x, y)}
    )
    found |= {"x": x, "y": y, "corners": places}
    if path is not None:
        points = [path(t) for t in np.linspace(0, 1, config.points)]
        found["path"] = np.asarray(flatjax.project(points, plane).coordinates)
    return {name: a[None] for name, a in found.items()}


def highest(path: str) -> Any:
    """The measure of a claim: the largest training loss along a path."""
    return lambda runs, config: runs[path]["train_loss"].max(1)


def rise(path: str) -> Any:
    """The measure of a claim: the largest test error along a path minus the mean of its ends'."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        error = 1 - runs[path]["test_accuracy"]
        return error.max(1) - error[:, [0, -1]].mean(1)

    return measure


def barriers(path: str, other: str) -> Any:
    """The measure of a claim: the barrier of a path over that of another one."""
    # A curve that falls from both ends has none.
    return lambda runs, config: runs[path]["barrier"] / np.maximum(runs[other]["barrier"], 1e-6)


def of_ends(pair: str, name: str) -> Any:
    """The measure of a claim: a number of the ends of a pair."""
    return lambda runs, config: runs[f"{pair}, ends"][name]


# fmt: off
WHAT = {"apart": "two networks trained apart", "copy": "a network and its permuted copy"}
MATCHED = "chord after matching"
LOSS = "an even guess among ten classes has 2.3; the null is "
for pair, nets in WHAT.items():
    chord = f"{pair}, chord"
    lab.claim(f"{pair}-chord-is-high", f"Largest training loss on the chord of {nets}.",
              highest(chord), low=0.4, source="margin", reason=LOSS + "the Bezier curve",
              null=highest(f"{pair}, Bezier"))
    for kind in KINDS:
        path, name = f"{pair}, {kind}", f"{pair}-{kind.lower()}"
        lab.claim(f"{name}-is-low", f"Largest training loss on the {kind} curve of {nets}.",
                  highest(path), high=0.08, source="margin", reason=LOSS + "the chord",
                  null=highest(chord))
        lab.claim(f"{name}-is-as-accurate",
                  f"Largest test error on the {kind} curve of {nets}, minus that of its ends.",
                  rise(path), high=0.025, source="margin", null=rise(chord),
                  reason="the authors' tables have 0.001 to 0.033; the null is the chord")
        lab.claim(f"{name}-avoids-the-barrier",
                  f"Barrier of the chord over that of the {kind} curve of {nets}.",
                  barriers(chord, path), low=10.0, source="margin",
                  reason="the null is the chord of the other pair",
                  null=barriers(chord, f"{'copy' if pair == 'apart' else 'apart'}, chord"))
UNITS = "Entezari et al. 2022"
lab.claim("copy-is-the-same-function",
          "Largest difference of a logit between a network and its copy, over the largest.",
          of_ends("copy", "difference"), high=1e-6, source="theory", paper=UNITS,
          reason="rounding in float32; the null is another network",
          null=of_ends("apart", "difference"))
lab.claim("copy-is-found", "Distance of a network from its permuted copy with the units matched.",
          of_ends("copy", "distance after matching"), high=0.0, source="theory",
          paper="Ainsworth et al. 2023", reason="exact; the null is not matched",
          null=of_ends("copy", "distance"))
lab.claim("copy-without-barrier", "Barrier of the chord after matching over that before, the copy.",
          barriers(f"copy, {MATCHED}", "copy, chord"), high=1e-6, source="theory", paper=UNITS,
          reason="rounding; the null is a chord of networks trained apart",
          null=barriers("apart, chord", "copy, chord"))
lab.claim("matching-lowers-the-barrier",
          "Barrier of the chord after matching over that before, two networks trained apart.",
          barriers(f"apart, {MATCHED}", "apart, chord"), high=1.0, source="sign", paper=UNITS,
          reason="the null has the units in a random order",
          null=barriers("apart, chord after shuffling", "apart, chord"))
# fmt: on

LINES = ("chord", MATCHED, *KINDS)


@lab.figure(
    "Training loss and test error along the paths, between two networks trained apart and between "
    "a network and its copy with permuted units; mean over seeds, two standard errors.",
    rows=2, columns=2, sharex=True, sharey="row",
)  # fmt: skip
def paths(axes: Any, runs: Runs, config: Config) -> None:
    """Losses and errors along all paths."""
    positions = np.linspace(0, 1, config.points)
    for column, (pair, nets) in zip(axes.T, WHAT.items(), strict=True):
        column[0].set(yscale="log", title=nets)
        for number, line in enumerate(LINES):
            records = runs[f"{pair}, {line}"]
            curve(column[0], positions, records["train_loss"], number, line)
            curve(column[1], positions, 100 * (1 - records["test_accuracy"]), number, line)
        column[1].set(xlabel="t, from one network to the other")
    axes[0][0].set(ylabel="training loss")
    axes[1][0].set(ylabel="test error in %")
    axes[1][0].legend(fontsize=8, loc="upper right")


@lab.figure(
    "Training loss with weight decay over planes through two networks trained apart, of the first "
    "seed: with a third network, with the bend of the Bezier curve, and with that of the chain. "
    "Losses beyond the largest on the left have the same colour.",
    columns=3, panel=(4.4, 3.6),
)  # fmt: skip
def planes(axes: Any, runs: Runs, config: Config) -> None:
    """The paper's figure 1."""
    titles = {"third": "three networks", "Bezier": "a Bezier curve", "chain": "a chain"}
    most = runs["plane, third"]["losses"].max()
    for panel, (name, title) in zip(axes, titles.items(), strict=True):
        found = {key: a[0] for key, a in runs[f"plane, {name}"].items()}
        surface = Surface(found["x"], found["y"], np.minimum(found["losses"], most))
        minima = found["corners"] if name == "third" else found["corners"][:2]
        labels = ["$w_1$", "$w_2$", "$w_3$"]
        plots.plot_surface(surface, path=found.get("path"), minima=minima, labels=labels, ax=panel)
        panel.set(title=title, xlabel="", ylabel="")


@lab.table
def comparison(runs: Runs, config: Config) -> Table:
    """Every path in numbers, as the paper's table."""
    columns = ("between", "path", "largest training loss", "barrier", "largest test error, %",
               "mean test error, %", "length over the chord's")  # fmt: skip
    rows = []
    for pair, nets in WHAT.items():
        straight = runs[f"{pair}, chord"]["lengths"][:, -1]
        for line in LINES:
            records = runs[f"{pair}, {line}"]
            error = 100 * (1 - records["test_accuracy"])
            numbers = (records["train_loss"].max(1), records["barrier"], error.max(1),
                       error.mean(1), records["lengths"][:, -1] / straight)  # fmt: skip
            rows.append([nets, line, *map(with_error, numbers)])
    return Table(columns, rows, "Mean and standard error over seeds.")
