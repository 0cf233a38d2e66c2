"""Epoch-wise double descent: generalise, memorise, consolidate; the Fisher trace peaks in between.

Nakkiran et al. (ICLR 2020, "Deep Double Descent") and Heckel & Yilmaz (ICLR 2021) see the test
error of one run fall, rise while wrong labels are memorised, and fall again. Here the second
descent is drift along the manifold of zero training error towards flat regions, driven by fresh
noise on the targets (Blanc et al., COLT 2020; Damian et al., NeurIPS 2021): phase one is plain SGD
until every label is fitted, the wrong 20 % too; phase two goes on with target noise, and, as a
control, without.

    python -m experiments epoch_double_descent                     # three seeds, 42 seconds

Expected: the test loss rises by a fifth or more in phase one, and falls in phase two to about two
thirds of its first minimum, with all wrong labels still fitted; tr F (of squared error, so the mean
squared norm of the outputs' Jacobian) and the largest Hessian eigenvalue fall with it, to a fifth,
while the norm of the weights stays. Without noise nothing falls. A plain MLP on these data, without
target noise, has no second descent (twelve recipes were tried): its test loss only rises.

gpu and paper: larger fully connected networks on CIFAR-10, when it is prepared.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatjax
from experiments.lib.nets import losses
from experiments.lib.training import minibatch
from experiments.lib.training.minibatch import Recipe
from experiments.lib.training.settings import train_settings
from experiments.lib.verdicts.claims import Claim, by_name, judge_all
from experiments.lib.verdicts.curves import curve
from experiments.lib.verdicts.figures import figure
from experiments.lib.verdicts.summary import Figure, run_folder, write_summary
from experiments.registry import Experiment, Options


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    data: str = "digits"
    """The data set."""

    train_size: int = 200
    """Training examples."""

    label_noise: float = 0.2
    """The fraction of wrong labels."""

    noise: float = 0.3
    """Standard deviation of the target noise of the second phase; the control has none."""

    learning_rate: float = 0.05
    """Of SGD, in both phases."""

    fit_epochs: int = 400
    """The first phase: fit the labels, the wrong ones too."""

    network: Recipe = Recipe(
        hidden=(64, 64), activation="relu", init_scale=float(np.sqrt(2.0)),
        loss="squared_error", batch_size=20, epochs=4400, record_every=20,
    )  # fmt: skip
    """Network, and epochs of both phases together."""


_LARGE = Recipe(
    hidden=(512, 512), activation="relu", init_scale=float(np.sqrt(2.0)), loss="squared_error",
    batch_size=128, epochs=2200, record_every=10,
)  # fmt: skip

PRESETS = {
    "smoke": Config(
        seeds=1, first_seed=0, train_size=40, fit_epochs=4,
        network=Recipe(
            hidden=(8,), activation="relu", loss="squared_error", batch_size=20, epochs=8,
            record_every=2,
        ),
    ),
    "cpu": Config(),
    "gpu": Config(
        data="cifar10", train_size=5000,
        learning_rate=0.01, fit_epochs=200, network=_LARGE,
    ),
    "paper": Config(
        data="cifar10", train_size=50_000,
        learning_rate=0.01, fit_epochs=200, network=_LARGE,
    ),
}  # fmt: skip

_NAKKIRAN = "Nakkiran et al. 2020; Heckel & Yilmaz 2021"
_DRIFT = "Blanc et al. 2020; Damian et al. 2021"

CLAIMS = by_name(
    Claim(
        name="memorising-hurts",
        statement="Memorising raises the test loss: at the end of phase one over its minimum.",
        paper=_NAKKIRAN,
        low=1.15,
        reason="1.27 to 1.43 on seeds 0-4",
    ),
    Claim(
        name="second-descent",
        statement="The test loss after the drift over its first minimum.",
        paper=_NAKKIRAN,
        high=0.8,
        reason="0.669 to 0.772 on seeds 0-4",
    ),
    Claim(
        name="stays-fitted",
        statement="The least fraction of the wrong labels that is fitted during the drift.",
        paper=_DRIFT,
        low=0.99,
        reason="1 to 1 on seeds 0-4",
    ),
    Claim(
        name="fisher-falls",
        statement="tr F after the drift over tr F before.",
        paper=_DRIFT,
        high=0.35,
        reason="0.197 to 0.215 on seeds 0-4",
    ),
    Claim(
        name="sharpness-falls",
        statement="The largest Hessian eigenvalue after the drift over that before.",
        paper=_DRIFT,
        high=0.35,
        reason="0.125 to 0.144 on seeds 0-4",
    ),
    Claim(
        name="fisher-goes-with-loss",
        statement="Correlation of tr F and test loss over the records of the drift.",
        paper="the consolidation hypothesis (Achille et al. 2019)",
        low=0.9,
        reason="0.988 to 0.994 on seeds 0-4",
    ),
    Claim(
        name="no-shrinkage",
        statement="The norm of the weights after the drift over that before.",
        paper=_DRIFT,
        low=0.9,
        high=1.05,
        reason="0.981 to 0.994 on seeds 0-4",
    ),
    Claim(
        name="control-loss",
        statement="Without noise: test loss at the end over that at the end of phase one.",
        paper=_DRIFT,
        low=1.0,
        reason="1.07 to 1.1 on seeds 0-4",
    ),
    Claim(
        name="control-fisher",
        statement="Without noise: tr F at the end over that at the end of phase one.",
        paper=_DRIFT,
        low=1.0,
        reason="1.08 to 1.11 on seeds 0-4",
    ),
)


def measure(recipe: Recipe, params: Any, data: Any, key: Any) -> dict[str, jax.Array]:
    """Trace of the Fisher information and largest Hessian eigenvalue of one run."""
    batch = minibatch.training_batch(recipe, data)
    loss = losses.OUTPUT_LOSSES[recipe.loss]
    fisher = flatjax.fisher(minibatch.model_of(recipe), loss, params, batch)
    hessian = flatjax.hessian(minibatch.losses_fn(recipe.activation, recipe.loss), params, batch)
    top = flatjax.power_iteration(hessian, key=key, max_products=15)
    return {
        "trace_fisher": flatjax.trace(fisher, key=key, num_products=8).value,
        "sharpness": top.values[0],
    }


def run(config: Config, out: Path) -> dict[str, dict[str, np.ndarray]]:
    """The records, by seed and point, of `fit`, `drift` and `control`."""
    seeds = list(config.seed_range())
    data = minibatch.load_seeds(
        config.data, seeds, train_size=config.train_size, label_noise=config.label_noise
    )
    recipe = config.network
    model_fn, loss = minibatch.model_of(recipe), losses.OUTPUT_LOSSES[recipe.loss]
    fit_steps = config.fit_epochs * (config.train_size // (recipe.batch_size or config.train_size))

    def noisy_sgd(seed, noise):
        scale = lambda count: jnp.where(count < fit_steps, 0.0, noise)  # noqa: E731
        return optax.chain(
            flatjax.label_noise(model_fn, loss, scale=scale, seed=seed),
            optax.sgd(config.learning_rate),
        )

    found = train_settings(
        out / "sgd",
        recipe,
        data,
        seeds,
        noisy_sgd,
        {"drift": config.noise, "control": 0.0},
        measure=functools.partial(measure, recipe),
        quiet=config.quiet,
    )
    turn = config.fit_epochs // recipe.record_every
    after = {arm: {k: v[:, turn:] for k, v in runs.records.items()} for arm, runs in found.items()}
    return {"fit": {k: v[:, : turn + 1] for k, v in found["drift"].records.items()}, **after}


def numbers(records: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The measured number of every claim, one a seed."""
    fit, drift, control = records["fit"], records["drift"], records["control"]
    least = fit["test_loss"].min(1)

    def change(phase, name):
        return phase[name][:, -1] / phase[name][:, 0]

    together = zip(drift["trace_fisher"], drift["test_loss"], strict=True)
    return {
        "memorising-hurts": fit["test_loss"][:, -1] / least,
        "second-descent": drift["test_loss"][:, -1] / least,
        "stays-fitted": drift["noisy_fit"].min(1),
        "fisher-falls": change(drift, "trace_fisher"),
        "sharpness-falls": change(drift, "sharpness"),
        "fisher-goes-with-loss": np.array([np.corrcoef(a, b)[0, 1] for a, b in together]),
        "no-shrinkage": change(drift, "norm"),
        "control-loss": change(control, "test_loss"),
        "control-fisher": change(control, "trace_fisher"),
    }


