"""Full-batch training drives the sharpness to the edge of stability and holds it there.

Cohen, Kaur, Li, Kolter & Talwalkar 2021, "Gradient Descent on Neural Networks Typically Occurs at
the Edge of Stability", and Cohen et al. 2022 for Adam. A tanh network learns the digits with
squared error by full-batch gradient descent: the largest Hessian eigenvalue rises until it reaches
2/eta and stays there, while the loss goes on falling, no longer at every step. With momentum the
level is (2 + 2 beta)/eta, for Adam the preconditioned sharpness settles at 38/eta; SGD stays below,
gradient flow (Runge-Kutta steps of at most 1 / sharpness) rises on. At the edge the quadratic
Taylor model, on which gradient descent diverges, says nothing about the training to come.

    python -m experiments edge_of_stability        # three seeds, 1.5 minutes of one core

Found: with sharpness over threshold 1.01 for gradient descent, 1.00 for Nesterov and 0.99 for Adam,
45 % of the steps at the edge raise the loss and none before; gradient flow reaches 1.6 times 2/eta;
SGD settles at 0.86. With cross-entropy the sharpness passes 2/eta 1.8 times over and vanishes with
the loss. Heavy ball fits the labels to a loss of 1e-5 and its sharpening then stops, on some seeds
a few per cent below the edge; started above it it can diverge.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import flatjax
from experiments.edge_of_stability import dynamics, pictures
from experiments.lib.claims import Claim, Figure, Verdict, judge, run_folder, write_summary
from experiments.lib.errors import ExperimentError
from experiments.lib.progress import say
from experiments.lib.seeds import kept_arrays
from experiments.lib.sharing import shared
from experiments.lib.small import FlatMlp, SmallData, small_data, stack_seeds
from experiments.registry import Experiment, ExperimentConfig

GD, SLOWER, POLYAK, NESTEROV, ADAM, SGD, CROSS_ENTROPY = ARMS = (
    "gd",
    "gd_slower",
    "polyak",
    "nesterov",
    "adam",
    "sgd",
    "cross_entropy",
)
# The values are set for each arm; momentum 0 is gradient descent.
HEAVY_BALL = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.0)
ACCELERATED = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.0, nesterov=True)
ADAM_OPTIMIZER = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)


@dataclass(frozen=True, kw_only=True)
class Config(ExperimentConfig):
    """The options."""

    seeds: int = 3
    first_seed: int = 100

    data: str = "digits"
    """The data set."""

    train_size: int = 300
    """Examples, all of them in every batch."""

    label_noise: float = 0.2
    """Share of wrong labels: they make the sharpness of gradient flow rise further."""

    width: int = 64
    """Units of each of the hidden layers."""

    learning_rate: float = 0.2
    """Of gradient descent, of SGD and as the unit of time of gradient flow ..."""

    slower_rate: float = 0.16
    """... and another one."""

    momentum: float = 0.9
    """Of heavy ball and Nesterov."""

    momentum_threshold: float = 14.0
    """Their learning rates make this sharpness the edge."""

    adam_rate: float = 3e-3
    """Adam's learning rate."""

    batch_size: int = 30
    """SGD's."""

    cross_entropy_rate: float = 0.8
    """Of gradient descent on cross-entropy with half of the labels wrong."""

    steps: int = 2000
    """Updates."""

    flow_steps: int = 1000
    """Gradient flow runs for the time of this many."""

    arms: tuple[str, ...] = ARMS
    """Which optimisers; claims about others remain open. `gd` must be among them."""

    every: int = 4
    """Updates between two measurements of the sharpness."""

    chunk: int = 1000
    """Updates between two saves."""

    taylor_steps: int = 60
    """Steps on the quadratic model."""


