"""A typical sample of exp(-L / T) against the mode: its losses and its gap, in closed form.

Langevin dynamics returns samples of a distribution, not the minimum of the training loss, whose gap
to the test loss learning theory bounds (Welling and Teh, ICML 2011; Mandt et al., JMLR 2017).
On least squares with N = 100 Gaussian examples everything is known. Equipartition: a sample has
T / 2 more training loss than the mode for each of d weights, and with a prior of precision tau the
potential has, while the training loss has T / 2 for each of the tr H (H + tau)^-1 weights that the
data determine (MacKay's effective number). The mode's gap is sigma^2 d / 2 (1/N + 1/(N - d - 1)); a
typical sample's is larger by T d / 2 (d + 1)/(N - d - 1) without a prior. With the posterior's own
T = sigma^2 / N and tau = T a typical sample at d = N is far better than the minimum of the training
loss, whose gap has a pole there; the mode of the same posterior is better still.

SGLD (`flatjax.langevin`) is run on many data sets side by side. The second part only reports: an
MLP of two widths on 100 digits, its posterior at several temperatures.

There are no presets real and paper: the formulas are exact, and a larger setting adds nothing.

    python -m experiments typical_sample        # five seeds, two minutes

Found: all of it, to 1 % for the losses and 2 % for the gaps at the worst number of weights. At
d = N the minimum has a hundred times the test loss of a typical sample; from 1.5 N on the minimum
of least norm has the smaller gap. The networks' gap grows with the temperature; that of 64 units is
smaller than that of 8 up to T = 0.01 (0.33 against 0.42), the same at 0.1 and twice as large at 1:
that larger models have typical samples with a smaller gap is seen of cold posteriors only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.lab import Lab, Options, Runs, Table, shared
from experiments.lib.runs.errors import BadNetwork
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.training.recipes import Recipe
from experiments.lib.verdicts.figures import COLORS, style
from experiments.lib.verdicts.statistics import mean_and_error, with_error
from experiments.typical_sample import gaussian
from experiments.typical_sample.parts import (
    Arm,
    along_widths,
    arms,
    minima,
    network,
    samples,
    temperature,
)


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    examples: int = 100  # N of least squares
    sigma: float = 0.5  # standard deviation of the noise of its targets
    flat: tuple[int, ...] = (25, 50)  # weights d, without a prior
    heats: tuple[float, ...] = (1.0, 10.0)  # temperatures there, times sigma^2 / N; with 1
    posterior: tuple[int, ...] = (50, 100, 200)  # weights d, with the prior N(0, 1)
    flat_sets: int = 48  # data sets of a seed, without a prior ...
    posterior_sets: int = 20  # ... and with
    mode_sets: int = 2000  # data sets of the mode, of which no samples are drawn
    step: float = 0.03  # learning rate times the largest curvature
    flat_steps: int = 16_000  # of SGLD, measured
    posterior_steps: int = 10_000  # the same with the prior
    curve: tuple[int, ...] = (10, 25, 40, 60, 75, 85, 92, 108, 120, 150, 200, 300)  # d of a figure
    train_size: int = 100  # training examples of the MLP
    recipe: Recipe = Recipe(batch_size=None, epochs=2000, record_every=50)  # its training
    widths: tuple[int, ...] = (8, 64)  # its hidden units
    temperatures: tuple[float, ...] = (0.0, 0.01, 0.1, 1.0)  # of exp(-N L / T)
    rate: float = 0.2  # SGLD's learning rate for the mean loss

    def __post_init__(self):
        if 1.0 not in self.heats:
            raise ValueError("heats has 1 among them: that of the posterior")


# fmt: off
lab = Lab(
    Config, "Welling & Teh 2011",
    smoke={"seeds": 2, "examples": 12, "flat": (3,), "heats": (1.0,), "posterior": (4, 12, 16),
           "flat_sets": 3, "posterior_sets": 2, "mode_sets": 5, "flat_steps": 20,
           "posterior_steps": 20, "curve": (3, 20), "train_size": 20, "widths": (4,),
           "temperatures": (0.0, 0.1), "recipe": {"epochs": 4, "record_every": 2}},
)
# fmt: on
EXPERIMENT = lab.experiment


@lab.run
def run(config: Config, out: Path) -> Runs:
    """Losses on least squares by arm, `minima`, `curve`, and the losses of the MLP."""
    if not config.recipe.flat:
        raise BadNetwork("the widths are those of a fully connected network: leave out --network")
    kept = lambda name, make: functools.partial(kept_arrays, out / f"{name}.npz", make)  # noqa: E731
    work: dict[str, Any] = {
        name: kept(name.replace(" ", "_"), functools.partial(samples, config, name))
        for name in arms(config)
    }
    work["minima"] = kept("minima", lambda: minima(config))
    work["curve"] = kept("curve", lambda: along_widths(config))
    work |= {f"mlp {w}": functools.partial(network, config, out, w) for w in config.widths}
    return shared(config, work)


Quantity = Callable[[dict[str, np.ndarray], Arm, Config], Any]


def excess(own: dict[str, np.ndarray], arm: Arm, config: Config) -> np.ndarray:
    """What samples have more training loss than the mode."""
    return own["train"] - own["mode_train"]


def potential(own: dict[str, np.ndarray], arm: Arm, config: Config) -> np.ndarray:
    """The same of the training loss with the prior."""
    return excess(own, arm, config) + arm.precision * (own["norm"] - own["mode_norm"])


def wider(own: dict[str, np.ndarray], arm: Arm, config: Config) -> np.ndarray:
    """By how much their gap is larger than the mode's."""
    return own["test"] - own["mode_test"] - excess(own, arm, config)


