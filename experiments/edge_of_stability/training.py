"""The optimisers, what they train, and what is measured at the edge afterwards."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatjax
from experiments.edge_of_stability import dynamics
from experiments.edge_of_stability.numbers import crossing
from experiments.lib.data.small import SmallData
from experiments.lib.nets.flat import FlatNetwork, flat_network
from experiments.lib.runs.errors import ExperimentError
from experiments.lib.runs.progress import say
from experiments.lib.training.minibatch import load_seeds

if TYPE_CHECKING:
    from experiments.edge_of_stability import Config

KINDS = ("gd", "rates", "polyak", "nesterov", "adam", "sgd", "cross_entropy")
# The values are set for each arm; momentum 0 is gradient descent.
HEAVY_BALL = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.0)
ACCELERATED = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.0, nesterov=True)
ADAM = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)


def arms(config: Config) -> dict[str, dynamics.Arm]:
    """The optimisers by name."""
    threshold = flatjax.stability_threshold

    def momentum(optimizer, kind, beta, edge):
        # The threshold is inversely proportional to the learning rate.
        rate = float(threshold(kind, 1.0, momentum=beta)) / edge
        return dynamics.Arm(optimizer, {"learning_rate": rate, "momentum": beta}, edge)

    def plain(rate, batch_size=None):
        given = {"learning_rate": rate, "momentum": 0.0}
        return dynamics.Arm(HEAVY_BALL, given, float(threshold("gd", rate)), batch_size)

    rate, adam = config.learning_rate, {"learning_rate": config.adam_rate}
    found = {
        "gd": {"gd": plain(rate)},
        "rates": {f"gd_{other:g}": plain(other) for other in config.other_rates},
        "polyak": {"polyak": momentum(HEAVY_BALL, "heavy_ball", *config.heavy_ball)},
        "nesterov": {"nesterov": momentum(ACCELERATED, "nesterov", *config.nesterov)},
        "adam": {
            "adam": dynamics.Arm(ADAM, adam, float(threshold("adam", config.adam_rate, b1=0.9)))
        },
        "sgd": {f"sgd_{size}": plain(rate, size) for size in config.batch_sizes},
        "cross_entropy": {"cross_entropy": plain(config.cross_entropy_rate)},
    }
    if set(config.arms) - set(found) or "gd" not in config.arms:
        raise ExperimentError(f"arms are gd and any of {', '.join(found)}; got {config.arms}")
    return {name: arm for kind in KINDS if kind in config.arms for name, arm in found[kind].items()}


def setup(config: Config, arm: str) -> tuple[FlatNetwork, SmallData, jax.Array]:
    """Network, data and initial parameters of an arm, the latter two of all seeds."""
    noise, architecture = config.label_noise, config.architecture
    if arm == "cross_entropy":
        noise, architecture = 0.5, dataclasses.replace(architecture, loss="cross_entropy")
    seeds = list(config.seed_range())
    data = load_seeds(
        config.data,
        seeds,
        train_size=config.train_size,
        label_noise=noise,
        test_size=1,  # nothing is tested
        num_classes=architecture.classes,
        flat=architecture.flat,
    )
    net = flat_network(architecture, data.inputs.shape[2:])
    return net, data, net.init_seeds(seeds)


def run_arm(config: Config, out: Path, name: str) -> dict[str, np.ndarray]:
    """What is recorded of one arm on all seeds; `flow` is gradient flow."""
    say(name, enabled=not config.quiet)
    times = {"every": config.every, "chunk": config.chunk, "quiet": config.quiet}
    if name == "flow":
        options = {"learning_rate": config.learning_rate, "steps": config.flow_steps, **times}
        records = dynamics.gradient_flow(out / name, *setup(config, "gd"), **options)
        return records | {"ratio": records["sharpness"] * config.learning_rate / 2}
    arm = arms(config)[name]
    records = dynamics.train(out / name, arm, *setup(config, name), steps=config.steps, **times)
    records["plain_ratio"] = records["sharpness"] * arm.hyperparams["learning_rate"] / 2
    return records | {"ratio": records["sharpness"] / arm.threshold}


def edge(config: Config, descent: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of every seed: two eigenvalues at start and end; loss and model from two points, (2, steps).

    The points are half of the way to the crossing, and the one of the largest sharpness.
    """
    net, data, params = setup(config, "gd")
    found: dict[str, list] = {"start": [], "end": [], "before": [], "at": []}
    for i, row in enumerate(descent["ratio"]):
        batch = data.inputs[i], data.targets[i]
        for name, point in (("start", params[i]), ("end", descent["last"][i])):
            hessian = flatjax.hessian(net.losses_fn, jnp.asarray(point), batch)
            found[name].append(flatjax.eigsh(hessian, 2, key=jax.random.key(0)).values)
        half = (crossing(row) or len(row)) // 2 * config.every
        for name, point, when in (("before", params[i], half), ("at", descent["at_top"][i], 0)):
            options = config.learning_rate, when, config.taylor_steps
            curves = dynamics.quadratic_model(net.losses_fn, jnp.asarray(point), batch, *options)
            found[name].append(np.stack(curves))
    return {name: np.stack(values) for name, values in found.items()}