PRESETS = {
    "smoke": Config(
        seeds=1,
        train_size=40,
        width=8,
        learning_rate=0.6,
        steps=48,
        flow_steps=24,
        chunk=24,
        taylor_steps=4,
        arms=(GD, SLOWER),
    ),
    "cpu": Config(),
    "gpu": Config(data="cifar10", train_size=5000, width=200, learning_rate=0.02, steps=20000),
    "paper": Config(
        data="cifar10", train_size=5000, width=200, learning_rate=0.01, steps=60000, every=50
    ),
}

_COHEN, _ADAM_PAPER = "Cohen et al. 2021", "Cohen et al. 2022"
_SEEDS = "set on seeds 0-4"


def _settles(name: str, what: str, paper: str, low: float, high: float) -> Claim:
    return Claim(
        name=f"{name}-settles-at-the-edge",
        statement=f"Over the last half of {what} the mean of sharpness / threshold is 1.",
        paper=paper,
        low=low,
        high=high,
        reason=_SEEDS,
    )


def _claim(name: str, statement: str, low: float | None, high: float | None) -> Claim:
    return Claim(name=name, statement=statement, paper=_COHEN, low=low, high=high, reason=_SEEDS)


CLAIMS = {
    c.name: c
    for c in (
        _settles("gd", "gradient descent", _COHEN, 0.98, 1.04),
        _settles("gd-slower", "gradient descent with a smaller step", _COHEN, 0.98, 1.04),
        _settles("polyak", "heavy ball", _COHEN, 0.95, 1.03),
        _settles("nesterov", "Nesterov's method", _COHEN, 0.97, 1.03),
        _settles("adam", "Adam (its preconditioned sharpness)", _ADAM_PAPER, 0.95, 1.03),
        _claim(
            "gd-stays-within-the-edge",
            "The 99th percentile of sharpness / threshold over the last half is little above 1.",
            0.98,
            1.08,
        ),
        _claim(
            "sgd-stays-below",
            "SGD with the same step settles at a smaller sharpness / threshold.",
            None,
            0.95,
        ),
        _claim(
            "cross-entropy-reaches-the-edge",
            "With cross-entropy the largest sharpness / threshold is at least 1 ...",
            1.0,
            None,
        ),
        _claim(
            "cross-entropy-falls-at-the-end",
            "... and the last sharpness is well below the largest.",
            None,
            0.7,
        ),
        _claim("loss-ends-low", "The last training loss; it is 1.5 at first.", None, 0.03),
        _claim(
            "loss-oscillates-at-the-edge",
            "Share of the steps of the last half of gradient descent that raise the loss.",
            0.25,
            0.6,
        ),
        _claim(
            "loss-falls-monotonically-before",
            "Steps that raise the loss before the sharpness first crosses 2 / eta.",
            None,
            0.0,
        ),
        _claim(
            "gradient-flow-goes-beyond",
            "Largest sharpness of gradient flow over gradient descent's 2 / eta.",
            1.3,
            None,
        ),
        _claim(
            "descent-follows-the-flow-before",
            "Distance of descent and flow over the way of the flow, at the crossing.",
            None,
            0.15,
        ),
        _claim(
            "descent-leaves-the-flow-at-the-edge",
            "Distance of descent and flow at the end of the flow over that at the crossing.",
            3.0,
            None,
        ),
        _claim(
            "quadratic-model-before",
            "log10 of quadratic model / loss after the steps on both, from half of the crossing.",
            -0.3,
            0.3,
        ),
        _claim(
            "quadratic-model-edge",
            "The same from the point of largest sharpness at the edge.",
            4.0,
            None,
        ),
    )
}


