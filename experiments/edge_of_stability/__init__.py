"""Full-batch training drives the sharpness to the edge of stability and holds it there.

Cohen, Kaur, Li, Kolter & Talwalkar 2021, "Gradient Descent on Neural Networks Typically Occurs at
the Edge of Stability", and Cohen et al. 2022 for Adam. A tanh network learns the digits with
squared error by full-batch gradient descent: the largest Hessian eigenvalue rises until it reaches
2/eta and stays there, while the loss goes on falling, no longer at every step. With momentum the
level is (2 + 2 beta)/eta, for Adam the preconditioned sharpness settles at 38/eta; SGD stays below,
gradient flow (Runge-Kutta steps of at most 1 / sharpness) rises on. At the edge the quadratic
Taylor model, on which gradient descent diverges, says nothing about the training to come.

    python -m experiments edge_of_stability        # three seeds, 83 seconds

Found: with sharpness over threshold 1.01 for gradient descent, 1.00 for Nesterov and 0.99 for Adam,
45 % of the steps at the edge raise the loss and none before; gradient flow reaches 1.6 times 2/eta;
SGD settles at 0.86. With cross-entropy the sharpness passes 2/eta 1.8 times over and vanishes with
the loss. Heavy ball fits the labels to a loss of 1e-5 and its sharpening then stops, on some seeds
a few per cent below the edge; started above it it can diverge.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import flatjax
from experiments.edge_of_stability import dynamics
from experiments.lib.data.small import SmallData
from experiments.lib.lab import Lab, Options, Runs, shared
from experiments.lib.nets.mlp import FlatMlp
from experiments.lib.runs.errors import ExperimentError
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.runs.progress import say
from experiments.lib.training.minibatch import load_seeds
from experiments.lib.verdicts.figures import COLORS, reference, style

LABELS = {
    "gd": "gradient descent",
    "gd_slower": "gradient descent, smaller step",
    "polyak": "heavy ball",
    "nesterov": "Nesterov",
    "adam": "Adam (preconditioned)",
    "sgd": "SGD",
    "cross_entropy": "cross-entropy, wrong labels",
}
# The values are set for each arm; momentum 0 is gradient descent.
HEAVY_BALL = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.0)
ACCELERATED = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.0, nesterov=True)
ADAM = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 300  # examples, all of them in every batch
    label_noise: float = 0.2  # wrong labels: the sharpness of gradient flow rises further with them
    width: int = 64  # units of each of the hidden layers
    learning_rate: float = 0.2  # of gradient descent, of SGD; gradient flow's unit of time ...
    slower_rate: float = 0.16  # ... and another one
    momentum: float = 0.9  # of heavy ball and Nesterov
    momentum_threshold: float = 14.0  # their learning rates make this sharpness the edge
    adam_rate: float = 3e-3  # Adam's learning rate
    batch_size: int = 30  # SGD's
    cross_entropy_rate: float = 0.8  # on cross-entropy with half of the labels wrong
    steps: int = 2000  # updates
    flow_steps: int = 1000  # gradient flow runs for the time of this many
    arms: tuple[str, ...] = tuple(LABELS)  # which; claims about others stay open; gd is needed
    every: int = 4  # updates between two measurements of the sharpness
    chunk: int = 1000  # updates between two saves
    taylor_steps: int = 60  # steps on the quadratic model


# fmt: off
lab = Lab(
    Config, "Cohen et al. 2021",
    smoke={"seeds": 1, "train_size": 40, "width": 8, "learning_rate": 0.6, "steps": 48,
           "flow_steps": 24, "chunk": 24, "taylor_steps": 4, "arms": ("gd", "gd_slower")},
    paper={"data": "cifar10", "train_size": 5000, "width": 200, "learning_rate": 0.01,
           "steps": 60000, "every": 50},
)
# fmt: on
EXPERIMENT = lab.experiment


def arms(config: Config) -> dict[str, dynamics.Arm]:
    """The optimisers by name."""
    c, threshold = config, flatjax.stability_threshold

    def momentum(optimizer, kind):
        # The threshold is inversely proportional to the learning rate.
        rate = float(threshold(kind, 1.0, momentum=c.momentum)) / c.momentum_threshold
        given = {"learning_rate": rate, "momentum": c.momentum}
        return dynamics.Arm(optimizer, given, c.momentum_threshold)

    def plain(rate, batch_size=None):
        given = {"learning_rate": rate, "momentum": 0.0}
        return dynamics.Arm(HEAVY_BALL, given, float(threshold("gd", rate)), batch_size)

    found = {
        "gd": plain(c.learning_rate),
        "gd_slower": plain(c.slower_rate),
        "polyak": momentum(HEAVY_BALL, "heavy_ball"),
        "nesterov": momentum(ACCELERATED, "nesterov"),
        "adam": dynamics.Arm(
            ADAM, {"learning_rate": c.adam_rate}, float(threshold("adam", c.adam_rate, b1=0.9))
        ),
        "sgd": plain(c.learning_rate, c.batch_size),
        "cross_entropy": plain(c.cross_entropy_rate),
    }
    if set(c.arms) - set(found) or "gd" not in c.arms:
        raise ExperimentError(f"arms are gd and any of {', '.join(found)}; got {c.arms}")
    return {name: arm for name, arm in found.items() if name in c.arms}


@functools.cache
def losses_of(sizes: tuple[int, ...], loss: str) -> tuple[FlatMlp, dynamics.LossesFn]:
    """A tanh network and its per-example losses; one object each: programs are compiled once."""
    net = FlatMlp(sizes)
    return net, net.losses(loss)


def setup(config: Config, arm: str) -> tuple[dynamics.LossesFn, SmallData, jax.Array]:
    """Loss, data and initial parameters of an arm, the latter two of all seeds."""
    noise, loss = config.label_noise, "squared_error"
    if arm == "cross_entropy":
        noise, loss = 0.5, "cross_entropy"
    seeds = list(config.seed_range())
    data = load_seeds(config.data, seeds, train_size=config.train_size, label_noise=noise)
    net, losses_fn = losses_of((data.inputs.shape[-1], config.width, config.width, 10), loss)
    return losses_fn, data, net.init_seeds(seeds)


def run_arm(config: Config, out: Path, name: str) -> tuple[jax.Array, dict[str, np.ndarray]]:
    """Trains one arm on all seeds: the last parameters, and what was recorded."""
    say(name, enabled=not config.quiet)
    times = {"every": config.every, "chunk": config.chunk, "quiet": config.quiet}
    if name == "flow":
        options = {"learning_rate": config.learning_rate, "steps": config.flow_steps, **times}
        return dynamics.gradient_flow(out / name, *setup(config, "gd"), **options)
    arm = arms(config)[name]
    return dynamics.train(out / name, arm, *setup(config, name), steps=config.steps, **times)


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The records of every arm, of the flow, and of both quadratic models."""
    chosen = arms(config)
    work = {name: functools.partial(run_arm, config, out, name) for name in (*chosen, "flow")}
    runs = {name: records for name, (_, records) in shared(config, work).items()}
    for name, records in runs.items():
        threshold = 2 / config.learning_rate if name == "flow" else chosen[name].threshold
        records["ratio"] = records["sharpness"] / threshold
    kept = kept_arrays(out / "quadratic_model.npz", lambda: models(config, runs["gd"]["ratio"]))
    return runs | {
        name: {"loss": kept[name][:, 0], "model": kept[name][:, 1]} for name in ("before", "at")
    }


