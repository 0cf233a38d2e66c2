"""Figures and table: curvature along training, and the blocks where it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.lib.verdicts.curves import curve
from experiments.lib.verdicts.figures import reference, style
from experiments.lib.verdicts.report import Table
from experiments.lib.verdicts.statistics import with_error
from experiments.lm_spectrum import measuring
from experiments.lm_spectrum.numbers import per_parameter
from experiments.lm_spectrum.training import ARMS

if TYPE_CHECKING:
    from experiments.lib.lab import Runs
    from experiments.lm_spectrum import Config

NAMES = {"batches": "whole text", "full batch": "measured windows"}


def training(axes: Any, runs: Runs, config: Config) -> None:
    """Loss and curvature along training."""
    loss, edge, plain = axes
    edge.set(yscale="log", ylabel=r"sharpness $\times\ \eta\,/\,38$")
    plain.set(yscale="log", ylabel=r"$\lambda_1(H)$")
    loss.set(ylabel="loss per token in nats")
    for number, arm in enumerate(ARMS):
        records, look = runs[arm], {"marker": style(number)["marker"]}
        x = records["update"][0]
        curve(loss, x, records["loss"], number, NAMES[arm], **look)
        if arm == "batches":
            curve(loss, x, records["test_loss"], 2, "held-back text", marker=style(2)["marker"])
        curve(edge, x, records["preconditioned"], number, NAMES[arm], **look)
        curve(edge, x, records["critical"], number, f"{NAMES[arm]}, critical", linestyle=":")
        curve(plain, x, records["sharpness"], number, **look)
    reference(edge, 1.0, r"$38/\eta$")
    for panel in axes:
        panel.set_xlabel("updates")
    loss.legend(fontsize=7)
    if edge.get_ylim()[0] > 0:  # room for the legend
        edge.set_ylim(bottom=edge.get_ylim()[0] / 10)
    edge.legend(fontsize=7, loc="lower left", ncols=2)


def blocks(axes: Any, runs: Runs, config: Config) -> None:
    """Traces and spectra of the types of blocks."""
    left, right = axes
    kinds, end = measuring.types(config.tied), runs["end"]
    for number, kind in enumerate(kinds):
        look = style(number) | {"linestyle": "none"}
        values = per_parameter(runs)[:, number]
        left.plot(np.full(len(values), number), values, **look)
        nodes, weights = end["nodes"][0, 1 + number], end["weights"][0, 1 + number]
        order = np.argsort(nodes)
        look = style(number, markers=False)
        right.step(nodes[order], np.cumsum(weights[order]), where="post", label=kind, **look)
    left.set_xticks(range(len(kinds)), kinds, rotation=30)
    left.set(yscale="log", ylabel="tr $H$ per parameter")
    unit = abs(end["trace"][0]) / end["sizes"][0].sum() / 10
    if np.isfinite(unit) and unit > 0:
        right.set_xscale("symlog", linthresh=unit)
        powers = 10.0 ** np.arange(-12, 12, 2)
        powers = powers[(powers > unit) & (powers < abs(end["nodes"][0]).max())]
        right.set_xticks([*-powers[::-1], 0, *powers])
    right.set(xlabel="eigenvalue of the block", ylabel="share below")
    right.legend(fontsize=7)


def types(runs: Runs, config: Config) -> Table:
    """The types of blocks, and the whole."""
    end, kinds = runs["end"], measuring.types(config.tied)
    rows = [
        [kind, f"{end['sizes'][0, i]:,}", with_error(per_parameter(runs)[:, i]),
         with_error(end["traces"][:, i] / end["trace"]), with_error(end["tops"][:, i])]
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    size = end["sizes"].sum(1)
    rows.append(["all", f"{size[0]:,}", with_error(end["trace"] / size), "1",
                 with_error(end["top"][:, 0])])  # fmt: skip
    columns = ("block", "parameters", "tr H per parameter", "share of tr H", "largest eigenvalue")
    return Table(columns, rows, "Where training on the whole text ends; means, standard errors.")
