"""Epoch-wise double descent of a linear model: features learned in times of their own, superposed.

Heckel and Yilmaz (ICLR 2021, "Early Stopping in Deep Networks: Double Descent and How to Eliminate
it"): each feature of a linear model trained by gradient descent has a bias that falls and a
variance that rises, in a time that goes with the inverse of step size times squared scale. Where
strong and weak features differ in scale, the sum of these U-shaped curves falls, rises and falls
again. Step sizes that make all times equal remove the second descent, and the best risk is lower
for it, as no feature is overfitted while another is learned.

100 features of scale 1 and 10 of scale 0.05, 20,000 examples and sigma = 10, so that the strong
features alone add sigma^2 d / n = 0.5 of variance; in double precision, over 20 draws of inputs
with 25 of the noise each. The risk is the excess over sigma^2. The formula is that of infinitely
many examples: on other seeds, with 5,000 and the same sigma^2 / n, the risk was up to 2.4 % above
it and its peak 6.5 % later. Beside it the paper's network, 250 hidden units and 100 examples
without noise, with equal step sizes and with a smaller one for its first layer.

    python -m experiments epoch_risk

Found: the risk is within 1 % of the formula, falls until step 13.6, rises by 28 % until step 116
and falls to 0.65 of its first minimum; with scaled steps the least risk is 0.67 of that with equal
ones. The network shows neither: with equal steps its error only jumps in the first forty, as such a
step is too long at first, and a smaller step for the first layer ends no better, 1.06 ± 0.03.

paper: the network for 50,000 steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.epoch_risk.linear import Problem, extrema, formula, simulated
from experiments.epoch_risk.network import risks
from experiments.lib.lab import Lab, Options, Runs, shared
from experiments.lib.runs.kept import each_seed
from experiments.lib.verdicts.curves import curve
from experiments.lib.verdicts.figures import style

ARMS = {
    "equal": "equal steps",
    "scaled": "$\\eta_i \\propto 1 / s_i^2$",
    "opposite": "$\\eta_i \\propto s_i^2$",
}
"""The step sizes, and how a figure calls them."""
PAPER_NETWORK = {"equal": (8e-5, 8e-5), "two": (1e-6, 8e-5), "small": (1e-6, 1e-6)}
"""Step sizes of the layers; the third is a null."""


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    features: tuple[int, int] = (100, 10)  # strong and weak features
    scales: tuple[float, float] = (1.0, 0.05)  # s of each
    signals: tuple[float, float] = (0.5, 0.6)  # sum of s^2 theta^2 over each
    samples: int = 20_000  # n
    noise: float = 10.0  # sigma
    step: float = 0.05  # eta of the strong features
    steps: int = 30_000  # of gradient descent
    times: int = 400  # records, evenly in the logarithm
    draws: int = 20  # of the inputs
    noises: int = 25  # of the targets' noise, for each of these
    hidden: int = 250  # units of the network
    network_steps: int = 3000  # of gradient descent there


# fmt: off
lab = Lab(
    Config, "Heckel & Yilmaz 2021",
    smoke={"seeds": 1, "features": (8, 2), "samples": 200, "times": 30, "draws": 2, "noises": 3,
           "hidden": 6, "network_steps": 20},
    # Their code: 50,000 steps of the network.
    paper={"network_steps": 50_000},
)
# fmt: on
EXPERIMENT = lab.experiment


def problem(config: Config) -> Problem:
    """The linear model: equal coefficients within each kind of features."""
    scales = np.repeat(config.scales, config.features)
    shares = np.repeat(np.array(config.signals) / config.features, config.features)
    return Problem(scales, np.sqrt(shares) / scales, config.samples, config.noise)


def step_sizes(config: Config, arm: str) -> np.ndarray:
    """Step sizes (d,); that of the strong features is the same in all arms."""
    relative = problem(config).scales / config.scales[0]
    return config.step * relative ** {"equal": 0, "scaled": -2, "opposite": 2}[arm]


def times(config: Config) -> np.ndarray:
    """Numbers of steps at which the linear model is looked at; they need not be whole."""
    return np.geomspace(1, config.steps, config.times)


def network_times(config: Config) -> tuple[int, ...]:
    """Those of the network."""
    return tuple(np.unique(np.geomspace(1, config.network_steps, 150).astype(int)).tolist())


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The risks of the arms, (seeds, times), and of the network with each pair of step sizes."""

    def of_seed(seed: int, folder: Path) -> dict[str, Any]:
        sizes = config.draws, config.noises, seed
        network = {
            name: risks(config.hidden, rates, network_times(config), seed)
            for name, rates in PAPER_NETWORK.items()
        }
        return {"network": network} | {
            arm: {
                "risk": simulated(problem(config), step_sizes(config, arm), times(config), *sizes)
            }
            for arm in ARMS
        }

    found = shared(config, each_seed(config, of_seed))
    first = next(iter(found.values()))
    return {
        arm: {name: np.array([f[arm][name] for f in found.values()], float) for name in records}
        for arm, records in first.items()
    }


