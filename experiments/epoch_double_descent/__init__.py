"""Epoch-wise double descent: generalise, memorise, consolidate; the Fisher trace peaks in between.

Nakkiran et al. (ICLR 2020, "Deep Double Descent") and Heckel & Yilmaz (ICLR 2021) see the test
error of one run fall, rise while wrong labels are memorised, and fall again. A plain MLP on these
data does not do so by itself (twelve recipes were tried): its test loss falls and then rises. Here
the second descent is switched on: phase one is plain SGD until every label is fitted, the wrong
20 % too; phase two adds fresh noise to the targets, which makes SGD drift along the manifold of
zero training error towards flat regions (Blanc et al., COLT 2020; Damian et al., NeurIPS 2021), at
a speed that goes with the square of the noise. The control goes on without noise. Beside them is a
plain run, by Adam at a small rate without any noise, for the descent that nobody switches on.

    python -m experiments epoch_double_descent

Found: with the noise the test loss falls to 0.71 of its first minimum, its error only to 0.93 ±
0.03: the second descent is one of the loss. tr F falls to a fifth and the sharpness to a seventh.
Double the noise drifts 6.0 ± 0.3 times as fast, not 4. At the best epoch 92 % of the wrong labels
are fitted already: there is no phase that generalises before it memorises. The test error of the
plain run rises by 5.5 ± 0.7 points and stays there, while tr F goes to zero with the loss. On
Fashion-MNIST tr F and the sharpness fall to 0.17 and 0.13, the test loss only to 0.93; the plain
run's error rises by 8.3 ± 0.3 points and stays, and tr F peaks while wrong labels are memorised.

tr F is that of squared error, so the mean squared norm of the outputs' Jacobian; of the plain run
it is that of cross-entropy.

real: a small convolutional network on Fashion-MNIST. paper: the ResNet18 of Nakkiran et al. on
CIFAR-10, when it is prepared; the plain run is in their schedule.
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
from experiments.epoch_double_descent import plain
from experiments.epoch_double_descent.plain import PLAIN, of_octaves
from experiments.lib.lab import Lab, Options, Runs
from experiments.lib.nets import losses
from experiments.lib.training import minibatch, recipes
from experiments.lib.training.descent import Descent, descent, updates
from experiments.lib.training.recipes import Recipe
from experiments.lib.training.settings import train_settings
from experiments.lib.verdicts.curves import curve, words
from experiments.lib.verdicts.statistics import climb


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 200  # training examples
    test_size: int | None = None  # test examples; None for all
    label_noise: float = 0.2  # the fraction of wrong labels
    noise: float = 0.3  # standard deviation of the target noise of phase two; the control has none
    descent: Descent = Descent(learning_rate=0.05)  # in both phases
    measured: int | None = None  # training examples of tr F and the eigenvalue; None for all
    fit_epochs: int = 400  # the first phase: fit the labels, the wrong ones too
    plain_size: int = 200  # training examples of the plain run
    plain_descent: Descent = Descent(optimizer="adam", learning_rate=1e-3)  # of the plain run
    plain: Recipe = Recipe(
        hidden=(64, 64), activation="relu", init_scale=2**0.5, batch_size=20, epochs=1024,
        record_every=4,
    )  # the network of the plain run, with cross-entropy  # fmt: skip
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
    Config, "Nakkiran et al. 2020; Heckel & Yilmaz 2021", shares=False, data_parallel=True,
    smoke={"seeds": 1, "train_size": 40, "fit_epochs": 4,
           "recipe": {"hidden": (8,), "init_scale": 1.0, "epochs": 8, "record_every": 2},
           "plain_size": 40, "plain": {"hidden": (8,), "epochs": 8, "record_every": 2}},
    real={"data": "fashion_mnist", "seeds": 3, "test_size": 2000, "fit_epochs": 200,
          "measured": 100,
          "recipe": {"network": "s2cnn-8", "epochs": 1000, "record_every": 10},
          "plain_size": 2000, "plain_descent": {"learning_rate": 3e-4},
          "plain": {"network": "s2cnn-16", "batch_size": 128, "epochs": 512, "record_every": 4}},
    # The plain run is that of Nakkiran et al. 2020, but that their blocks are pre-activated; where
    # no source is named the value is ours. Targets with noise need squared error.
    paper={"data": "cifar10", "train_size": 50_000, "label_noise": 0.2,  # figure 2
           "descent": {"optimizer": "adam", "learning_rate": 1e-4},  # appendix B
           "fit_epochs": 100,  # about where the test error peaks in figure 2
           "measured": 256,
           "recipe": {"network": "resnet-18-64",  # figure 2
                      "batch_size": 128, "epochs": 4000,  # appendix B, figure 2
                      "flip": True, "crop": 4,  # appendix B
                      "record_every": 20},
           "plain_size": 50_000, "plain_descent": {"learning_rate": 1e-4},
           "plain": {"network": "resnet-18-64", "batch_size": 128, "epochs": 4000,
                     "flip": True, "crop": 4, "record_every": 20}},
)
# fmt: on
EXPERIMENT = lab.experiment


def measure(
    recipe: Recipe, count: int | None, params: Any, model_state: Any, data: Any, key: Any
) -> dict[str, Any]:
    """Trace of the Fisher information and largest Hessian eigenvalue of one run."""
    batch = recipes.training_batch(recipe, data, count)
    loss = losses.OUTPUT_LOSSES[recipe.loss]
    fisher = flatjax.fisher(recipes.model_of(recipe), loss, params, batch, model_state)
    hessian = flatjax.hessian(recipes.losses_fn(recipe), params, batch, model_state)
    top = flatjax.power_iteration(hessian, key=key, max_products=15)
    return {
        "trace_fisher": flatjax.trace(fisher, key=key, num_products=8).value,
        "sharpness": top.values[0],
    }


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The records, by seed and point, of `fit`, `drift`, `slow`, `control` and `plain`."""
    seeds, recipe = list(config.seed_range()), config.recipe
    data = minibatch.load_seeds(
        config.data,
        seeds,
        train_size=config.train_size,
        test_size=config.test_size,
        label_noise=config.label_noise,
        flat=recipe.flat,
        num_classes=recipe.classes,
    )
    model_fn, loss = recipes.model_of(recipe), losses.OUTPUT_LOSSES[recipe.loss]
    fit_steps = config.fit_epochs * updates(recipe, config.train_size)

    def noisy_sgd(seed, noise):
        scale = lambda count: jnp.where(count < fit_steps, 0.0, noise)  # noqa: E731
        return optax.chain(
            flatjax.label_noise(model_fn, loss, scale=scale, seed=seed),
            descent(config.descent, recipe, config.train_size),
        )

    found = train_settings(
        out / "sgd",
        recipe,
        data,
        seeds,
        noisy_sgd,
        {"drift": config.noise, "slow": config.noise / 2, "control": 0.0},
        measure=functools.partial(measure, recipe, config.measured),
        quiet=config.quiet,
    )
    turn = config.fit_epochs // recipe.record_every
    after = {arm: {k: v[:, turn:] for k, v in runs.records.items()} for arm, runs in found.items()}
    layers = sum(a.ndim > 2 for a in jax.tree.leaves(found["drift"].params))  # one axis of seeds
    after["drift"]["layers"] = np.full(len(seeds), layers)
    after[PLAIN] = plain.train(
        config, out, functools.partial(measure, config.plain, config.measured)
    )
    return {"fit": {k: v[:, : turn + 1] for k, v in found["drift"].records.items()}, **after}


