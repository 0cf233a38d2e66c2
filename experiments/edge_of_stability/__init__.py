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

from dataclasses import dataclass

from experiments.edge_of_stability import pictures
from experiments.edge_of_stability.claims import CLAIMS, measure
from experiments.edge_of_stability.training import (
    ARMS,
    GD,
    SLOWER,
    arms,
    run_arm,
    run_flow,
    run_models,
)
from experiments.lib.runs.shares import shared
from experiments.lib.verdicts.claims import judge_all
from experiments.lib.verdicts.summary import Figure, run_folder, write_summary
from experiments.registry import Experiment, Options


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

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


def main(config: Config) -> None:
    """Runs the experiment, or shows the finished run."""
    with run_folder(config) as out:
        chosen = arms(config)
        work = {name: lambda arm=arm: run_arm(config, out, arm)[1] for name, arm in chosen.items()}
        records = shared(config, work | {"flow": lambda: run_flow(config, out)})
        flow = records.pop("flow")
        ratios = {name: records[name]["sharpness"] / chosen[name].threshold for name in records}
        models = run_models(config, out, ratios[GD])
        numbers = measure(config, records, ratios, flow, models)
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
        write_summary(out, config, judge_all(CLAIMS, numbers, config.seed_range()), figures)


EXPERIMENT = Experiment(main=main, presets=PRESETS, shares=True)
