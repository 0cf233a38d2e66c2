"""SGD is Langevin dynamics: its stationary law, exactly, for noise of every kind.

Jastrzebski et al. 2017 ("Three Factors Influencing Minima in SGD"): by the central limit theorem a
batch of S has the gradient plus noise of covariance C / S, so that SGD of rate eta follows a
Langevin equation, its density a Fokker-Planck equation, and for isotropic noise, C = sigma^2, it
ends in Boltzmann's law exp(-2 L / n sigma^2), n = eta / S: of two wells the probabilities are
sqrt(h_B / h_A) exp(2 (L_B - L_A) / n sigma^2). Where theory knows the number, nothing here is a
network: SGD draws its batches from 256 examples whose losses are L(x) - z_i x, on a quadratic,
where the variance at any step size is eta sigma^2 / (S h (2 - eta h)), with heavy-ball momentum,
and on two wells, where runs of (eta, S) and (2 eta, 2 S) on the same examples take away the bias of
the step. Noise that is not isotropic (Chaudhari and Soatto, ICLR 2018) has a stationary law that is
no equilibrium: probability goes round. Along a valley without slope noise of size g(x) collects
where it is small, as 1 / g^2: SGD's noise is Ito's; Stratonovich's would give 1 / g. The noise of
batches itself is that of a network on digits.

There are no presets real and paper: the formulas are exact, and a larger setting adds nothing.

    python -m experiments langevin        # five seeds, two minutes

Found: every law holds within its range. The variance at any step is off by 0.7 % at the worst of 30
settings, the covariance under correlated noise by 0.3 %, the circulation by less than 0.1 %, and
without correlation there is none. Particles are as far from the Fokker-Planck equation as samples
of its solution would be. The odds of the two wells, 1.01, 1.26 and 1.39 as the noise grows, are 0.5
to 1.2 % below Boltzmann's integrals. The slope along the valley is -1.98, Stratonovich's -0.98.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.langevin import figures, theory
from experiments.langevin.measures import (
    boltzmann_off,
    circulates,
    covariance_off,
    grid,
    noise_off,
    odds,
    odds_off,
    over_the_floor,
    slope,
    spread,
    temperature_off,
    variance_off,
)
from experiments.langevin.parts import PARTS, WELLS
from experiments.lib.lab import Lab, Options, Runs, shared
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.runs.progress import say
from experiments.lib.training.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    digits: int = 128  # training examples of the network whose gradients are drawn
    recipe: Recipe = Recipe(hidden=(16,))  # that network
    batch_sizes: tuple[int, ...] = (4, 16, 64, 96)  # of its batches
    draws: int = 60_000  # batches of each size
    curvatures: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)  # of the quadratic
    settings: tuple[tuple[float, int, float], ...] = (
        (0.01, 1, 0.0), (0.02, 2, 0.0), (0.04, 4, 0.0), (0.1, 4, 0.0), (0.02, 2, 0.5),
        (0.02, 2, 0.9),
    )  # learning rate, batch size and momentum on the quadratic  # fmt: skip
    chains: int = 2000  # runs of SGD side by side there
    relaxations: int = 75  # times 1 / (eta h), h the least curvature, that are measured
    plane_rate: float = 0.1  # learning rate in the plane
    plane_chains: int = 8000  # runs of SGD side by side there ...
    plane_steps: int = 750  # ... and the steps that are measured
    particles: int = 20_000  # of the Fokker-Planck equation
    particle_noise: float = 0.6  # their eta sigma^2 / S
    particle_rate: float = 0.001  # their learning rate, small: it takes time to be continuous
    times: tuple[float, ...] = (0.2, 1.0, 5.0)  # of the histograms, in steps times eta
    bins: int = 128  # of the histograms
    noises: tuple[float, ...] = (0.3, 0.45, 0.6)  # eta sigma^2 / S of the two wells
    well_times: tuple[float, ...] = (250.0, 90.0, 50.0)  # measured: ten times the slowest decay
    well_rate: float = 0.01  # the smaller learning rate there
    well_chains: int = 16_384  # runs of SGD side by side there
    walkers: int = 10_000  # along the valley
    walk_steps: int = 1600  # measured there
    walk_scale: float = 0.01  # the least g(x)
    walk_bins: int = 40  # of the density

    def __post_init__(self):
        if len(self.well_times) != len(self.noises):
            raise ValueError("noises and well_times are of the same length")


# fmt: off
lab = Lab(
    Config, "Jastrzebski et al. 2017",
    smoke={"seeds": 2, "digits": 24, "recipe": {"hidden": (4,)}, "batch_sizes": (4, 12),
           "draws": 200, "chains": 20, "relaxations": 2, "plane_chains": 50, "plane_steps": 20,
           "particles": 200, "particle_rate": 0.01, "times": (0.2, 0.5), "bins": 32,
           "noises": (0.6,), "well_times": (5.0,), "well_chains": 50, "walkers": 100,
           "walk_steps": 80, "walk_bins": 4},
)
# fmt: on
EXPERIMENT = lab.experiment


@lab.run
def run(config: Config, out: Path) -> Runs:
    """What every part measures, with a leading axis of seeds."""

    def part(name: str, number: int) -> dict[str, np.ndarray]:
        def every_seed() -> dict[str, np.ndarray]:
            each = []
            for seed in config.seed_range():
                say(f"{name}, seed {seed}", enabled=not config.quiet)
                each.append(PARTS[name](config, seed, np.random.default_rng([seed, number])))
            return {key: np.stack([found[key] for found in each]) for key in each[0]}

        return kept_arrays(out / f"{name}.npz", every_seed)

    work = {name: functools.partial(part, name, k) for k, name in enumerate(PARTS)}
    return shared(config, work)


# fmt: off
SAMPLING = "exact; the rest is sampling"
lab.claim("noise-with-replacement",
          "Largest relative distance of S times the variance of batch gradients from that of the "
          "examples: in all and along the leading axis, over the batch sizes.",
          noise_off("with", finite=False), high=0.02, source="theory",
          reason=f"{SAMPLING}; the null: (N - S) / (N - 1) of it",
          null=noise_off("with", finite=True))
lab.claim("noise-without-replacement",
          "The same without replacement, from (N - S) / (N - 1) times that of the examples.",
          noise_off("without", finite=True), high=0.02, source="theory",
          reason=f"{SAMPLING}; the null: without the factor",
          null=noise_off("without", finite=False))
lab.claim("noise-tends-to-a-gaussian",
          "S times the excess kurtosis of batch gradients over that of the examples, along the "
          "axis where it is largest, smallest batch.",
          lambda runs, config: runs["noise"]["tails"][:, 0], low=0.9, high=1.1, source="theory",
          reason="1: cumulants of independent examples add; fourth moments are sampled to a few "
          "per cent; the null: not times S",
          null=lambda runs, config: runs["noise"]["tails"][:, 0] / config.batch_sizes[0])
lab.claim("variance-at-any-step",
          "Largest relative distance of a stationary variance on the quadratic from that of the "
          "chain, eta (1 + b) / (S h (1 - b) (2 (1 + b) - eta h)).",
          variance_off(theory.chain_variance), high=0.015, source="theory",
          reason=f"{SAMPLING}; the null: Boltzmann's", null=variance_off(theory.boltzmann_variance))
lab.claim("boltzmann-at-small-steps",
          "The same from Boltzmann's variance eta / 2 S h, where eta h is at most 0.02.",
          boltzmann_off(True), high=0.03, source="theory",
          reason="eta h / 2 and sampling; the null: where eta h is larger",
          null=boltzmann_off(False))
lab.claim("rate-over-batch-size",
          "Largest variance over smallest, less 1, of settings of the same eta / S, along the "
          "flattest direction.",
          spread(lambda rate, size: rate / size), high=0.03, source="theory",
          reason="eta h / 2 and sampling; the null: settings of the same S",
          null=spread(lambda rate, size: size))
lab.claim("momentum-heats",
          "Largest relative distance of h times variance from the temperature "
          "eta / (2 S (1 - b)) of momentum b, where eta h is at most 0.02.",
          temperature_off(momentum=True), high=0.03, source="theory",
          reason="eta h / (2 (1 + b)) and sampling; the null: without 1 - b",
          paper="Mandt et al. 2017", null=temperature_off(momentum=False))
CHAUDHARI = {"source": "theory", "paper": "Chaudhari & Soatto 2018"}
lab.claim("covariance-of-any-noise",
          "Largest distance of an entry of the stationary covariance in the plane from the "
          "solution of Lyapunov's discrete equation, in standard deviations of both weights.",
          covariance_off(theory.stationary_covariance), high=0.02,
          reason=f"{SAMPLING}; the null: the continuous equation",
          null=covariance_off(theory.continuous_covariance), **CHAUDHARI)
lab.claim("stationary-is-no-equilibrium",
          "Circulation E[x_1 x'_2 - x_2 x'_1] under correlated noise over an entry of "
          "eta (H Sigma - Sigma H).",
          circulates(0), low=0.97, high=1.03, reason=f"1: {SAMPLING}; the null: isotropic noise",
          null=circulates(1), **CHAUDHARI)
lab.claim("isotropic-noise-is-in-equilibrium", "Circulation under isotropic noise over the same.",
          circulates(1), low=-0.03, high=0.03,
          reason="detailed balance; the null: correlated noise", null=circulates(0), **CHAUDHARI)
lab.claim("fokker-planck",
          "Total variation of particles from the Fokker-Planck equation over that expected of "
          "as many independent draws from its solution; mean over the times.",
          over_the_floor(1.0), low=0.8, high=1.2, source="theory",
          reason="1; one histogram of so many bins is off by a tenth; the null: diffusion "
          "without its 1/2", null=over_the_floor(2.0))
lab.claim("two-wells",
          "Largest relative distance of p_A / p_B, extrapolated in eta, from the integrals of "
          "exp(-2 L / n sigma^2).",
          odds_off(WELLS.boltzmann_odds), high=0.03, source="theory",
          reason=f"{SAMPLING} and terms in eta^2; the null: without the 2",
          null=odds_off(lambda noise: WELLS.boltzmann_odds(2 * noise)))
lab.claim("two-wells-by-curvature",
          "The same from sqrt(h_B / h_A) exp(2 (L_B - L_A) / n sigma^2).",
          odds_off(WELLS.laplace_odds), high=0.05, source="theory",
          reason="the wells are no parabolas to the barrier: 2 % of the integrals; the null: "
          "without the curvatures",
          null=odds_off(lambda noise: WELLS.laplace_odds(noise) / WELLS.width_odds()))
lab.claim("noise-collects-where-it-is-small",
          "Slope of log density against log g along a valley with noise g(x).",
          slope(0), low=-2.1, high=-1.9, source="theory", paper="Ito 1944",
          reason="-2; the null: Stratonovich's -1", null=slope(1))
# fmt: on


# fmt: off
for caption, columns, panel, draw in (
    ("Left: variance of batch gradients. Middle: stationary variance on the quadratic over "
     "Boltzmann's, with 1 / (1 - eta h / 2). Right: temperature of momentum. Means over seeds, "
     "lines: theory.", 3, (4.2, 3.2), figures.variance),
    ("The potential, and particles (steps) at three times with the solution of the Fokker-Planck "
     "equation (lines) and Boltzmann's law (dashed); first seed.", 2, (5.4, 3.4),
     figures.potential),
    ("Probability currents in the plane under correlated (left) and isotropic noise (right), in "
     "standard deviations of Boltzmann's law: means over seeds (blue) and theory (orange) on one "
     "scale; ellipses of the stationary law.", 2, (4.4, 4.2), figures.current),
    ("Left: odds of the two wells with (eta, S), with twice both, and extrapolated; mean over "
     "seeds, two standard errors. Right: density along the valley against the size of the noise, "
     "with lines of slope -2 and -1.", 2, (4.2, 3.4), figures.odds_and_slope),
):
    lab.figure(caption, columns=columns, panel=panel)(draw)
# fmt: on


@lab.extra
def numbers(runs: Runs, config: Config) -> dict[str, Any]:
    """What the figures show."""
    return {
        "variance_over_theory": runs["quadratic"]["variance"]
        / theory.chain_variance(*grid(config)),
        "odds": odds(runs),
        "odds_by_boltzmann": [WELLS.boltzmann_odds(n) for n in config.noises],
        "covariance": runs["plane"]["covariance"],
    }
