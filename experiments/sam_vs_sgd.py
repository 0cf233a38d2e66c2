"""SAM against SGD at the same training loss: flatter in every measure, and better on wrong labels.

Foret et al. (ICLR 2021, "Sharpness-Aware Minimization"): minimising the worst loss in a ball of
radius rho finds flatter minima, with a higher test accuracy and far more robust to wrong labels.
An MLP learns 320 digits, right and with a fifth of the labels wrong, with squared error until the
training loss is 0.02: SGD, SAM with three radii in the 2-norm (0.2 is "SAM"), and with balls of the
1.5-norm and of the maximum norm of comparable size.

    python -m experiments sam_vs_sgd                               # three seeds, 103 seconds

Found on seeds 0-4, right labels and a fifth wrong: the largest Hessian eigenvalue falls from 11.4
and 14.5 to 2.4 and 2.5, its trace from 419 and 700 to 187 and 247, the rise of the loss within a
radius of 0.2 from 0.24 and 0.30 to 0.055. The test accuracy gains 4.5 points with wrong labels;
with right ones, 95 %, the gain of 0.4 is within its error. It takes SAM twice the epochs to reach
the loss, each at twice the cost.

gpu and paper: a fully connected network on CIFAR-10 and CIFAR-100, when prepared.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax

import flatjax
from experiments.lib.data.small import SmallData, stack_seeds
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.runs.progress import say
from experiments.lib.runs.shares import shared
from experiments.lib.training import curvature, minibatch
from experiments.lib.training.minibatch import Recipe
from experiments.lib.verdicts.claims import Claim, judge_all
from experiments.lib.verdicts.curves import curve, points
from experiments.lib.verdicts.figures import figure
from experiments.lib.verdicts.statistics import rank_correlation
from experiments.lib.verdicts.summary import Figure, run_folder, write_summary
from experiments.registry import Experiment, Options

Found = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    data: str = "digits"
    """The data set."""

    train_size: int = 320
    """Training examples."""

    noises: tuple[float, float] = (0.0, 0.2)
    """Fractions of wrong labels."""

    learning_rate: float = 0.1
    """Of all."""

    rhos: tuple[float, float, float] = (0.05, 0.1, 0.2)
    """Radii in the 2-norm; the claims are about the last. 0.5 does not reach the loss in 800
    epochs where labels are wrong."""

    rho_15: float = 0.6
    """Radius in the 1.5-norm."""

    rho_inf: float = 0.003
    """Radius in the maximum norm."""

    measured_rho: float = 0.2
    """SAM sharpness is measured in this radius, by ten ascent steps."""

    recipe: Recipe = Recipe(
        hidden=(64, 64), loss="squared_error", batch_size=32, epochs=2000, record_every=25,
        stop_loss=0.02,
    )  # fmt: skip
    """Network and training."""


_LARGE = Recipe(
    hidden=(512, 512), loss="squared_error", batch_size=128, epochs=1000, record_every=10,
    stop_loss=0.02,
)  # fmt: skip

PRESETS = {
    "smoke": Config(
        seeds=1, first_seed=0, train_size=32,
        recipe=Recipe(
            hidden=(6,), loss="squared_error", batch_size=16, epochs=4, record_every=2,
            stop_loss=0.02,
        ),
    ),
    "cpu": Config(),
    "gpu": Config(data="cifar10", train_size=5000, learning_rate=0.02, recipe=_LARGE),
    "paper": Config(data="cifar100", train_size=50_000, learning_rate=0.02, recipe=_LARGE),
}  # fmt: skip

_PAPER = "Foret et al. 2021"
MEASURES = {
    "sharpness": "largest Hessian eigenvalue",
    "trace": "trace of the Hessian",
    "sam_sharpness": "SAM sharpness",
}
REASONS = {
    "eigenvalue-0": "0.188 to 0.254 on seeds 0-4",
    "trace-0": "0.406 to 0.483 on seeds 0-4",
    "sam-sharpness-0": "0.196 to 0.274 on seeds 0-4",
    "norm-1.5-0": "0.181 to 0.239 on seeds 0-4",
    "norm-inf-0": "0.272 to 0.346 on seeds 0-4",
    "test-0": "-0.00542 to 0.0108 on seeds 0-4",
    "radius-orders-0": "-1 to -1 on seeds 0-4",
    "eigenvalue-20": "0.163 to 0.176 on the three of seeds 0-4 done after 800 epochs",
    "trace-20": "0.37 to 0.389 on the three of seeds 0-4 done after 800 epochs",
    "sam-sharpness-20": "0.181 to 0.19 on the three of seeds 0-4 done after 800 epochs",
    "norm-1.5-20": "0.156 to 0.18 on seeds 0-4, at a training loss of 0.03, with rho = 0.9",
    "norm-inf-20": "0.225 to 0.25 on the three of seeds 0-4 done after 800 epochs",
    "test-20": "0.0399 to 0.046 on the three of seeds 0-4 done after 800 epochs",
    "radius-orders-20": "as with right labels",
    "gains-more-on-noise": "from the two gains above",
}


def claims(noises: tuple[float, ...]) -> dict[str, Claim]:
    """The claims, most of them for right and for wrong labels."""
    found = {}

    def add(name, statement, **limits):
        reason = REASONS.get(name, "as for the fractions of the preset cpu")
        found[name] = Claim(name=name, statement=statement, paper=_PAPER, reason=reason, **limits)

    for noise in noises:
        part = f"{100 * noise:g}"
        where = f"at {part} % wrong labels."
        add(f"eigenvalue-{part}", f"Largest Hessian eigenvalue, SAM over SGD, {where}", high=0.35)
        add(f"trace-{part}", f"Trace of the Hessian, SAM over SGD, {where}", high=0.6)
        add(f"sam-sharpness-{part}", f"SAM sharpness, SAM over SGD, {where}", high=0.5)
        add(f"test-{part}", f"Test accuracy, SAM minus SGD, {where}", low=0.03 if noise else 0.0)
        add(
            f"radius-orders-{part}",
            f"Rank correlation of rho (0 for SGD) and the largest eigenvalue, {where}",
            high=-0.9,
        )
        add(f"norm-1.5-{part}", f"Largest eigenvalue, SAM with p = 1.5 over SGD, {where}", high=0.7)
        add(f"norm-inf-{part}", f"Largest eigenvalue, SAM with p = inf over SGD, {where}", high=0.7)
    add(
        "gains-more-on-noise",
        "Test accuracy gained by SAM with wrong labels minus that gained with right ones.",
        low=0.0,
    )
    return found


def arms(config: Config) -> dict[str, tuple[float, tuple[tuple[str, float], ...]]]:
    """By kind: the norm, and the arms with their radii."""
    first, second, third = config.rhos
    return {
        "sgd": (2.0, (("SGD", 0.0),)),
        "sam": (
            2.0,
            ((f"rho {first:g}", first), (f"rho {second:g}", second), ("SAM", third)),
        ),
        "sam_15": (1.5, (("p 1.5", config.rho_15),)),
        "sam_inf": (float("inf"), (("p inf", config.rho_inf),)),
    }


def run(config: Config, out: Path) -> Found:
    """By arm: arrays (noises, seeds)."""
    seeds, noises = list(config.seed_range()), config.noises
    load = functools.partial(minibatch.small_data, config.data, train_size=config.train_size)
    data = stack_seeds([load(seed=s, label_noise=n) for n in noises for s in seeds])
    kinds = arms(config)

    def train(kind: str) -> dict[str, np.ndarray]:
        p, settings = kinds[kind]
        say(", ".join(name for name, _ in settings), enabled=not config.quiet)
        count = len(settings)
        many = minibatch.repeat(data, count)

        def optimizer(seed, rho):
            head = (
                optax.identity() if kind == "sgd" else flatjax.sam(rho, ascent=flatjax.Ascent(p=p))
            )
            return optax.chain(head, optax.sgd(config.learning_rate))

        trained = minibatch.train_arm(
            out / kind,
            config.recipe,
            many,
            np.repeat(np.tile(seeds, len(noises)), count),
            optimizer,
            hyper=np.tile(np.array([rho for _, rho in settings], np.float32), len(data.targets)),
            chunk=8,
            quiet=config.quiet,
        )
        end = kept_arrays(out / kind / "end.npz", lambda: ends(config, trained.params, many))
        end |= {"reached": trained.reached}
        names = ("test_accuracy", "train_loss", "noisy_fit", "epoch")
        return end | {name: trained.records[name][:, -1] for name in names}

    ended = shared(config, {kind: functools.partial(train, kind) for kind in kinds})
    found: Found = {}
    for kind, (_, settings) in kinds.items():
        for i, (name, _) in enumerate(settings):
            found[name] = {
                k: v[i :: len(settings)].reshape(len(noises), len(seeds), *v.shape[1:])
                for k, v in ended[kind].items()
            }
    return found


POSITIONS = np.linspace(-1.0, 1.0, 21)


def ends(config: Config, params: dict, data: SmallData) -> dict[str, np.ndarray]:
    """Curvature, SAM sharpness and a line through the loss surface, where the runs end."""
    recipe = config.recipe
    losses_fn = minibatch.losses_fn(recipe.activation, recipe.loss)
    found = curvature.curvature_of_runs(recipe, params, data)
    rises, lines = [], []
    for index in range(len(data.targets)):
        point = curvature.run_of(params, index)
        batch = minibatch.training_batch(recipe, curvature.run_of(data, index))
        rise = flatjax.sam_sharpness(
            losses_fn, point, batch, rho=config.measured_rho, ascent_steps=10
        )
        rises.append(float(rise.value))
        # The same random numbers for every arm, scaled to the filters of its own weights.
        direction = flatjax.filter_normalized_direction(point, key=jax.random.key(index))
        line = flatjax.loss_along(losses_fn, point, batch, direction=direction, positions=POSITIONS)
        lines.append(np.asarray(line.losses))
    return {**found, "sam_sharpness": np.array(rises), "line": np.array(lines)}


def numbers(config: Config, found: Found) -> dict[str, np.ndarray]:
    """The measured number of every claim, one a seed; missing where the loss was not reached."""
    values: dict[str, np.ndarray] = {}

    def compare(arm, name, row, by=np.divide):
        both = found[arm]["reached"][row] & found["SGD"]["reached"][row]
        return np.where(both, by(found[arm][name][row], found["SGD"][name][row]), np.nan)

    ladder = ("SGD", *(name for name, _ in arms(config)["sam"][1]))
    for row, noise in enumerate(config.noises):
        part = f"{100 * noise:g}"
        tops = np.array(
            [np.where(found[a]["reached"][row], found[a]["sharpness"][row], np.nan) for a in ladder]
        )
        values |= {
            f"eigenvalue-{part}": compare("SAM", "sharpness", row),
            f"trace-{part}": compare("SAM", "trace", row),
            f"sam-sharpness-{part}": compare("SAM", "sam_sharpness", row),
            f"test-{part}": compare("SAM", "test_accuracy", row, np.subtract),
            f"radius-orders-{part}": np.array(
                [rank_correlation((0.0, *config.rhos), column) for column in tops.T]
            ),
            f"norm-1.5-{part}": compare("p 1.5", "sharpness", row),
            f"norm-inf-{part}": compare("p inf", "sharpness", row),
        }
    clean, noisy = (compare("SAM", "test_accuracy", row, np.subtract) for row in (0, -1))
    return values | {"gains-more-on-noise": noisy - clean}


def draw_measures(path: Path, config: Config, found: Found) -> None:
    """Test accuracy and three measures of every arm."""
    names = ("test_accuracy", *MEASURES)
    with figure(path, 1, 4, panel=(3.6, 3.0), dpi=90) as axes:
        for panel, name in zip(axes, names, strict=True):
            for number, noise in enumerate(config.noises):
                values = [r[name][number] for r in found.values()]
                label = f"{100 * noise:g} % wrong"
                points(panel, list(found), values, number, label)
            panel.set(title=MEASURES.get(name, "test accuracy"))
            panel.tick_params(axis="x", rotation=45)
        axes[1].set_yscale("log")
        axes[2].set_yscale("log")
        axes[3].set_yscale("log")
        axes[0].legend(fontsize=8)


def draw_lines(path: Path, config: Config, found: Found) -> None:
    """The loss along a filter-normalised random direction, SGD and SAM beside each other."""
    with figure(path, 1, len(config.noises), panel=(3.8, 3.0), dpi=90, sharey=True) as axes:
        for row, noise in enumerate(config.noises):
            for number, (arm, records) in enumerate(found.items()):
                if not arm.startswith("p "):
                    curve(axes[row], POSITIONS, records["line"][row], number, arm)
            axes[row].set(title=f"training loss, {100 * noise:g} % wrong labels", xlabel="position")
        axes[0].set_yscale("log")
        axes[0].legend()


def main(config: Config) -> None:
    """Runs the experiment, or shows the finished run."""
    with run_folder(config) as out:
        found = run(config, out)
        draw_measures(out / "measures.png", config, found)
        draw_lines(out / "lines.png", config, found)
        write_summary(
            out,
            config,
            judge_all(claims(config.noises), numbers(config, found), config.seed_range()),
            [
                Figure("measures.png", "Where training ends, at the same training loss."),
                Figure("lines.png", "Along a random, filter-normalised direction."),
            ],
            {a: {k: v for k, v in r.items() if k != "line"} for a, r in found.items()},
        )


EXPERIMENT = Experiment(main=main, presets=PRESETS, shares=True)