def change(arm: str, name: str) -> Any:
    """The measure of a claim on a record at the end of a phase over that at its start."""
    return lambda runs, config: runs[arm][name][:, -1] / runs[arm][name][:, 0]


def over_least(arm: str, name: str = "test_loss") -> Any:
    """The measure of a claim on a loss at the end of a phase over its least in phase one."""
    return lambda runs, config: runs[arm][name][:, -1] / runs["fit"][name].min(1)


def test_error(runs: Runs, arm: str) -> np.ndarray:
    """(seeds, points) the share of the test examples that is misclassified."""
    return 1 - runs[arm]["test_accuracy"]


def error_over_least(arm: str) -> Any:
    """The measure of a claim on the test error at the end of a phase over its first minimum."""
    return lambda runs, config: test_error(runs, arm)[:, -1] / test_error(runs, "fit").min(1)


def fitted_at_the_best(runs: Runs, config: Config) -> np.ndarray:
    """The fraction of the wrong labels that is fitted where the test error is first least."""
    best = test_error(runs, "fit").argmin(1)[:, None]
    return np.take_along_axis(runs["fit"]["noisy_fit"], best, 1)[:, 0]


def of_scale_alone(runs: Runs, config: Config) -> np.ndarray:
    """What the norm would do if tr F fell as in the drift by the scale of the weights alone.

    The outputs of a homogeneous network go with the power of the scale that is its number of
    layers, their derivatives by the weights with one less, tr F with twice that.
    """
    return change("drift", "trace_fisher")(runs, config) ** (0.5 / (runs["drift"]["layers"] - 1))