def share(number: Callable[[dict[str, np.ndarray], Arm], Any]) -> Quantity:
    """T / 2 for each of so many weights."""
    return lambda own, arm, config: arm.heat / 2 * number(own, arm)


def off(found: Quantity, expected: Quantity, kind: str, *, heat: float | None = None) -> Any:
    """The measure of a claim: the largest relative distance from theory, over arms of a kind.

    Args:
      found: of an arm's records.
      expected: of the same.
      kind: flat or posterior.
      heat: only the arms of so many times the posterior's temperature.
    """

    def measure(runs: Runs, config: Config) -> np.ndarray:
        each = []
        for name, arm in arms(config).items():
            if name.startswith(kind) and heat in (None, arm.heat / temperature(config)):
                given = runs[name], arm, config
                each.append(abs(found(*given) / expected(*given) - 1))
        return np.max(each, axis=0)

    return measure


def minimum_off(formula: Callable[[float, int, int], float]) -> Any:
    """The measure of a claim: how far the mean gaps of minima are from a formula."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        expected = [formula(config.sigma, config.examples, d) for d in config.flat]
        return abs(runs["minima"]["gap"] / expected - 1).max(1)

    return measure


def over_minimum(arm: Callable[[Config], str]) -> Any:
    """The measure of a claim: log of the test loss of samples over that of the minimum."""
    return lambda runs, config: runs[arm(config)]["over_minimum"]


# fmt: off
WEIGHTS = share(lambda own, arm: arm.weights)
STEP = "the step adds eta h / 2, at most 1.5 %, the rest is sampling"
lab.claim("equipartition",
          "Largest relative distance of the training loss of samples less its minimum from "
          "T d / 2, over weights and temperatures, without a prior.",
          off(excess, WEIGHTS, "flat"), high=0.03, source="theory",
          reason=f"{STEP}; the null: T d",
          null=off(excess, share(lambda own, arm: 2 * arm.weights), "flat"))
lab.claim("equipartition-of-all-weights",
          "The same of the training loss with the prior, also with more weights than examples.",
          off(potential, WEIGHTS, "posterior"), high=0.03, source="theory",
          reason=f"{STEP}; the null: at most as many as examples",
          null=lambda runs, config: off(
              potential, share(lambda own, arm: min(arm.weights, config.examples)),
              "posterior")(runs, config))
lab.claim("loss-counts-what-data-determine",
          "The same of the training loss alone from T / 2 times the effective number of weights, "
          "tr H (H + tau)^-1.",
          off(excess, share(lambda own, arm: own["effective"]), "posterior"), high=0.03,
          source="theory", paper="MacKay 1992", reason=f"{STEP}; the null: all weights",
          null=off(excess, WEIGHTS, "posterior"))
lab.claim("gap-of-the-minimum",
          "Largest relative distance of the mean gap of the minimum of the training loss from "
          "sigma^2 d / 2 (1 / N + 1 / (N - d - 1)).",
          minimum_off(gaussian.mode_gap), high=0.05, source="theory",
          paper="Breiman & Freedman 1983",
          reason="exact; data sets differ; the null: sigma^2 d / N, for many examples",
          null=minimum_off(lambda sigma, examples, weights: sigma**2 * weights / examples))
lab.claim("gap-of-a-typical-sample",
          "Largest relative distance of what the gap of samples is larger than the minimum's from "
          "T d / 2 (d + 1) / (N - d - 1), without a prior.",
          off(wider, lambda own, arm, config: gaussian.extra_gap(
              arm.heat, config.examples, arm.weights), "flat", heat=1.0), high=0.05,
          source="theory", reason=f"{STEP} and data sets; the null: that of the test loss alone",
          null=off(wider, lambda own, arm, config: gaussian.extra_gap(
              arm.heat, config.examples, arm.weights) + WEIGHTS(own, arm, config), "flat",
              heat=1.0))
lab.claim("gap-of-a-posterior-sample",
          "The same of samples of the posterior and its mode, from T / 2 times the difference of "
          "the traces of (H + tau)^-1 with the test set's second derivatives and with H.",
          off(wider, share(lambda own, arm: own["inverse"] - own["effective"]), "posterior"),
          high=0.05, source="theory", reason=f"{STEP}; the null: that of the test loss alone",
          null=off(wider, share(lambda own, arm: own["inverse"]), "posterior"))
lab.claim("typical-beats-the-minimum",
          "Mean logarithm of the test loss of samples of the posterior over that of the minimum "
          "of the training loss, with as many weights as examples.",
          over_minimum(lambda config: f"posterior {config.examples}"), high=0.0, source="sign",
          reason="the minimum's has a pole there; the null: samples without a prior, fewer weights",
          null=over_minimum(lambda config: f"flat {config.flat[0]} at 1"))
# fmt: on


@lab.figure("Left: what samples have more training loss than the mode, over T / 2: the number of "
            "weights (flat), or of those that the data determine (posterior). Right: gaps along "
            "the number of weights, with SGLD's samples of the posterior (points). Means over "
            "seeds, two standard errors.", columns=2, panel=(4.8, 3.6))  # fmt: skip
def gaps(axes: Any, runs: Runs, config: Config) -> None:
    """Equipartition, and the pole that typical samples do not have."""
    left, right = axes
    for number, kind in enumerate(("flat", "posterior")):
        rows = [(own, arm) for name, arm in arms(config).items() if name.startswith(kind)
                for own in [runs[name]]]  # fmt: skip
        x = [arm.weights if kind == "flat" else own["effective"].mean() for own, arm in rows]
        pairs = [mean_and_error(2 * excess(own, arm, config) / arm.heat) for own, arm in rows]
        left.errorbar(x, [m for m, _ in pairs], [2 * (e or 0.0) for _, e in pairs],
                      **style(number) | {"linestyle": "none"}, label=kind, capsize=3)  # fmt: skip
    ends = np.array(left.get_xlim())
    left.plot(ends, ends, color="#555555", linewidth=0.8)
    left.set(xlabel=r"$d$, or $\mathrm{tr}\,H(H+\tau)^{-1}$", xlim=ends,
             ylabel=r"$2\,(\mathrm{E}\,L - L_{\mathrm{mode}})\,/\,T$")  # fmt: skip
    left.legend()
    names = {"minimum": "minimum of $L$", "mode": "mode of the posterior",
             "typical": "typical sample"}  # fmt: skip
    for number, (name, label) in enumerate(names.items()):
        look = style(number, markers=False) | {"label": label}
        right.plot(config.curve, runs["curve"][name].mean(0), **look)
    drawn = [(runs[f"posterior {d}"]["test"] - runs[f"posterior {d}"]["train"])
             for d in config.posterior]  # fmt: skip
    pairs = [mean_and_error(values) for values in drawn]
    right.errorbar(config.posterior, [m for m, _ in pairs], [2 * (e or 0.0) for _, e in pairs],
                   color=COLORS[2], marker="^", linestyle="none", capsize=3)  # fmt: skip
    right.axvline(config.examples, color="#555555", linewidth=0.8)
    right.set(xlabel="$d$", ylabel="test less training loss", yscale="log")
    right.legend()


@lab.table
def mlp(runs: Runs, config: Config) -> Table:
    """Reported, not judged: what temperature does to networks of two widths."""
    rows = []
    for width in config.widths:
        train, test = (runs[f"mlp {width}"][name] for name in ("train_loss", "test_loss"))
        for k, heat in enumerate(config.temperatures):
            cells = [with_error(values) for values in (train[:, k], test[:, k])]
            number = "" if heat == 0 else with_error(
                2 * config.train_size * (train[:, k] - train[:, 0]) / heat
            )  # fmt: skip
            rows.append([str(width), f"{heat:g}", *cells, with_error((test - train)[:, k]), number])
    return Table(
        ("width", "T", "training loss", "test loss", "gap", "2 N (loss - loss at 0) / T"), rows,
        "SGLD on exp(-N L / T) with the prior N(0, 1), an MLP on digits; not judged. The last "
        "column would be the number of weights that the data determine, were L quadratic.",
    )  # fmt: skip


@lab.extra
def numbers(runs: Runs, config: Config) -> dict[str, Any]:
    """The gaps of the figure, and the losses of the networks."""
    return {"curve": runs["curve"]} | {f"mlp {w}": runs[f"mlp {w}"] for w in config.widths}
