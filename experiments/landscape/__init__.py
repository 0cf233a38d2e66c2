"""Loss landscapes: wider by small batches and SAM, smoother by skip connections.

Li et al. (NeurIPS 2018, "Visualizing the loss landscape of neural nets"): along random directions
each of whose filters has the norm of the network's own, curves of different networks can be
compared. So seen, small batches end wider than large ones (Keskar et al. 2017), and skip
connections keep the surface convex where without them it is not. Foret et al. (2021) draw SAM's
surfaces so. Here an MLP learns 400 digits with small batches, large ones and SAM, and a deep one
with and without skips; the null has other batches. All end at the same training loss. Batch
statistics stay those of the minimum, as in the paper.

    python -m experiments landscape

Found: at half the norm of the filters the loss rises 0.63 ± 0.02 times as far after SAM as after
SGD, and 0.940 ± 0.007 times as far after small batches as after large ones, where other batches
move it by 0.8 %. Without skips more of the surface bends down, by a share of 0.20 ± 0.02 of it;
how far the loss rises varies too much between seeds to say (0.84 ± 0.08 with skips over without),
and so do the two halves of the directions (0.12 ± 0.04 apart in the logarithm). On Fashion-MNIST,
with convolutions, SAM's is 0.75 ± 0.08 times that of SGD; large batches and the residual networks
have not come down to the common loss when training ends, so that nothing is said of them but that
the surface without skips bends down no more than that with them.

paper: their ResNet-56 and ResNet-56-noshort on CIFAR-10, when prepared.
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
from experiments.landscape import measuring
from experiments.lib.data.small import SmallData, first_examples
from experiments.lib.lab import Lab, Options, Runs, shared
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.training import minibatch, recipes
from experiments.lib.training.curvature import run_of
from experiments.lib.training.descent import Descent, descent
from experiments.lib.training.minibatch import Trained
from experiments.lib.training.recipes import Recipe
from experiments.lib.verdicts.curves import curve
from flatjax import plots
from flatjax.landscape import Surface


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 400  # training examples
    test_size: int | None = None  # test examples; None for all
    measured: int | None = None  # training examples of lines and surfaces; None for all
    large_batch: int = 200  # examples an update of the arm with large batches
    rho: float = 0.2  # SAM's radius
    directions: int = 16  # lines
    points: int = 25  # on each from -1 to 1, and on either side of the surfaces
    radius: float = 0.5  # where the rise is measured; a point of the lines
    descent: Descent = Descent(learning_rate=0.1)  # of the first network
    recipe: Recipe = Recipe(
        hidden=(64, 64), activation="relu", init_scale=2**0.5, batch_size=20, epochs=1000,
        record_every=20, stop_loss=0.02,
    )  # its training  # fmt: skip
    deep_descent: Descent = Descent(learning_rate=0.02, momentum=0.9)  # of the deep ones
    deep: Recipe = Recipe(
        network="mlp-20-32-batch-skip", batch_size=40, epochs=200, record_every=10, stop_loss=0.02,
    )  # with skips  # fmt: skip
    plain: str = "mlp-20-32-batch-noskip"  # and the network without


# fmt: off
lab = Lab(
    Config, "Li et al. 2018",
    smoke={"seeds": 1, "train_size": 24, "large_batch": 12, "directions": 2, "points": 5,
           "recipe": {"hidden": (8, 8), "batch_size": 8, "epochs": 2, "record_every": 1},
           "deep": {"network": "mlp-2-4-batch-skip", "batch_size": 8, "epochs": 2,
                    "record_every": 1},
           "plain": "mlp-2-4-batch-noskip"},
    real={"data": "fashion_mnist", "seeds": 3, "train_size": 1000, "test_size": 2000,
          "measured": 250, "large_batch": 500, "points": 17,
          "recipe": {"network": "s2cnn-8", "batch_size": 25, "epochs": 100, "record_every": 5,
                     "stop_loss": 0.05},
          "deep": {"network": "resnet-14-4", "batch_size": 50, "epochs": 30, "record_every": 3,
                   "stop_loss": 0.05},
          "plain": "resnet-14-4-noskip"},
    # Of the paper where a source is named; the value is ours where none is.
    paper={"data": "cifar10", "train_size": 50_000, "measured": 1000,
           "large_batch": 8192, "points": 51,  # sections 4 and 5
           "descent": {"momentum": 0.9, "nesterov": True, "schedule": "cosine"},
           "recipe": {"network": "cnn-5-64-batch", "batch_size": 128, "epochs": 300,  # VGG-9
                      "record_every": 20, "stop_loss": None},
           "deep_descent": {"learning_rate": 0.1, "weight_decay": 5e-4, "nesterov": True,
                            "schedule": "cosine"},  # section 6: SGD with Nesterov momentum
           "deep": {"network": "resnet-56", "batch_size": 128, "epochs": 300,  # section 6
                    "record_every": 20, "stop_loss": None, "flip": True, "crop": 4},
           "plain": "resnet-56-noskip"},
)
# fmt: on
EXPERIMENT = lab.experiment

SMALL, LARGE, SAM, OTHER = "small batches", "large batches", "SAM", "other batches"
SKIP, PLAIN, SKIP_OTHER = "skip", "no skip", "skip, other batches"
SHOWN = (SMALL, LARGE, SAM, SKIP, PLAIN)


def positions(config: Config) -> np.ndarray:
    """Along every direction, in units of the filters."""
    return np.linspace(-1.0, 1.0, config.points)


@lab.run
def run(config: Config, out: Path) -> Runs:
    """Lines and surfaces through the minima of all arms."""
    large = dataclasses.replace(config.recipe, batch_size=config.large_batch)
    plain = dataclasses.replace(config.deep, network=config.plain)
    # Of every arm what is added to the seed of its batches, and SAM's radius.
    pieces = {
        "small": (config.recipe, {SMALL: (0, 0.0), OTHER: (1000, 0.0)}),
        "large": (large, {LARGE: (0, 0.0)}),
        "sam": (config.recipe, {SAM: (0, config.rho)}),
        "skip": (config.deep, {SKIP: (0, 0.0), SKIP_OTHER: (1000, 0.0)}),
        "plain": (plain, {PLAIN: (0, 0.0)}),
    }
    found = shared(
        config,
        {
            name: functools.partial(of_piece, config, out / name, recipe, arms)
            for name, (recipe, arms) in pieces.items()
        },
    )
    return {arm: records for arms in found.values() for arm, records in arms.items()}


def of_piece(
    config: Config, folder: Path, recipe: Recipe, arms: dict[str, tuple[int, float]]
) -> Runs:
    """Trains arms of one recipe and measures where they end."""
    seeds, count = list(config.seed_range()), len(arms)
    data = minibatch.load_seeds(
        config.data, seeds, train_size=config.train_size, test_size=config.test_size,
        flat=recipe.flat, num_classes=recipe.classes,
    )  # fmt: skip
    deep = recipe.network in (config.deep.network, config.plain)
    sam = any(rho for _, rho in arms.values())

    def optimizer(seed, rho):
        options = config.deep_descent if deep else config.descent
        by = descent(options, recipe, config.train_size)
        return optax.chain(flatjax.sam(rho), by) if sam else by

    found = minibatch.train_arm(
        folder, recipe, minibatch.repeat(data, count),
        [seed + more for seed in seeds for more, _ in arms.values()], optimizer,
        hyper=np.array([rho for _, rho in arms.values()] * len(seeds), np.float32),
        start=minibatch.repeat(recipes.init_runs(recipe, data, seeds), count), quiet=config.quiet,
    )  # fmt: skip
    return {
        arm: kept_arrays(
            folder / f"end_{i}.npz",
            lambda i=i: end(config, recipe, jax.tree.map(lambda a: a[i::count], found), data),
        )
        for i, arm in enumerate(arms)
    }


def end(config: Config, recipe: Recipe, trained: Trained, data: SmallData) -> dict[str, Any]:
    """Where training ends, what it looks like from there, and whether rescaling changes that."""
    losses_fn, t = recipes.losses_fn(recipe), positions(config)
    measured = first_examples(data, config.measured, axis=1)
    found: dict[str, list[Any]] = {name: [] for name in ("lines", "surface", "own", "unchanged")}
    for i in range(len(data.targets)):
        params, state = run_of((trained.params, trained.model_state), i)
        at = losses_fn, params, recipes.training_batch(recipe, run_of(measured, i)), state
        # The same random numbers for every arm, scaled to the filters of its own weights.
        found["lines"].append(measuring.lines(*at, t, config.directions, i))
        found["surface"].append(measuring.surface(*at, t, i))
        for name in ("own", "unchanged"):
            found[name].append(measuring.change(*at, t, i, own=name == "own"))
    # Without a loss to stop at every run is at its end.
    reached = trained.reached | (recipe.stop_loss is None)
    names = ("train_loss", "test_accuracy", "epoch", "norm")
    arrays = {name: np.array(values) for name, values in found.items()}
    return arrays | {"reached": reached} | {n: trained.records[n][:, -1] for n in names}


def rise(runs: Runs, config: Config, arm: str, part: slice = slice(None)) -> np.ndarray:
    """The mean rise at the radius over some directions; NaN where the loss was not reached."""
    found = runs[arm]["lines"][:, part]
    risen = measuring.rise(found, positions(config), config.radius)
    return np.where(runs[arm]["reached"], risen, np.nan)


def ratio(arm: str, other: str) -> Any:
    """The measure of a claim: the rise of an arm over that of another."""
    return lambda runs, config: rise(runs, config, arm) / rise(runs, config, other)


def concave(records: dict[str, np.ndarray]) -> np.ndarray:
    """The share of every seed's surface that is not convex."""
    return np.array([measuring.concave_share(surface) for surface in records["surface"]])


