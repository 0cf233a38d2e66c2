"""The figures: what was measured beside the theory's lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.langevin import theory
from experiments.langevin.measures import grid, odds, solution
from experiments.langevin.parts import HESSIAN, NOISES, WELLS, centres, edges, plane_edges, scale
from experiments.lib.verdicts.figures import COLORS, reference, style
from experiments.lib.verdicts.statistics import mean_and_error

if TYPE_CHECKING:
    from experiments.langevin import Config
    from experiments.lib.lab import Runs


def variance(axes: Any, runs: Runs, config: Config) -> None:
    """The exact variances."""
    left, middle, right = axes
    sizes = np.arange(1, config.digits + 1)
    for number, kind in enumerate(("with", "without")):
        factor = theory.finite_population(config.digits, sizes) if number else np.ones(len(sizes))
        left.plot(sizes, factor, color="#555555", linewidth=0.8)
        look = style(number) | {"linestyle": "none"}
        left.plot(config.batch_sizes, runs["noise"][kind][..., 0].mean(0), **look,
                  label=f"{kind} replacement")  # fmt: skip
    left.set(xlabel="$S$", ylabel=r"$S\,\mathrm{tr\,Cov}(g_S)\,/\,\mathrm{tr}\,C$", ylim=(0, 1.15))
    left.legend(loc="lower left")
    rates, batch_sizes, curvatures, momenta = grid(config)
    over = runs["quadratic"]["variance"].mean(0)
    steps = np.geomspace((rates * curvatures).min(), (rates * curvatures).max(), 100)
    middle.plot(steps, 1 / (1 - steps / 2), color="#555555", linewidth=0.8)
    plain = momenta[:, 0] == 0
    for number, k in enumerate(np.flatnonzero(plain)):
        rate, size, _ = config.settings[k]
        expected = theory.boltzmann_variance(rate, size, curvatures[k])
        look = style(number) | {"linestyle": "none", "label": rf"$\eta={rate:g},\ S={size}$"}
        middle.plot(rate * curvatures[k], over[k] / expected, **look)
    middle.set(xscale="log", xlabel=r"$\eta h$", ylabel=r"$\mathrm{Var}\;2Sh\,/\,\eta\sigma^2$")
    middle.legend()
    heat = (over * curvatures * 2 * batch_sizes / rates)[:, np.argmin(config.curvatures)]
    shown = np.linspace(0, max(momenta.max(), 0.5), 100)
    right.plot(shown, 1 / (1 - shown), color="#555555", linewidth=0.8)
    right.plot(momenta[:, 0], heat, **style(0) | {"linestyle": "none"})
    right.set(xlabel="momentum $b$", ylabel=r"temperature $\times\;2S\,/\,\eta\sigma^2$")


def potential(axes: Any, runs: Runs, config: Config) -> None:
    """The two wells, and the densities in time."""
    at, (left, right) = edges(config), axes
    middles, width = (at[1:] + at[:-1]) / 2, at[1] - at[0]
    boltzmann = np.exp(-2 * WELLS.loss(middles) / config.particle_noise)
    boltzmann /= boltzmann.sum() * width
    left.plot(middles, WELLS.loss(middles), color="#000000")
    for name, centre, depth in zip("AB", WELLS.centres, WELLS.depths, strict=True):
        left.annotate(f"${name}$", (centre, depth), (0, 8), textcoords="offset points", ha="center")
    left.axvline(WELLS.barrier(), color="#555555", linewidth=0.8)
    left.set(xlabel="$x$", ylabel="$L$", ylim=(-0.05, 1.5))
    found = solution(config)
    for number, time in enumerate(config.times):
        color = COLORS[number % len(COLORS)]
        right.stairs(runs["density"]["histograms"][0, number] / width, at, color=color, alpha=0.5)
        right.plot(middles, found[number] / width, color=color, label=f"$t={time:g}$")
    right.plot(middles, boltzmann, color="#000000", linestyle="--", label="Boltzmann")
    right.set(xlabel="$x$", ylabel="density", xlim=(-3, 2), ylim=(0, 1.3))
    left.set_xlim(-3, 2)
    right.legend()


def current(axes: Any, runs: Runs, config: Config) -> None:
    """Arrows of the current: it goes round where noise and curvature do not commute."""
    at, eta = plane_edges(config), config.plane_rate
    middles, area = (at[:, 1:] + at[:, :-1]) / 2, np.prod(at[:, 1] - at[:, 0])
    deviations = np.sqrt(theory.boltzmann_variance(eta, 1, HESSIAN.diagonal()))
    x = np.stack(np.meshgrid(*middles, indexing="ij"), -1)
    turn = np.linspace(0, 2 * np.pi, 100)
    laws = [theory.stationary_covariance(HESSIAN, noise, eta) for noise in NOISES]
    theirs = [theory.current(HESSIAN, law, eta, x) / deviations for law in laws]
    moves = runs["plane"]["moves"].mean(0) / area
    ours = [np.moveaxis(found, 0, -1) / deviations for found in moves]
    scale = np.linalg.norm(theirs, axis=-1).max() / 0.5
    for panel, law, expected, found in zip(axes, laws, theirs, ours, strict=True):
        for arrows, color, width in ((expected, COLORS[1], 0.011), (found, COLORS[0], 0.005)):
            start, arrow = (np.moveaxis(a, -1, 0) for a in (x / deviations, arrows))
            look = {"color": color, "width": width, "scale": scale}
            panel.quiver(*start, *arrow, **look, angles="xy", scale_units="xy")
        for radius in (1, 2):
            ring = radius * np.linalg.cholesky(law) @ [np.cos(turn), np.sin(turn)]
            panel.plot(*(ring.T / deviations).T, color="#555555", linewidth=0.8)
        panel.set(xlabel=r"$x_1\,/\,\sqrt{\eta/2h_1}$", aspect="equal")
    axes[0].set_ylabel(r"$x_2\,/\,\sqrt{\eta/2h_2}$")


def odds_and_slope(axes: Any, runs: Runs, config: Config) -> None:
    """The two wells against their formulas, and the walk with lines of slope -2 and -1."""
    left, right = axes
    shown = np.linspace(0.7 * min(config.noises), 1.2 * max(config.noises), 40)
    left.plot(shown, [WELLS.boltzmann_odds(n) for n in shown], color="#000000", label="Boltzmann")
    left.plot(shown, [WELLS.laplace_odds(n) for n in shown], color="#555555", linestyle="--",
              label=r"$\sqrt{h_B/h_A}\,e^{2(L_B-L_A)/n\sigma^2}$")  # fmt: skip
    shares = runs["wells"]["shares"]
    each = [shares[..., k] / (1 - shares[..., k]) for k in (0, 1)] + [odds(runs)]
    names = (r"$\eta$", r"$2\eta$", r"$\eta\to 0$")
    for number, (name, values) in enumerate(zip(names, each, strict=True)):
        pairs = [mean_and_error(column) for column in values.T]
        left.errorbar(config.noises, [m for m, _ in pairs], [2 * (e or 0.0) for _, e in pairs],
                      **style(number) | {"linestyle": "none"}, label=name, capsize=3)  # fmt: skip
    reference(left, WELLS.width_odds(), r"$\sqrt{h_B/h_A}$")
    left.set(xlabel=r"$n\sigma^2$", ylabel="$p_A/p_B$")
    left.legend(loc="lower right", fontsize=8)
    g = scale(config, centres(config))
    line = np.geomspace(g.min(), g.max(), 20)
    for kind, name in enumerate(("SGD (Ito)", "Stratonovich")):
        found = runs["walk"]["densities"][:, kind].mean(0)
        right.plot(g, found, **style(kind) | {"linestyle": "none"}, label=name)
        law = g ** (kind - 2.0)
        right.plot(line, line ** (kind - 2.0) / law.mean(), color="#555555", linewidth=0.8)
    right.set(xscale="log", yscale="log", xlabel="$g$", ylabel="density")
    right.legend()
