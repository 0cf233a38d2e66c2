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

paper: larger fully connected networks on CIFAR-10, when it is prepared.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import flatjax
from experiments.lib.lab import Lab, Options, Runs
from experiments.lib.nets import losses
from experiments.lib.training import minibatch
from experiments.lib.training.minibatch import Recipe
from experiments.lib.training.settings import train_settings
from experiments.lib.verdicts.curves import curve, words


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 200  # training examples
    label_noise: float = 0.2  # the fraction of wrong labels
    noise: float = 0.3  # standard deviation of the target noise of phase two; the control has none
    learning_rate: float = 0.05  # of SGD, in both phases
    fit_epochs: int = 400  # the first phase: fit the labels, the wrong ones too
    recipe: Recipe = Recipe(  # network, and epochs of both phases together
        hidden=(64, 64),
        activation="relu",
        init_scale=float(np.sqrt(2.0)),
        loss="squared_error",
        batch_size=20,
        epochs=4400,
        record_every=20,
    )


# fmt: off
lab = Lab(
    Config, "Nakkiran et al. 2020; Heckel & Yilmaz 2021", shares=False,
    smoke={"seeds": 1, "train_size": 40, "fit_epochs": 4,
           "recipe": {"hidden": (8,), "init_scale": 1.0, "epochs": 8, "record_every": 2}},
    real={"data": "fashion_mnist", "seeds": 3, "train_size": 4000, "learning_rate": 0.02,
          "fit_epochs": 100,
          "recipe": {"network": "s2cnn-16", "batch_size": 128, "epochs": 400, "record_every": 5}},
    paper={"data": "cifar10", "train_size": 50_000, "learning_rate": 0.01, "fit_epochs": 200,
           "recipe": {"hidden": (512, 512), "batch_size": 128, "epochs": 2200, "record_every": 10}},
)
# fmt: on
EXPERIMENT = lab.experiment


def measure(recipe: Recipe, params: Any, model_state: Any, data: Any, key: Any) -> dict[str, Any]:
    """Trace of the Fisher information and largest Hessian eigenvalue of one run."""
    batch = minibatch.training_batch(recipe, data)
    loss = losses.OUTPUT_LOSSES[recipe.loss]
    fisher = flatjax.fisher(minibatch.model_of(recipe), loss, params, batch, model_state)
    hessian = flatjax.hessian(minibatch.losses_fn(recipe), params, batch, model_state)
    top = flatjax.power_iteration(hessian, key=key, max_products=15)
    return {
        "trace_fisher": flatjax.trace(fisher, key=key, num_products=8).value,
        "sharpness": top.values[0],
    }


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The records, by seed and point, of `fit`, `drift` and `control`."""
    seeds, recipe = list(config.seed_range()), config.recipe
    data = minibatch.load_seeds(
        config.data,
        seeds,
        train_size=config.train_size,
        label_noise=config.label_noise,
        flat=recipe.flat,
    )
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


def change(arm: str, name: str) -> Any:
    """The measure of a claim on a record at the end of a phase over that at its start."""
    return lambda runs, config: runs[arm][name][:, -1] / runs[arm][name][:, 0]


def over_least(arm: str) -> Any:
    """The measure of a claim on the test loss at the end of a phase over its first minimum."""
    return lambda runs, config: runs[arm]["test_loss"][:, -1] / runs["fit"]["test_loss"].min(1)


def together(runs: Runs, config: Config) -> np.ndarray:
    """The correlation of tr F and test loss in the drift, for every seed."""
    pairs = zip(runs["drift"]["trace_fisher"], runs["drift"]["test_loss"], strict=True)
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in pairs])


DRIFT = "Blanc et al. 2020; Damian et al. 2021"

# fmt: off
lab.claim("memorising-hurts",
          "Memorising raises the test loss: at the end of phase one over its minimum.",
          over_least("fit"), low=1.15, source="seeds", reason="1.27 to 1.43 on seeds 0-4")
lab.claim("second-descent", "The test loss after the drift over its first minimum.",
          over_least("drift"), high=0.8, source="seeds", reason="0.669 to 0.772 on seeds 0-4")
lab.claim("stays-fitted", "The least fraction of the wrong labels that is fitted in the drift.",
          lambda runs, config: runs["drift"]["noisy_fit"].min(1), low=0.99, paper=DRIFT,
          source="seeds", reason="1 to 1 on seeds 0-4")
lab.claim("fisher-falls", "tr F after the drift over tr F before.",
          change("drift", "trace_fisher"), high=0.35, paper=DRIFT,
          source="seeds", reason="0.197 to 0.215 on seeds 0-4")
lab.claim("sharpness-falls", "The largest Hessian eigenvalue after the drift over that before.",
          change("drift", "sharpness"), high=0.35, paper=DRIFT,
          source="seeds", reason="0.125 to 0.144 on seeds 0-4")
lab.claim("fisher-goes-with-loss",
          "Correlation of tr F and test loss over the records of the drift.",
          together, low=0.9, paper="the consolidation hypothesis (Achille et al. 2019)",
          source="seeds", reason="0.988 to 0.994 on seeds 0-4")
lab.claim("no-shrinkage", "The norm of the weights after the drift over that before.",
          change("drift", "norm"), low=0.9, high=1.05, paper=DRIFT,
          source="seeds", reason="0.981 to 0.994 on seeds 0-4")
lab.claim("control-loss",
          "Without noise: test loss at the end over that at the end of phase one.",
          change("control", "test_loss"), low=1.0, paper=DRIFT,
          source="seeds", reason="1.07 to 1.1 on seeds 0-4")
lab.claim("control-fisher", "Without noise: tr F at the end over that at the end of phase one.",
          change("control", "trace_fisher"), low=1.0, paper=DRIFT,
          source="seeds", reason="1.08 to 1.11 on seeds 0-4")
# fmt: on

PANELS = ("test_loss", "trace_fisher", "sharpness")


@lab.figure(
    "Mean over seeds and two standard errors; the line is the end of phase one.",
    columns=4,
    panel=(3.3, 3.0),
)
def epochs(axes: Any, runs: Runs, config: Config) -> None:
    """Test loss, curvature and fit of the labels over both phases."""
    fit = runs["fit"]
    arms = (("drift", f"target noise {config.noise:g}"), ("control", "no noise"))
    # The first record is the untrained network, far off the scale.
    for panel, name in zip(axes, PANELS, strict=False):
        curve(panel, fit["epoch"][0][1:], fit[name][:, 1:], 6, "SGD")
        for number, (arm, text) in enumerate(arms):
            curve(panel, runs[arm]["epoch"][0], runs[arm][name], number, text)
        panel.set(xscale="log", xlabel="epoch", ylabel=words(name))
        panel.axvline(config.fit_epochs, color="#888888", linewidth=0.8)
    for number, name in enumerate(("clean_fit", "noisy_fit", "noisy_recovered")):
        curve(axes[3], fit["epoch"][0][1:], fit[name][:, 1:], number, words(name))
        curve(axes[3], runs["drift"]["epoch"][0], runs["drift"][name], number)
    axes[3].set(xscale="log", xlabel="epoch", ylabel="fraction of the training labels")
    axes[0].legend()
    axes[3].legend()


@lab.extra
def least(runs: Runs, config: Config) -> dict[str, Any]:
    """The first minimum of the test loss."""
    return {"least_test_loss": runs["fit"]["test_loss"].min(1)}