def draw(path: Path, config: Config, records: dict[str, dict[str, np.ndarray]]) -> None:
    """Test loss, fit of the labels and curvature over both phases."""
    fit, start = records["fit"], config.fit_epochs
    panels = (
        ("test_loss", "test loss"),
        ("trace_fisher", "tr F"),
        ("sharpness", "largest Hessian eigenvalue"),
    )
    with figure(path, 1, 4, panel=(3.3, 3.0), dpi=100) as axes:
        for panel, (name, label) in zip(axes, panels, strict=False):
            # The first record is the untrained network, far off the scale.
            curve(panel, fit["epoch"][0][1:], fit[name][:, 1:], 6, "SGD")
            for number, (arm, text) in enumerate(
                (("drift", f"target noise {config.noise:g}"), ("control", "no noise"))
            ):
                phase = records[arm]
                curve(panel, phase["epoch"][0], phase[name], number, text)
            panel.set(xscale="log", xlabel="epoch", title=label)
            panel.axvline(start, color="#888888", linewidth=0.8)
        axes[0].legend()
        for number, name in enumerate(("clean_fit", "noisy_fit", "noisy_recovered")):
            curve(axes[3], fit["epoch"][0][1:], fit[name][:, 1:], number, name.replace("_", " "))
            drift = records["drift"]
            curve(axes[3], drift["epoch"][0], drift[name], number)
        axes[3].set(xscale="log", xlabel="epoch", title="fraction of the training labels")
        axes[3].legend()


def main(config: Config) -> None:
    """Runs the experiment, or shows the finished run."""
    with run_folder(config) as out:
        records = run(config, out)
        found = numbers(records)
        draw(out / "epochs.png", config, records)
        caption = "Mean over seeds and two standard errors; the line is the end of phase one."
        write_summary(
            out,
            config,
            judge_all(CLAIMS, found, config.seed_range()),
            [Figure("epochs.png", caption)],
            {"least_test_loss": records["fit"]["test_loss"].min(1)},
        )


EXPERIMENT = Experiment(main=main, presets=PRESETS)