def rougher(arm: str) -> Any:
    """The measure of a claim: the share of an arm that is not convex, minus that with skips."""
    return lambda runs, config: concave(runs[arm]) - concave(runs[SKIP])


def between_halves(runs: Runs, config: Config) -> np.ndarray:
    """The measure of a claim: |log| of the rise over half of the directions over the other half."""
    half = config.directions // 2
    parts = slice(None, half), slice(half, None)
    first, second = (rise(runs, config, SMALL, part) for part in parts)
    return np.abs(np.log(first / second))


# fmt: off
AT = "Rise of the loss at the filter-normalised radius"
OTHERS = "the null has other batches"
for name, arm, base, paper in (
    ("sam-wider", SAM, SMALL, "Foret et al. 2021"),
    ("small-batches-wider", SMALL, LARGE, "Keskar et al. 2017; Li et al. 2018"),
    ("skips-wider", SKIP, PLAIN, "Li et al. 2018"),
):
    null = {SAM: (OTHER, SMALL), SMALL: (SMALL, OTHER), SKIP: (SKIP, SKIP_OTHER)}[arm]
    lab.claim(name, f"{AT}, {arm} over {base}.", ratio(arm, base), high=1.0, source="sign",
              reason=OTHERS, null=ratio(*null), paper=paper)