def crossing(ratio: np.ndarray) -> int | None:
    """The first measurement at which the sharpness is above the edge."""
    above = np.flatnonzero(ratio > 1)
    return int(above[0]) if len(above) else None


def models(config: Config, ratio: np.ndarray) -> dict[str, np.ndarray]:
    """The quadratic model before the edge and at it: (seeds, loss or model, steps)."""
    losses_fn, data, params = setup(config, "gd")
    found: dict[str, list] = {"before": [], "at": []}
    for i, row in enumerate(ratio):
        steps = {"before": (crossing(row) or len(row)) // 2, "at": int(np.argmax(row)) + 1}
        own = params[i], (data.inputs[i], data.targets[i])
        for name, blocks in steps.items():
            options = config.learning_rate, blocks * config.every, config.taylor_steps
            found[name].append(np.stack(dynamics.quadratic_model(losses_fn, *own, *options)))
    return {name: np.stack(values) for name, values in found.items()}


def each(number: Callable[..., float | None], *names: str) -> Any:
    """The measure `number(config, *records)` of every seed; of arms that are not run, nothing."""

    def measure(runs: Runs, config: Config) -> dict[int, float | None]:
        if not set(names) <= set(runs):
            return dict.fromkeys(config.seed_range())
        of = [[{k: v[i] for k, v in runs[n].items()} for n in names] for i in range(config.seeds)]
        return {s: number(config, *own) for s, own in zip(config.seed_range(), of, strict=True)}

    return measure


def late(config: Config, own: dict[str, np.ndarray]) -> np.ndarray:
    """Sharpness over threshold in the last half."""
    return own["ratio"][len(own["ratio"]) // 2 :]


def settles(config: Config, own: dict[str, np.ndarray]) -> float:
    """Their mean."""
    return float(late(config, own).mean())


def rises_late(config: Config, own: dict[str, np.ndarray]) -> float:
    """The share of the steps of the last half that raise the loss."""
    rises = np.diff(own["loss"]) > 0
    return rises[len(rises) // 2 :].mean()


def rises_before(config: Config, own: dict[str, np.ndarray]) -> float | None:
    """The steps up to the crossing that raise the loss."""
    # One update later an instability may show in the loss; none before.
    first = crossing(own["ratio"])
    rises = np.diff(own["loss"]) > 0
    return None if first is None else float(rises[: first * config.every].sum())


def at_crossing(number: Callable[[dict, int], float]) -> Callable[..., float | None]:
    """A number of the flow at the measurement at which descent crosses the edge."""

    def found(config: Config, own: dict, flow: dict) -> float | None:
        first = crossing(own["ratio"])
        return None if first is None or first >= len(flow["distance"]) else number(flow, first)

    return found


def digits_off(config: Config, own: dict[str, np.ndarray]) -> float:
    """log10 of quadratic model over loss after the steps on both."""
    return np.log10(abs(own["model"][-1]) / own["loss"][-1])


# fmt: off
SEEN = {"source": "seeds", "reason": "set on seeds 0-4"}
for name, what, low, high in (
    ("gd", "gradient descent", 0.98, 1.04),
    ("gd_slower", "gradient descent with a smaller step", 0.98, 1.04),
    ("polyak", "heavy ball", 0.95, 1.03),
    ("nesterov", "Nesterov's method", 0.97, 1.03),
    ("adam", "Adam (its preconditioned sharpness)", 0.95, 1.03),
):
    lab.claim(f"{name.replace('_', '-')}-settles-at-the-edge",
              f"Over the last half of {what} the mean of sharpness / threshold is 1.",
              each(settles, name), low=low, high=high, **SEEN,
              paper="Cohen et al. 2022" if name == "adam" else None)
lab.claim("gd-stays-within-the-edge",
          "The 99th percentile of sharpness / threshold over the last half is little above 1.",
          each(lambda config, own: np.quantile(late(config, own), 0.99), "gd"),
          low=0.98, high=1.08, **SEEN)
lab.claim("sgd-stays-below", "SGD with the same step settles at a smaller sharpness / threshold.",
          each(settles, "sgd"), high=0.95, **SEEN)
lab.claim("cross-entropy-reaches-the-edge",
          "With cross-entropy the largest sharpness / threshold is at least 1 ...",
          each(lambda config, own: own["ratio"].max(), "cross_entropy"), low=1.0, **SEEN)
lab.claim("cross-entropy-falls-at-the-end", "... and the last sharpness is well below the largest.",
          each(lambda config, own: own["ratio"][-1] / own["ratio"].max(), "cross_entropy"),
          high=0.7, **SEEN)
lab.claim("loss-ends-low", "The last training loss; it is 1.5 at first.",
          each(lambda config, own: own["loss"][-1], "gd"), high=0.03, **SEEN)
lab.claim("loss-oscillates-at-the-edge",
          "Share of the steps of the last half of gradient descent that raise the loss.",
          each(rises_late, "gd"), low=0.25, high=0.6, **SEEN)
lab.claim("loss-falls-monotonically-before",
          "Steps that raise the loss before the sharpness first crosses 2 / eta.",
          each(rises_before, "gd"), high=0.0, **SEEN)
lab.claim("gradient-flow-goes-beyond",
          "Largest sharpness of gradient flow over gradient descent's 2 / eta.",
          each(lambda config, flow: flow["ratio"].max(), "flow"), low=1.3, **SEEN)
lab.claim("descent-follows-the-flow-before",
          "Distance of descent and flow over the way of the flow, at the crossing.",
          each(at_crossing(lambda flow, t: flow["distance"][t] / flow["moved"][t]), "gd", "flow"),
          high=0.15, **SEEN)
lab.claim("descent-leaves-the-flow-at-the-edge",
          "Distance of descent and flow at the end of the flow over that at the crossing.",
          each(at_crossing(lambda flow, t: flow["distance"][-1] / flow["distance"][t]),
               "gd", "flow"), low=3.0, **SEEN)
lab.claim("quadratic-model-before",
          "log10 of quadratic model / loss after the steps on both, from half of the crossing.",
          each(digits_off, "before"), low=-0.3, high=0.3, **SEEN)
lab.claim("quadratic-model-edge", "The same from the point of largest sharpness at the edge.",
          each(digits_off, "at"), low=4.0, **SEEN)
# fmt: on


@lab.figure("Sharpness over the threshold; every seed is a line.", columns=2, sharey=True)
def sharpness(axes: Any, runs: Runs, config: Config) -> None:
    """Sharpness over the threshold of every arm and of gradient flow."""
    groups = (
        ("gd", "gd_slower", "sgd", "flow"),
        ("polyak", "nesterov", "adam", "cross_entropy"),
    )
    for panel, names in zip(axes, groups, strict=True):
        for number, name in enumerate(n for n in names if n in runs):
            rows = runs[name]["ratio"]
            steps = config.every * np.arange(1, rows.shape[1] + 1)
            panel.plot(steps, rows.T, **style(number, markers=False) | {"linewidth": 1.1})
            panel.plot([], [], **style(number, markers=False), label=LABELS.get(name, name))
        reference(panel, 1.0, "edge of stability")
        panel.set(xlabel="step", ylim=(0, 2.2))
        panel.legend(loc="upper right")
    axes[0].set_ylabel("sharpness / threshold")


@lab.figure("Gradient descent on loss and quadratic Taylor model.", columns=2)
def quadratic_model(axes: Any, runs: Runs, config: Config) -> None:
    """Loss and quadratic model from a point before the edge and from one at it."""
    for panel, name in zip(axes, ("before", "at"), strict=True):
        for number, curve in enumerate(("loss", "model")):
            look = {"color": COLORS[number], "linestyle": ("-", "--")[number]}
            panel.plot(np.abs(runs[name][curve]).T, **look)
            panel.plot([], [], **look, label=("loss", "quadratic model")[number])
        panel.set(xlabel=f"steps from a point {name} the edge", yscale="log", ylabel="loss")
        panel.legend()