def theory(config: Config, arm: str, factor: float = 1.0) -> np.ndarray:
    """The formula's risk, with all step sizes multiplied."""
    return formula(problem(config), factor * step_sizes(config, arm), times(config))


def off(arm: str, factor: float = 1.0) -> Any:
    """The measure of a claim: the largest relative distance from the formula."""
    return lambda runs, config: abs(runs[arm]["risk"] / theory(config, arm, factor) - 1).max(1)


def epoch(which: int, factor: float = 1.0) -> Any:
    """The measure of a claim: when the first minimum (0) or maximum (1) is, over the formula's."""

    def measure(runs: Runs, config: Config) -> list[float]:
        expected = extrema(times(config), theory(config, "equal", factor))[which]
        each = [extrema(times(config), risk)[which] for risk in runs["equal"]["risk"]]
        return [e[0] / expected[0] if e and expected else np.nan for e in each]

    return measure


def first_minimum(risk: np.ndarray) -> np.ndarray:
    """The risk of every seed where it first rises."""
    rises = np.diff(risk, axis=1) > 0
    return np.take_along_axis(risk, rises.argmax(1)[:, None], 1)[:, 0]


def peak(risk: np.ndarray) -> np.ndarray:
    """The largest risk of every seed after it first rises, or the last one if it never does."""
    rises = np.logical_or.accumulate(np.diff(risk, axis=1) > 0, axis=1)
    return np.maximum(np.where(rises, risk[:, 1:], -np.inf).max(1), risk[:, -1])


