"""The shape of SGD's noise: its covariance, not its law, decides where training ends.

Wu et al. (ICML 2020, "On the noisy gradient descent that generalizes as SGD") replace the noise of
minibatches by others of the same covariance, Gaussian or Bernoulli weights of the examples, and
find what SGD finds; noise of the same size but isotropic does not. To second order a step changes
the loss by -eta |g|^2 + eta^2 (g' H g + tr(H Sigma)) / 2 on average, whatever the noise's law: this
is measured for six classes of noise in double precision. Then MLPs learn digits with each of them
to the same squared error, and the traces of their Hessians are compared. Xing et al. (2018, "A
walk with SGD") find that large steps bounce between the walls of a valley: consecutive steps point
backwards, and the middle of a step lies below both its ends. To second order the first is so where
a = eta g' H g / g' g is above 1, the second where it is between 4/3 and 4.

    python -m experiments noise_shape

Found: each class of noise adds to the loss 0.996 to 1.000 of what theory says. Noise with SGD's
covariance ends at 1.00 of SGD's trace, 0.83 of that without noise; isotropic noise at 0.965 ± 0.011
of the latter, so it does a little, and noise with SGD's diagonal alone does nothing. Steps turn
back where a > 1 and cross the valley where a > 4/3, all of them.

real: the training on Fashion-MNIST. paper: the training part on CIFAR-10, when prepared; Wu et al.
have VGG-11 there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optax

from experiments.lib.lab import Lab, Options, Runs, Table, shared
from experiments.lib.runs.kept import each_seed, kept_arrays
from experiments.lib.runs.progress import say
from experiments.lib.training import curvature, minibatch, recipes
from experiments.lib.training.recipes import Recipe
from experiments.lib.verdicts.figures import reference, style
from experiments.lib.verdicts.statistics import with_error
from experiments.noise_shape.noise import CLASSES, shaped
from experiments.noise_shape.steps import PROBES, single_steps


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    step_size: int = 60  # examples of the single steps ...
    step_batch: int = 15  # ... of which a batch has so many
    step_hidden: tuple[int, ...] = (8,)  # hidden units of their network
    step_warm_up: int = 100  # steps of gradient descent before them
    step_rate: float = 2e-3  # their learning rate
    draws: int = 4000  # of each class of noise
    walk_steps: int = 2000  # of the walks between walls, with each rate
    small_rate: float = 0.02  # learning rate of the one ...
    large_rate: float = 0.3  # ... and of the other walk
    probed: int = 40  # points of the latter from which steps of other lengths are taken
    train_size: int = 200  # training examples of walks and training
    batch_size: int = 4  # all noise is that of batches of so many
    learning_rate: float = 0.06  # of the training
    products: int = 100  # of the trace of a Hessian
    recipe: Recipe = Recipe(hidden=(32, 32), loss="squared_error", batch_size=None,
                            epochs=12_000, record_every=200, stop_loss=0.012)  # fmt: skip


# fmt: off
lab = Lab(
    Config, "Wu et al. 2020",
    smoke={"seeds": 1, "step_size": 12, "step_batch": 3, "step_hidden": (4,), "draws": 20,
           "step_warm_up": 2, "walk_steps": 3, "probed": 2, "train_size": 20, "products": 4,
           "recipe": {"hidden": (6,), "epochs": 6, "record_every": 2, "stop_loss": 0.45}},
    real={"data": "fashion_mnist", "seeds": 3, "train_size": 400, "products": 60,
          "learning_rate": 0.03,
          "recipe": {"hidden": (64, 64), "epochs": 16_000, "stop_loss": 0.02}},
    # Of Wu et al. 2020, from memory: CIFAR-10 and VGG-11 without batch norm. The rest is ours.
    paper={"data": "cifar10", "train_size": 1000, "batch_size": 50, "learning_rate": 0.05,
           "recipe": {"network": "experiments.lib.nets.papers:VGG11", "epochs": 20_000}},
)
# fmt: on
EXPERIMENT = lab.experiment


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The single steps under `steps`, and what training ends at by the class of noise."""
    seeds = list(config.seed_range())
    by_seed = each_seed(config, lambda seed, folder: single_steps(config, seed))
    work: dict[str, Callable[[], Any]] = {
        kind: functools.partial(train, config, out, kind) for kind in CLASSES
    }
    found: dict[Any, Any] = shared(config, {**by_seed, **work})
    single = {name: np.array([found[s][name] for s in seeds]) for name in found[seeds[0]]}
    return {"steps": single} | {kind: found[kind] for kind in CLASSES}