LEVEL = 0.75
"""Of tr F without noise; the time to fall to it measures the speed of the drift."""


def time_to_fall(runs: Runs, arm: str) -> np.ndarray:
    """The epochs of phase two after which tr F is first at the level, for every seed; or NaN."""
    found = []
    ratios = runs[arm]["trace_fisher"] / runs["control"]["trace_fisher"]
    for epochs, above in zip(runs[arm]["epoch"], ratios - LEVEL, strict=True):
        i = int((above <= 0).argmax())
        if i == 0:
            found.append(np.nan)
            continue
        share = above[i - 1] / (above[i - 1] - above[i])
        found.append(epochs[i - 1] + share * (epochs[i] - epochs[i - 1]) - epochs[0])
    return np.array(found)


def slowing(runs: Runs, config: Config) -> np.ndarray:
    """How much longer tr F takes to fall with half the noise."""
    return time_to_fall(runs, "slow") / time_to_fall(runs, "drift")


def slowing_of_another(runs: Runs, config: Config) -> np.ndarray:
    """The same of two drifts that only differ by their seed."""
    times = time_to_fall(runs, "drift")
    return np.roll(times, 1) / times


DRIFT = "Blanc et al. 2020; Damian et al. 2021"

# fmt: off
lab.claim("memorising-hurts",
          "Memorising raises the test loss: at the end of phase one over its minimum.",
          over_least("fit"), low=1.2, source="seeds",
          reason="the papers show error; 1.27 to 1.43 on seeds 0-4; null: the training loss",
          null=over_least("fit", "train_loss"))
lab.claim("memorised-after-the-best",
          "The fraction of the wrong labels that is fitted where the test error is first least.",
          fitted_at_the_best, high=0.5, source="margin", reason="few of them; null: the end",
          null=lambda runs, config: runs["fit"]["noisy_fit"][:, -1])
lab.claim("second-descent", "The test loss after the drift over its first minimum.",
          over_least("drift"), high=0.8, source="seeds",
          reason="the papers show error; 0.669 to 0.772 on seeds 0-4; null: the control",
          null=over_least("control"))
lab.claim("second-descent-of-error", "The test error after the drift over its first minimum.",
          error_over_least("drift"), high=1.0, source="sign", reason="null: the control",
          null=error_over_least("control"))
lab.claim("stays-fitted", "The least fraction of the wrong labels that is fitted in the drift.",
          lambda runs, config: runs["drift"]["noisy_fit"].min(1), low=0.99, paper=DRIFT,
          source="theory", reason="along the manifold; null: the untrained network",
          null=lambda runs, config: runs["fit"]["noisy_fit"][:, 0])
lab.claim("fisher-falls", "tr F after the drift over tr F before.",
          change("drift", "trace_fisher"), high=0.35, paper=DRIFT,
          source="seeds", reason="theory has no end; 0.197 to 0.215 on 0-4; null: the control",
          null=change("control", "trace_fisher"))
lab.claim("sharpness-falls", "The largest Hessian eigenvalue after the drift over that before.",
          change("drift", "sharpness"), high=0.35, paper=DRIFT,
          source="seeds", reason="theory has no end; 0.125 to 0.144 on 0-4; null: the control",
          null=change("control", "sharpness"))
lab.claim("speed-is-noise-squared",
          "Epochs until tr F is three quarters of the control's, with half the noise over those "
          "with all.",
          slowing, low=3.0, high=5.3, paper=DRIFT, source="theory",
          reason="4 in the limit of small noise, within a third; null: another seed",
          null=slowing_of_another)
lab.claim("no-shrinkage", "The norm of the weights after the drift over that before.",
          change("drift", "norm"), low=0.9, high=1.05, paper=DRIFT,
          source="theory", null=of_scale_alone,
          reason="it is not the scale that falls; null: what it would be if it were")
lab.claim("control-loss",
          "Without noise: test loss at the end over that at the end of phase one.",
          change("control", "test_loss"), low=1.0, paper=DRIFT,
          source="sign", reason="null: with noise", null=change("drift", "test_loss"))
lab.claim("control-fisher", "Without noise: tr F at the end over that at the end of phase one.",
          change("control", "trace_fisher"), low=1.0, paper=DRIFT,
          source="sign", reason="null: with noise", null=change("drift", "trace_fisher"))