def rise_and_fall(arm: str) -> Any:
    """The measure of a claim: the peak over first minimum or end, whichever is less."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        risk = runs[arm]["risk"]
        return np.minimum(peak(risk) / first_minimum(risk), peak(risk) / risk[:, -1])

    return measure


def falls_again(arm: str) -> Any:
    """The measure of a claim: the peak over the end."""
    return lambda runs, config: peak(runs[arm]["risk"]) / runs[arm]["risk"][:, -1]


def end(arm: str) -> Any:
    """The measure of a claim: the last risk over the first minimum of equal steps."""
    return lambda runs, config: runs[arm]["risk"][:, -1] / first_minimum(runs["equal"]["risk"])


def best(arm: str) -> Any:
    """The measure of a claim: the least risk over the least one with equal steps."""
    return lambda runs, config: runs[arm]["risk"].min(1) / runs["equal"]["risk"].min(1)


def best_of_network(rates: str) -> Any:
    """The measure of a claim: the least risk over the least one with equal steps."""
    return lambda runs, config: runs["network"][rates].min(1) / runs["network"]["equal"].min(1)


# fmt: off
TWICE = "null: the formula with twice the step sizes, as if the loss had no half"
for arm, what in {"equal": "equal steps", "scaled": "scaled steps"}.items():
    lab.claim(f"{arm}-follows-the-formula",
              f"Largest relative distance of the mean risk from the formula, with {what}.",
              off(arm), high=0.03, source="theory", null=off(arm, 2.0),
              reason=f"0 for many examples, here d / n = 0.006 and the error of the mean; {TWICE}")
for which, what in enumerate(("first-minimum", "peak")):
    lab.claim(f"epoch-of-{what}",
              f"Epoch of the risk's {what.replace('-', ' ')} over that of the formula.",
              epoch(which), low=0.95, high=1.05, source="theory", null=epoch(which, 2.0),
              reason=f"1, and a twentieth either way for the examples; {TWICE}")
OPPOSITE = "null: steps in proportion to s^2"
lab.claim("rises-and-falls-again",
          "Risk at the peak over that at the first minimum or at the end, whichever is less.",
          rise_and_fall("equal"), low=1.2, source="theory", null=rise_and_fall("opposite"),
          reason=f"the formula has 1.27; {OPPOSITE}")
lab.claim("second-descent", "Last risk over that at the first minimum.", end("equal"), high=0.8,
          source="theory", reason=f"the formula has 0.64; {OPPOSITE}", null=end("opposite"))
lab.claim("scaled-has-no-peak",
          "Largest risk after the first rise over the last, with steps in proportion to 1 / s^2.",
          falls_again("scaled"), high=1.03, source="theory", null=falls_again("equal"),
          reason="1, as in the distance from the formula; null: equal steps")
lab.claim("scaled-is-better",
          "Least risk with steps in proportion to 1 / s^2 over the least with equal steps.",
          best("scaled"), high=0.75, source="theory", reason=f"the formula has 0.67; {OPPOSITE}",
          null=best("opposite"))
lab.claim("network-is-better",
          "Network: least risk with a smaller step for the first layer over that with equal steps.",
          best_of_network("two"), high=1.0, source="sign",
          reason="null: the smaller step for both layers", null=best_of_network("small"))
# fmt: on


@lab.figure(
    "The linear model, means over seeds (points) and the formula (lines); the parts of its risk "
    "with equal steps, by features; and the network.",
    columns=3,
)  # fmt: skip
def epochs(axes: Any, runs: Runs, config: Config) -> None:
    """Risk over training."""
    whole, parts, network = axes
    t, few = times(config), slice(None, None, max(1, config.times // 25))
    for number, (arm, label) in enumerate(ARMS.items()):
        chosen = style(number)
        mean = runs[arm]["risk"].mean(0)
        whole.plot(t[few], mean[few], chosen["marker"], color=chosen["color"], label=label)
        whole.plot(t, theory(config, arm), color=chosen["color"], linestyle=chosen["linestyle"])
    model, sizes = problem(config), step_sizes(config, "equal")
    for number, scale in enumerate(config.scales):
        of_kind = model.scales == scale
        kind = Problem(model.scales[of_kind], model.theta[of_kind], model.samples, model.noise)
        for noise, what in ((0.0, "bias"), (config.noise, "sum with variance")):
            line = formula(kind._replace(noise=noise), sizes[of_kind], t)
            label = f"$s = {scale:g}$, {what}"
            parts.plot(t, line, **style(2 * number + (noise > 0), markers=False), label=label)
    parts.plot(t, theory(config, "equal"), color="#000000", linewidth=2.2, label="their sum")
    records = np.array(network_times(config))
    for number, (rates, label) in enumerate((("equal", "equal steps"), ("two", "two steps"))):
        curve(network, records, runs["network"][rates], number, label)
    whole.set(ylabel="risk $- \\sigma^2$")
    parts.set(ylabel="parts of the formula", ylim=(None, 1.75))
    network.set(ylabel="mean absolute error of the network", yscale="log")
    for panel in axes:
        panel.set(xscale="log", xlabel="steps of gradient descent")
        panel.legend(fontsize=7)


@lab.extra
def numbers(runs: Runs, config: Config) -> dict[str, Any]:
    """Epochs and values of the extrema, of the formula and of every seed; the network's risks."""
    line = theory(config, "equal")
    return {
        "formula_extrema": extrema(times(config), line),
        "extrema": [extrema(times(config), risk) for risk in runs["equal"]["risk"]],
        "least_risk": {arm: runs[arm]["risk"].min(1) for arm in ARMS},
        "least_risk_of_network": {n: r.min(1) for n, r in runs["network"].items()},
        "last_risk_of_network": {n: r[:, -1] for n, r in runs["network"].items()},
    }