def arms(config: Config) -> dict[str, dynamics.Arm]:
    """The optimisers by name."""
    c = config

    def threshold(kind, rate, **options):
        return float(flatjax.stability_threshold(kind, rate, **options))

    def momentum(name, kind):
        # The threshold is inversely proportional to the learning rate.
        rate = threshold(kind, 1.0, momentum=c.momentum) / c.momentum_threshold
        optimizer = {POLYAK: HEAVY_BALL, NESTEROV: ACCELERATED}[name]
        given = {"learning_rate": rate, "momentum": c.momentum}
        return dynamics.Arm(name, optimizer, given, c.momentum_threshold)

    def plain(name, rate, batch_size=None):
        given = {"learning_rate": rate, "momentum": 0.0}
        return dynamics.Arm(name, HEAVY_BALL, given, threshold("gd", rate), batch_size)

    adam = threshold("adam", c.adam_rate, b1=0.9)
    found = [
        plain(GD, c.learning_rate),
        plain(SLOWER, c.slower_rate),
        momentum(POLYAK, "heavy_ball"),
        momentum(NESTEROV, "nesterov"),
        dynamics.Arm(ADAM, ADAM_OPTIMIZER, {"learning_rate": c.adam_rate}, adam),
        plain(SGD, c.learning_rate, c.batch_size),
        plain(CROSS_ENTROPY, c.cross_entropy_rate),
    ]
    unknown = set(c.arms) - {arm.name for arm in found}
    if unknown or GD not in c.arms:
        raise ExperimentError(f"arms are {GD} and any of {', '.join(ARMS)}; got {c.arms}")
    return {arm.name: arm for arm in found if arm.name in c.arms}


def make_data(config: Config, label_noise: float) -> SmallData:
    """The data of all seeds."""
    options = {"train_size": config.train_size, "label_noise": label_noise}
    return stack_seeds(
        [small_data(config.data, seed=seed, **options) for seed in config.seed_range()]
    )


@functools.cache
def network(inputs: int, width: int) -> FlatMlp:
    """The tanh network with two hidden layers; one object, so that programs are compiled once."""
    return FlatMlp((inputs, width, width, 10))


@functools.cache
def losses_of(net: FlatMlp, loss: str) -> dynamics.LossesFn:
    """Per-example losses of a network; one function object for each."""
    return net.losses(loss)


def setup(config: Config, arm: str) -> tuple[dynamics.LossesFn, SmallData, jax.Array]:
    """Loss, data and initial parameters of an arm, the latter two of all seeds."""
    noise, loss = (config.label_noise, "squared_error")
    if arm == CROSS_ENTROPY:
        noise, loss = 0.5, "cross_entropy"
    data = make_data(config, noise)
    net = network(data.inputs.shape[-1], config.width)
    return losses_of(net, loss), data, net.init_seeds(config.seed_range())


def run_arm(config: Config, out: Path, arm: dynamics.Arm) -> tuple[jax.Array, dict[str, Any]]:
    """Trains one arm on all seeds: the last parameters, and what was recorded."""
    say(arm.name, enabled=not config.quiet)
    return dynamics.train(
        out / arm.name,
        arm,
        *setup(config, arm.name),
        steps=config.steps,
        every=config.every,
        chunk=config.chunk,
        quiet=config.quiet,
    )


def run_flow(config: Config, out: Path) -> dict[str, Any]:
    """The gradient flow from the same start, beside gradient descent."""
    say("gradient flow", enabled=not config.quiet)
    return dynamics.gradient_flow(
        out / "flow",
        *setup(config, GD),
        learning_rate=config.learning_rate,
        steps=config.flow_steps,
        every=config.every,
        chunk=config.chunk,
        quiet=config.quiet,
    )


def crossing(ratio: np.ndarray) -> int | None:
    """The first measurement at which the sharpness is above the edge."""
    above = np.flatnonzero(ratio > 1)
    return int(above[0]) if len(above) else None