lab.claim("skips-convex",
          "Share of a surface that bends down, no skip minus skip.", rougher(PLAIN),
          low=0.0, source="sign", reason=OTHERS, null=rougher(SKIP_OTHER))
lab.claim("directions-agree",
          f"{AT}, |log| of the mean over half of the directions over that over the others.",
          between_halves, high=0.2, source="margin",
          reason="a fifth; the null is SAM over SGD with small batches",
          null=lambda runs, config: np.abs(np.log(ratio(SAM, SMALL)(runs, config))))
lab.claim("filters-undo-scales",
          "Largest change of the loss along a line, over the largest loss, if one layer is "
          "multiplied by ten and the next one divided.",
          lambda runs, config: runs[SMALL]["own"], high=1e-3, source="theory",
          reason="none but by rounding; the null keeps the direction",
          null=lambda runs, config: runs[SMALL]["unchanged"])
# fmt: on


@lab.figure(
    "The loss along filter-normalised directions; mean over directions and seeds, two standard "
    "errors of the seeds.", columns=2, panel=(4.8, 3.6),
)  # fmt: skip
def lines(axes: Any, runs: Runs, config: Config) -> None:
    """The curves of all arms, the deep networks beside the others."""
    for panel, arms in zip(axes, ((SMALL, LARGE, SAM), (SKIP, PLAIN)), strict=True):
        panel.set(yscale="log", xlabel="position, in norms of the filters", ylabel="training loss")
        for arm in arms:
            mean = runs[arm]["lines"].mean(1)
            curve(panel, positions(config), mean, SHOWN.index(arm), arm)
        panel.legend(loc="upper center")


@lab.figure(
    "The first seed's surfaces over the plane of two filter-normalised directions, with contours "
    "at the same losses.", columns=len(SHOWN), panel=(2.9, 3.1), sharey=True,
)  # fmt: skip
def surfaces(axes: Any, runs: Runs, config: Config) -> None:
    """All arms side by side."""
    t = positions(config)
    shown = {arm: runs[arm]["surface"][0] for arm in SHOWN}
    every = np.stack(list(shown.values()))
    every = every[np.isfinite(every) & (every > 0)]
    ends = np.floor(2 * np.log10([every.min(), np.quantile(every, 0.98)]))
    heights = 10.0 ** (np.arange(ends[0], ends[1] + 2) / 2)  # two in a decade
    for panel, (arm, losses) in zip(axes, shown.items(), strict=True):
        plots.plot_surface(Surface(t, t, losses), levels=heights, bar=arm == SHOWN[-1], ax=panel)
        panel.set(title=f"{arm}\n{100 * runs[arm]['test_accuracy'][0]:.1f} % test accuracy")
    for panel in axes[1:]:
        panel.set(ylabel="")


@lab.figure(
    "The first seed's deep networks, with skip connections and without.", columns=2,
    panel=(4.8, 4.2), subplot_kw={"projection": "3d"},
)  # fmt: skip
def skips(axes: Any, runs: Runs, config: Config) -> None:
    """Two surfaces in space, of one height."""
    t = positions(config)
    for panel, arm in zip(axes, (SKIP, PLAIN), strict=True):
        plots.plot_surface_3d(Surface(t, t, runs[arm]["surface"][0]), ax=panel)
        panel.set(title=f"{arm} ({100 * runs[arm]['test_accuracy'][0]:.1f} % test accuracy)")
    limits = np.array([panel.get_zlim() for panel in axes])
    for panel in axes:
        panel.set_zlim(limits[:, 0].min(), limits[:, 1].max())


@lab.extra
def ends(runs: Runs, config: Config) -> dict[str, Any]:
    """All numbers of all arms, and how far their losses rise."""
    return {
        arm: {k: v for k, v in records.items() if v.ndim == 1}
        | {"rise": rise(runs, config, arm), "concave": concave(records)}
        for arm, records in runs.items()
    }