def train(config: Config, out: Path, kind: str) -> dict[str, np.ndarray]:
    """The records with one class of noise, and the curvature at the end."""
    say(kind, enabled=not config.quiet)
    recipe, seeds = config.recipe, list(config.seed_range())
    data = minibatch.load_seeds(
        config.data, seeds, train_size=config.train_size, flat=recipe.flat,
        num_classes=recipe.classes,
    )  # fmt: skip
    losses_fn = recipes.losses_fn(recipe)
    trained = minibatch.train_arm(
        out / kind, recipe, data, seeds,
        lambda seed, hyper: optax.chain(
            shaped(kind, losses_fn, config.batch_size, seed), optax.sgd(config.learning_rate)
        ),
        quiet=config.quiet,
    )  # fmt: skip
    ends = kept_arrays(
        out / f"{kind}.npz",
        lambda: curvature.curvature_of_runs(recipe, trained, data, products=config.products),
    )
    return trained.records | ends | {"reached": trained.reached}


def adds(kind: str, other: str | None = None) -> Any:
    """The measure of a claim: what noise adds to the loss in a step, over theory for a class."""
    return lambda runs, config: runs["steps"][f"{kind} as {other or kind}"]


def descends(runs: Runs, config: Config) -> np.ndarray:
    """What a step without noise changes, over theory."""
    return runs["steps"]["descent"]


def first_order(runs: Runs, config: Config) -> np.ndarray:
    """The same over -eta |g|^2 alone."""
    return runs["steps"]["descent first order"]