def run_models(config: Config, out: Path, ratio: np.ndarray) -> dict[str, np.ndarray]:
    """The quadratic model before the edge and at it: (seeds, loss or model, steps)."""

    def made() -> dict[str, np.ndarray]:
        losses_fn, data, params = setup(config, GD)
        found: dict[str, list] = {"before": [], "edge": []}
        for i, row in enumerate(ratio):
            first = crossing(row)
            at = {"before": (first or len(row)) // 2, "edge": int(np.argmax(row)) + 1}
            own, inputs, targets = jax.tree.map(
                lambda a, i=i: a[i], (params, data.inputs, data.targets)
            )
            for name, blocks in at.items():
                values = dynamics.quadratic_model(
                    losses_fn,
                    own,
                    (inputs, targets),
                    config.learning_rate,
                    blocks * config.every,
                    config.taylor_steps,
                )
                found[name].append(np.stack(values))
        return {name: np.stack(values) for name, values in found.items()}

    return kept_arrays(out / "quadratic_model.npz", made)


def measure(
    config: Config,
    records: dict[str, dict[str, np.ndarray]],
    ratios: dict[str, np.ndarray],
    flow: dict[str, np.ndarray],
    models: dict[str, np.ndarray],
) -> dict[str, dict[int, float | None]]:
    """The number of every claim for every seed."""
    missing: dict[int, float | None] = dict.fromkeys(config.seed_range())
    found = {name: dict(missing) for name in CLAIMS}
    for i, seed in enumerate(config.seed_range()):
        late = {name: r[i, r.shape[1] // 2 :] for name, r in ratios.items()}
        for name in set(late) & {GD, SLOWER, POLYAK, NESTEROV, ADAM}:
            found[f"{name.replace('_', '-')}-settles-at-the-edge"][seed] = float(late[name].mean())
        found["gd-stays-within-the-edge"][seed] = float(np.quantile(late[GD], 0.99))
        if SGD in late:
            found["sgd-stays-below"][seed] = float(late[SGD].mean())
        if CROSS_ENTROPY in late:
            ratio = ratios[CROSS_ENTROPY][i]
            found["cross-entropy-reaches-the-edge"][seed] = float(ratio.max())
            found["cross-entropy-falls-at-the-end"][seed] = float(ratio[-1] / ratio.max())
        first = crossing(ratios[GD][i])
        rises = np.diff(records[GD]["loss"][i]) > 0
        found["loss-ends-low"][seed] = float(records[GD]["loss"][i, -1])
        found["loss-oscillates-at-the-edge"][seed] = float(rises[len(rises) // 2 :].mean())
        # One update later an instability may show in the loss; none before.
        found["loss-falls-monotonically-before"][seed] = (
            None if first is None else float(rises[: first * config.every].sum())
        )
        found["gradient-flow-goes-beyond"][seed] = float(
            flow["sharpness"][i].max() * config.learning_rate / 2
        )
        distance = flow["distance"][i]
        if first is not None and first < len(distance):
            found["descent-follows-the-flow-before"][seed] = float(
                distance[first] / flow["moved"][i, first]
            )
            found["descent-leaves-the-flow-at-the-edge"][seed] = float(
                distance[-1] / distance[first]
            )
        for name in ("before", "edge"):
            loss, model = models[name][i, :, -1]
            found[f"quadratic-model-{name}"][seed] = float(np.log10(abs(model) / loss))
    return found


def main(config: Config) -> None:
    """Runs the experiment, or shows the finished run."""
    with run_folder(config) as out:
        chosen = arms(config)
        work = {name: lambda arm=arm: run_arm(config, out, arm)[1] for name, arm in chosen.items()}
        records = shared(work | {"flow": lambda: run_flow(config, out)})
        flow = records.pop("flow")
        ratios = {name: records[name]["sharpness"] / chosen[name].threshold for name in records}
        models = run_models(config, out, ratios[GD])
        numbers = measure(config, records, ratios, flow, models)
        verdicts: list[Verdict] = [judge(CLAIMS[name], v) for name, v in numbers.items()]
        pictures.draw_edge(
            out / "sharpness.png",
            ratios,
            flow["sharpness"] * config.learning_rate / 2,
            config.every,
        )
        pictures.draw_model(out / "quadratic_model.png", models["before"], models["edge"])
        figures = [
            Figure("sharpness.png", "Sharpness over the threshold; every seed is a line."),
            Figure("quadratic_model.png", "Gradient descent on loss and quadratic Taylor model."),
        ]
        write_summary(out, config, verdicts, figures)


EXPERIMENT = Experiment(main=main, presets=PRESETS)
