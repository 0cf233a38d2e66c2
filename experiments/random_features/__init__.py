"""Random features: the risk peaks where they are as many as examples, and descends a second time.

Belkin et al. (PNAS 2019, "Reconciling modern machine-learning practice and the classical
bias-variance trade-off"): least squares with N random features of n examples, the solution of least
norm where there are many, has a test risk that falls, peaks at N = n together with the norm, and
falls below its first minimum. Nakkiran et al. (ICLR 2020, "Deep Double Descent"): so more examples
can hurt. Nakkiran et al. (ICLR 2021, "Optimal Regularization Can Mitigate Double Descent") and
d'Ascoli et al. (ICML 2020, "Double Trouble in Double Descent"): the best ridge removes the peak, an
ensemble over the features most of it.

Fourier and ReLU features of 300 digits, with none, 20 % and 90 % of the labels wrong, the last of
which are random; all in double precision. Two models have closed forms. Weak features (Belkin, Hsu
and Xu, SIAM J. Math. Data Sci. 2020): of 100 Gaussian features p are used, all equally good, or the
best first. Ridge regression on Gaussian inputs, whose best ridge is sigma^2 d / |beta|^2 for every
number of examples, with a risk that only falls.

    python -m experiments random_features

Found: both peaks are at N = n, 440 and 300 times as high as the least risk before, and with 2,000
features the risk is 0.38 and 0.46 of that; with 300 features that of 300 examples is 420 times that
of 100. The mean of 20 outputs has a twentieth of the risk at the peak, which is all variance of the
features then. The largest distance of a simulation from its closed form is 1.2 %.

paper: Fourier and ReLU features of 10,000 images of MNIST, ridge regression in 500 dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.lab import Lab, Options, Runs, shared
from experiments.lib.runs.kept import each_seed
from experiments.lib.verdicts.curves import curve
from experiments.lib.verdicts.figures import reference, style
from experiments.random_features import numbers
from experiments.random_features.exact import ridge_risk, ridge_theory, weak_risk, weak_theory
from experiments.random_features.images import on_images
from experiments.random_features.least_squares import KINDS


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 300  # n, training examples
    test_size: int = 500  # test examples
    noises: tuple[float, ...] = (0.0, 0.2, 0.9)  # of the labels wrong: none, some, all random
    counts: tuple[int, ...] = (
        10, 30, 60, 100, 150, 200, 250, 280, 300, 320, 360, 450, 600, 1000, 2000,
    )  # N, features  # fmt: skip
    sample_sizes: tuple[int, ...] = (50, 100, 200, 250, 300, 350, 450, 700, 1000)  # N = n fixed
    draws: int = 3  # of the features, of which medians are taken
    members: int = 20  # draws of the features in an ensemble
    weak_samples: int = 40  # n of the weak features
    weak_sizes: tuple[int, ...] = (5, 10, 20, 30, 34, 36, 44, 46, 50, 60, 80, 100)  # p, of the last
    weak_noise: float = 0.2  # sigma there
    weak_draws: int = 20_000  # of inputs and noise there
    dimensions: int = 50  # d of ridge regression
    ridge_sizes: tuple[int, ...] = (10, 20, 30, 40, 45, 50, 55, 60, 75, 100, 150)  # n there
    ridge_noise: float = 0.5  # sigma there
    ridge_draws: int = 1000  # of inputs and noise there


# fmt: off
lab = Lab(
    Config, "Belkin et al. 2019",
    smoke={"seeds": 1, "train_size": 20, "test_size": 30, "counts": (5, 10, 20, 24, 40),
           "sample_sizes": (10, 20, 30), "draws": 1, "members": 3, "weak_draws": 20,
           "ridge_draws": 10, "dimensions": 5, "ridge_sizes": (3, 5, 8)},
    # Belkin et al.: 10,000 images of MNIST and up to 60,000 features. Nakkiran et al. 2021, figure
    # 1: 500 dimensions. The rest is ours.
    paper={"data": "mnist", "train_size": 10_000, "test_size": 10_000,
           "counts": (300, 1000, 3000, 5000, 8000, 9500, 10_000, 10_500, 12_000, 20_000, 60_000),
           "sample_sizes": (1000, 3000, 8000, 10_000, 12_000, 20_000), "dimensions": 500,
           "ridge_sizes": (100, 300, 400, 500, 600, 750, 1000)},
)
# fmt: on
EXPERIMENT = lab.experiment


def of_seed(config: Config, seed: int) -> dict[str, Any]:
    """All numbers of one seed, see `run`."""
    weak = weak_risk(
        numbers.weak_betas(config), config.weak_sizes, config.weak_samples, config.weak_noise,
        config.weak_draws, seed,
    )  # fmt: skip
    beta = np.full(config.dimensions, numbers.NORM / np.sqrt(config.dimensions))
    ridge = ridge_risk(
        beta, config.ridge_sizes, numbers.theory_ridges(), config.ridge_noise, config.ridge_draws,
        seed,
    )  # fmt: skip
    return on_images(config, seed) | {
        "weak": dict(zip(numbers.WEAK, weak, strict=True)),
        "ridge": {"test": ridge},
    }


@lab.run
def run(config: Config, out: Path) -> Runs:
    """By kind of features, (seeds, noises, counts); `samples` likewise by sample sizes.

    Of `weak` (seeds, sizes) by order, of `ridge` (seeds, sizes, ridges).
    """
    found = shared(config, each_seed(config, lambda seed, folder: of_seed(config, seed)))
    seeds = list(found)
    return {
        arm: {name: np.array([found[s][arm][name] for s in seeds], float) for name in records}
        for arm, records in found[seeds[0]].items()
    }


# fmt: off
BHX = "Belkin, Hsu & Xu 2020, theorem 1"
OPTIMAL = "Nakkiran et al. 2021"
for kind in KINDS:
    lab.claim(f"{kind.lower()}-peaks-at-n",
              f"Number of {kind} features where the test risk is largest, over that of examples.",
              numbers.peak(kind, "test"), low=0.99, high=1.01, source="theory",
              reason="1, and the next numbers are 7 % off; null: with the best ridge",
              null=numbers.peak(kind, "ridge"))
    lab.claim(f"{kind.lower()}-norm-peaks-at-n",
              f"Number of {kind} features where the norm is largest, over that of examples.",
              numbers.peak(kind, "norm"), low=0.99, high=1.01, source="theory",
              reason="as before; null: the training risk", null=numbers.peak(kind, "train"))
    lab.claim(f"{kind.lower()}-height",
              f"Decimal logarithm of the test risk at N = n over its least with fewer {kind} "
              "features.",
              numbers.height(kind, "test"), low=float(np.log10(20)), source="margin",
              reason="twenty times; null: with the best ridge", null=numbers.height(kind, "ridge"))
    lab.claim(f"{kind.lower()}-second-descent",
              f"Test risk with the most {kind} features over its least with fewer than n.",
              numbers.second_descent(kind, 0), high=0.6, source="margin",
              reason="well below; null: random labels", null=numbers.second_descent(kind, -1))
lab.claim("norm-falls",
          "Decimal logarithm of the norm at N = n over that with the most features, the least of "
          "both kinds and all labels.",
          numbers.norm_falls, low=1.0, source="margin",
          reason="ten times; null: the last N below n in place of n",
          null=numbers.norm_falls_before)
lab.claim("fits-exactly", "Largest training risk from 1.06 n features on.", numbers.train_risk,
          high=1e-20, source="theory", reason="0 to the rounding of float64; null: the last N "
          "below n", null=numbers.train_risk_before)
lab.claim("ridge-removes-the-peak",
          "Largest relative rise of the test risk from one N to the next, with the best ridge.",
          numbers.largest_rise("ridge"), high=0.01, source="margin", paper=OPTIMAL,
          reason="none, and a hundredth for the finite test set; null: without ridge",
          null=numbers.largest_rise("test"))
lab.claim("more-data-hurts",
          "Decimal logarithm of the test risk of n = N examples over that of a third as many.",
          numbers.more_data("test"), low=1.0, source="margin", paper="Nakkiran et al. 2020",
          reason="ten times; null: with the best ridge", null=numbers.more_data("ridge"))
lab.claim("ensemble",
          "Test risk at N = n of the mean output of all draws of the features over the mean risk "
          "of one, the largest of all labels.",
          lambda runs, config: runs["ensemble"]["ratio"].max(1), high=0.15, source="margin",
          paper="d'Ascoli et al. 2020",
          reason="three times 1 / K, what is left if all of it is variance of the features; null: "
          "with the best ridge",
          null=lambda runs, config: runs["ensemble"]["ridge_ratio"].max(1))
lab.claim("weak-features",
          "Largest relative distance of the mean risk from theory where |p - n| is at least 4.",
          numbers.weak_off(1), high=0.03, source="theory", paper=BHX,
          reason="0; three standard errors of the mean over draws next to the peak; null: "
          "p / (n - p) in place of p / (n - p - 1)", null=numbers.weak_off(0))
lab.claim("best-ridge",
          "Steps from the best of the ridges to sigma^2 d / |beta|^2, the most over n; ten steps "
          "are a factor of ten.",
          numbers.ridge_off, high=1.0, source="theory", paper=OPTIMAL,
          reason="0, and one step either way; null: sigma^2 n / |beta|^2",
          null=numbers.ridge_off_per_example)
lab.claim("monotone-under-it",
          "Largest ratio of the risk under that ridge and the risk of fewer examples.",
          numbers.ridge_rise(None), high=1.0, source="sign", paper=OPTIMAL,
          reason="null: the smallest ridge", null=numbers.ridge_rise(0))
lab.claim("risk-under-it",
          "Largest relative distance of the risk under that ridge from theory.",
          numbers.ridge_risk_off(None), high=0.03, source="theory", paper="Dobriban & Wager 2018",
          reason="0 for many dimensions; null: the smallest ridge", null=numbers.ridge_risk_off(0))
# fmt: on


@lab.figure(
    "Above the risk and below the norm of the coefficients against the features per example, as in "
    "figure 4 of Belkin et al.; means over seeds, two standard errors. Thin lines: the kernel of "
    "infinitely many features.",
    rows=2, columns=2, sharex=True,
)  # fmt: skip
def double_descent(axes: Any, runs: Runs, config: Config) -> None:
    """Risk and norm of both kinds of features."""
    x = np.array(config.counts) / config.train_size
    for column, kind in zip(axes.T, KINDS, strict=True):
        top, bottom = column
        for panel in column:
            panel.set(xscale="log", yscale="log")
            panel.axvline(1, color="#555555", linewidth=0.8)
        for i in range(len(config.noises) - 1):
            text = f"{config.noises[i]:.0%} wrong labels"
            curve(top, x, runs[kind]["test"][:, i], i, text, marker="o")
            curve(bottom, x, runs[kind]["norm"][:, i], i, text, marker="o")
            limit = runs[kind]["limit"][:, i].mean()
            top.axhline(limit, color=style(i)["color"], linewidth=0.8, linestyle=(0, (1, 2)))
        curve(top, x, runs[kind]["ridge"][:, 0], 2, "0% wrong, best ridge")
        fit = np.maximum(runs[kind]["train"][:, 0], 1e-30)
        curve(top, x[x < 1], fit[:, x < 1], 6, "0% wrong, training")
        top.set(ylim=(1e-2, None), title=f"{kind} features")
        bottom.set(xlabel="$N / n$")
    axes[0, 0].set_ylabel("mean squared error")
    axes[1, 0].set_ylabel(r"norm $\|a\|_2$")
    axes[0, 0].legend(fontsize=7)


@lab.figure(
    "More examples with as many features; weak features, and ridge regression: points are "
    "simulations, lines theory.",
    columns=3,
)  # fmt: skip
def theory(axes: Any, runs: Runs, config: Config) -> None:
    """Sample-wise non-monotonicity, and the two models of theory."""
    samples, weak, ridge = axes
    for i in range(len(config.noises) - 1):
        text = f"{config.noises[i]:.0%} wrong labels"
        samples.set_yscale("log")
        curve(samples, config.sample_sizes, runs["samples"]["test"][:, i], i, text, marker="o")
        rows = runs["samples"]["ridge"][:, i]
        curve(samples, config.sample_sizes, rows, i + 2, f"{text}, best ridge", marker="s")
    samples.axvline(config.train_size, color="#555555", linewidth=0.8)
    samples.set(xlabel=f"examples $n$, of $N = {config.train_size}$ features", ylabel="test risk")
    n, largest = config.weak_samples, max(config.weak_sizes)
    for i, (name, beta) in enumerate(zip(numbers.WEAK, numbers.weak_betas(config), strict=True)):
        color = style(i)["color"]
        for sizes in (range(1, n - 1), range(n + 2, largest + 1)):
            line = [weak_theory(beta, p, n, config.weak_noise) for p in sizes]
            weak.plot(sizes, line, color=color)
        mean = runs["weak"][name].mean(0)
        weak.plot(config.weak_sizes, mean, style(i)["marker"], color=color, label=name)
    weak.axvline(n, color="#555555", linewidth=0.8)
    weak.set(yscale="log", ylim=(None, 50), xlabel=f"weak features $p$, $n = {n}$", ylabel="risk")
    sizes, best = np.array(config.ridge_sizes), numbers.best_ridge(config)
    ridges, rows = numbers.theory_ridges(), runs["ridge"]["test"]
    for i, which in enumerate((0, best - 8, best)):
        text = (
            r"$\lambda = \sigma^2 d / |\beta|^2$"
            if which == best
            else rf"$\lambda = {ridges[which]:.2g}$"
        )
        ridge.plot(sizes, rows[..., which].mean(0), linestyle="none" if which == best else "-",
                   marker=style(i)["marker"], color=style(i)["color"], label=text)  # fmt: skip
    line = np.linspace(sizes[0], sizes[-1], 100)
    optimal = [ridge_theory(config.dimensions, n, numbers.NORM, config.ridge_noise) for n in line]
    ridge.plot(line, optimal, color=style(2)["color"])
    reference(ridge, config.ridge_noise**2, r"$\sigma^2$")
    ridge.set(
        yscale="log", xlabel=f"examples $n$ in $d = {config.dimensions}$ dimensions", ylabel="risk"
    )
    for panel in axes:
        panel.legend(fontsize=7)


@lab.extra
def errors(runs: Runs, config: Config) -> dict[str, Any]:
    """The test errors, which the figures do not show, and the ensembles."""
    return {
        "test_error": {kind: runs[kind]["error"] for kind in KINDS},
        "ensemble": runs["ensemble"],
        "kernel_risk": {kind: runs[kind]["limit"] for kind in KINDS},
    }