def walked(arm: str, name: str) -> Callable[[Runs], np.ndarray]:
    """(runs) -> a record of a walk over its last half, (seeds, steps)."""

    def record(runs: Runs) -> np.ndarray:
        values = runs["steps"][f"{arm} {name}"]
        return values[:, values.shape[1] // 2 :]

    return record


def mean_of_walk(arm: str, name: str) -> Any:
    """The measure of a claim on the mean of a record over the last half of a walk."""
    return lambda runs, config: walked(arm, name)(runs).mean(1)


def agrees(name: str, threshold: float) -> Any:
    """The measure of a claim: probed steps that are as they should be beyond a threshold of a."""

    def measured(runs: Runs, config: Config) -> np.ndarray:
        values = runs["steps"][f"probed {name}"]
        found = values < 0 if name == "cosine" else values > 0
        right = found == (np.array(PROBES) > threshold)
        return np.where(np.isfinite(values), right, np.nan).mean((1, 2))

    return measured


def traces(first: str, second: str) -> Any:
    """The measure of a claim: the trace of the Hessian with one class of noise over another."""

    def measured(runs: Runs, config: Config) -> np.ndarray:
        both = runs[first]["reached"] & runs[second]["reached"]
        return np.where(both, runs[first]["trace"] / runs[second]["trace"], np.nan)

    return measured


# fmt: off
XING = "Xing et al. 2018"
lab.claim("one-step-descent", "Change of the loss in a step without noise, over theory.",
          descends, low=0.9999, high=1.0001, source="theory",
          reason="1 to second order; null: theory to first order", null=first_order)
for _kind, _null in (("isotropic", "gaussian"), ("diagonal", "gaussian"), ("gaussian", "minibatch"),
                     ("bernoulli", "gaussian"), ("minibatch", "with replacement")):
    lab.claim(f"one-step-{_kind}",
              f"What {_kind} noise adds to the mean change of the loss, over theory.",
              adds(_kind), low=0.97, high=1.03, source="theory",
              reason=f"eta^2 tr(H Sigma) / 2; null: Sigma of {_null}", null=adds(_kind, _null))
for _kind in ("gaussian", "bernoulli"):
    lab.claim(f"{_kind}-ends-as-sgd",
              f"Trace of the Hessian at one loss with {_kind} noise over that of minibatches.",
              traces(_kind, "minibatch"), low=0.92, high=1.08, source="margin",
              reason="the same covariance; null: without noise",
              null=traces("descent", "minibatch"))
lab.claim("isotropic-ends-as-descent", "The same with isotropic noise over that without.",
          traces("isotropic", "descent"), low=0.95, high=1.05, source="margin",
          reason="isotropic noise of this size does nothing; null: minibatches",
          null=traces("minibatch", "descent"))
lab.claim("sgd-ends-flatter", "The same of minibatches over that without noise.",
          traces("minibatch", "descent"), high=0.9, source="margin",
          reason="null: isotropic noise", null=traces("isotropic", "descent"))
lab.claim("backwards-law",
          "Steps with a from 0.9 to 1.45 after which the next points backwards just where a > 1.",
          agrees("cosine", 1.0), low=0.97, source="theory", paper=XING, reason="null: a > 4/3",
          null=agrees("cosine", 4 / 3))
lab.claim("walls-law", "Steps whose middle lies below both ends just where a > 4/3.",
          agrees("midpoint", 4 / 3), low=0.97, source="theory", paper=XING, reason="null: a > 1",
          null=agrees("midpoint", 1.0))
lab.claim("large-steps-turn-back", "Cosine of consecutive steps, at the large rate.",
          mean_of_walk("large", "cosine"), high=-0.1, source="paper", paper=XING,
          reason="null: the small rate", null=mean_of_walk("small", "cosine"))
lab.claim("large-steps-cross", "Steps whose middle lies below both ends, at the large rate.",
          mean_of_walk("large", "midpoint"), low=0.7, source="paper", paper=XING,
          reason="null: the small rate", null=mean_of_walk("small", "midpoint"))
lab.claim("small-steps-go-on", "Cosine of consecutive steps, at the small rate.",
          mean_of_walk("small", "cosine"), low=0.1, source="paper", paper=XING,
          reason="null: the large rate", null=mean_of_walk("large", "cosine"))
# fmt: on


NAMES = {"descent": "no noise", "minibatch": "SGD"}


@lab.figure(
    "Left: the mean change of the loss in a step less that without noise, of each class of noise "
    "against theory, every seed; on the line they agree. Right: traces of the Hessian at one loss, "
    "every seed, over the mean without noise.",
    columns=2,
)  # fmt: skip
def shapes(axes: Any, runs: Runs, config: Config) -> None:
    """What noise of each shape does in a step, and in training."""
    found, ends = runs["steps"], []
    for number, kind in enumerate(CLASSES[1:]):
        added = found[f"{kind} added"]
        theory = added / found[f"{kind} as {kind}"]
        look = style(number) | {"linestyle": "none"}
        axes[0].plot(theory, added, label=NAMES.get(kind, kind), **look)
        ends += [*theory]
    line = np.array([np.nanmin(ends), np.nanmax(ends)])
    axes[0].plot(line, line, color="#555555", linewidth=1)
    axes[0].set(
        xscale="log", yscale="log", xlabel=r"$\eta^2$ tr($H \Sigma$) / 2",
        ylabel="added to the change of the loss",
    )  # fmt: skip
    axes[0].legend(fontsize=7)
    base = runs["descent"]["trace"].mean()
    for number, kind in enumerate(CLASSES):
        heights = runs[kind]["trace"] / base
        look = style(number - 1 if number else 5) | {"linestyle": "none"}
        axes[1].plot(np.full(len(heights), number), heights, **look)
    axes[1].set_xticks(range(len(CLASSES)), [NAMES.get(k, k) for k in CLASSES], rotation=30)
    axes[1].set(ylabel="tr $H$ over that without noise")
    reference(axes[1], 1.0, "no noise")


@lab.figure(
    "Gradient descent. Left: the cosine of consecutive steps, and where the middle of a step lies, "
    "against a = eta g' H g / g' g, every step of both walks, and some of other lengths; "
    "first seed. Right: a along training, every seed.",
    columns=2,
)  # fmt: skip
def walls(axes: Any, runs: Runs, config: Config) -> None:
    """Bouncing between the walls of a valley."""
    points = {
        "small": [runs["steps"][f"small {n}"][0] for n in ("curvature", "cosine", "midpoint")],
        "large": [runs["steps"][f"large {n}"][0] for n in ("curvature", "cosine", "midpoint")],
        "other": [np.tile(PROBES, config.probed),
                  *(runs["steps"][f"probed {n}"][0].ravel() for n in ("cosine", "midpoint"))],
    }  # fmt: skip
    for number, (arm, (bent, cosine, below)) in enumerate(points.items()):
        color = style(number)["color"]
        for marker, chosen, what in (("o", below > 0, "below"), ("x", below == 0, "not below")):
            label = f"{arm} rate, middle {what}" if chosen.any() else None
            x, y = bent[chosen], cosine[chosen]
            axes[0].plot(x, y, marker, color=color, markersize=3, label=label)
        if arm == "other":
            continue
        for row in runs["steps"][f"{arm} curvature"][::-1]:
            axes[1].plot(row, color=color, linewidth=0.5)
        axes[1].lines[-1].set_label(rf"$\eta$ = {getattr(config, f'{arm}_rate'):g}")
    for at, text in ((1.0, "1"), (4 / 3, "4/3")):
        axes[0].axvline(at, color="#555555", linewidth=0.8, linestyle=":")
        axes[0].annotate(text, (at, 1.02), fontsize=7, ha="center", annotation_clip=False)
        axes[1].axhline(at, color="#555555", linewidth=0.8, linestyle=":")
    axes[0].axhline(0, color="#555555", linewidth=0.8)
    axes[0].set(xlabel=r"$a = \eta\, g'Hg / g'g$", ylabel="cosine of consecutive steps")
    axes[0].legend(fontsize=7, loc="lower left")
    axes[1].set(xlabel="step", ylabel="$a$")
    axes[1].legend(fontsize=8)


@lab.table
def ends(runs: Runs, config: Config) -> Table:
    """Where training ends with each class of noise."""
    rows = [
        [NAMES.get(kind, kind)]
        + [with_error(runs[kind][name]) for name in ("trace", "sharpness")]
        + [with_error(runs[kind][name][:, -1]) for name in ("epoch", "test_accuracy")]
        for kind in CLASSES
    ]
    columns = ("noise", "tr H", "largest eigenvalue", "steps", "test accuracy")
    return Table(columns, rows, "At the same training loss; mean and standard error over seeds.")