TRAIN = "null: the training error"
lab.claim("plain-error-rises",
          "The plain run: how far the test error rises above its least before, octaves of epochs.",
          of_octaves(climb, "test_error"), low=0.02, source="margin",
          reason=f"5 to 10 points in the first paper's figure 2; {TRAIN}",
          null=of_octaves(climb, "train_error"))
lab.claim("plain-error-falls-again", "And how far it has fallen from that peak at the end.",
          of_octaves(plain.fall, "test_error"), low=0.02, source="margin",
          reason="10 points and more in that figure; null: how far it rose, negative",
          null=lambda runs, config: [
              -n for n in of_octaves(climb, "test_error")(runs, config)
          ])
lab.claim("plain-fisher-falls", "The plain run: tr F at the end over the largest, in octaves.",
          of_octaves(plain.end_over_largest, "trace_fisher"), high=0.5, source="margin",
          reason="it vanishes with the loss; null: the norm of the weights",
          null=of_octaves(plain.end_over_largest, "norm"), paper="Achille et al. 2019")
# fmt: on


@lab.figure(
    "Mean over seeds and two standard errors; the line is the end of phase one.",
    rows=2,
    columns=3,
    panel=(4.0, 3.0),
)
def epochs(axes: Any, runs: Runs, config: Config) -> None:
    """Error, loss, fit of the labels and curvature over both phases."""
    arms = {
        "drift": f"noise {config.noise:g}",
        "slow": f"noise {config.noise / 2:g}",
        "control": "no noise",
    }
    error, fit, fractions = axes[0, 0], runs["fit"], axes[0, 2]
    names = ("test_loss", "trace_fisher", "sharpness", "norm")
    # The first record is the untrained network, far off the scale.
    start = {name: values[:, 1:] for name, values in fit.items()}
    for panel, name in zip((axes[0, 1], *axes[1]), names, strict=True):
        curve(panel, start["epoch"][0], start[name], 6, "phase one")
        for number, (arm, text) in enumerate(arms.items()):
            curve(panel, runs[arm]["epoch"][0], runs[arm][name], number, text)
        panel.set(ylabel=words(name))
    for kind, alpha in (("test", 1.0), ("train", 0.5)):
        name = f"{kind}_accuracy"
        curve(error, start["epoch"][0], 1 - start[name], 6, f"phase one, {kind}", alpha=alpha)
        for number, (arm, text) in enumerate(arms.items()):
            x, y = runs[arm]["epoch"][0], 1 - runs[arm][name]
            curve(error, x, y, number, text if kind == "test" else "", alpha=alpha)
    error.set(ylabel="error")
    for number, name in enumerate(("clean_fit", "noisy_fit", "noisy_recovered")):
        curve(fractions, start["epoch"][0], start[name], number, words(name))
        curve(fractions, runs["drift"]["epoch"][0], runs["drift"][name], number)
    fractions.set(ylabel="fraction of the training labels")
    for panel in axes.ravel():
        panel.set(xscale="log", xlabel="epoch")
        panel.axvline(config.fit_epochs, color="#888888", linewidth=0.8)
    error.legend(fontsize=7)
    fractions.legend(fontsize=7)


@lab.figure(
    "The plain run: test error and trace of F on one axis of time, as the talk's figure; mean over "
    "seeds and two standard errors.",
    panel=(6.0, 3.6),
)
def by_itself(axis: Any, runs: Runs, config: Config) -> None:
    """Errors to the left, tr F to the right."""
    records = {name: values[:, 1:] for name, values in runs[PLAIN].items()}
    epochs = records["epoch"][0]
    for number, kind in enumerate(("test", "train")):
        curve(axis, epochs, records[f"{kind}_error"], number, f"{kind} error")
    axis.set(xscale="log", xlabel="epoch", ylabel="error")
    right = axis.twinx()
    curve(right, epochs, records["trace_fisher"], 2, r"tr $F$")
    right.set(yscale="log", ylabel=r"tr $F$")
    right.grid(visible=False)
    lines = [*axis.get_lines(), *right.get_lines()]
    axis.legend(lines, [line.get_label() for line in lines], fontsize=8)


@lab.extra
def least(runs: Runs, config: Config) -> dict[str, Any]:
    """The first minima of the test loss and error."""
    least_error = test_error(runs, "fit").min(1)
    return {"least_test_loss": runs["fit"]["test_loss"].min(1), "least_test_error": least_error}
