"""The optimisers, what they train, and gradient flow and the quadratic model beside them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax

import flatjax
from experiments.edge_of_stability import dynamics
from experiments.lib.data.small import SmallData, small_data, stack_seeds
from experiments.lib.nets.mlp import FlatMlp
from experiments.lib.runs.errors import ExperimentError
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.runs.progress import say

if TYPE_CHECKING:
    from experiments.edge_of_stability import Config

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
