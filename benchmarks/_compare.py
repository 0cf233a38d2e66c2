"""``python -m benchmarks compare BEFORE AFTER``: two folders of results, measure by measure.

Both must come from one run on one machine. The peers are the same code in both: the spread of
their ratios is the noise, and a row of flatjax's that lies outside of it is listed.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

MEASURES = ("seconds", "products", "error", "gradients", "memory")


class Row(NamedTuple):
    """One number: what was measured of what, and by which system."""

    what: str
    measure: str
    system: str
    value: float


def side_by_side(results: Any) -> Iterator[Row]:
    """Warm seconds, products and errors of every call on every rung of its ladder of options."""
    for network, found in results.items():
        for system, summary in found["systems"].items():
            for rung in summary["rungs"]:
                # By the values alone: an option may have another name by now.
                values = " ".join(map(str, rung["options"].values()))
                what = f"{network}, {rung['method']} {values}"
                yield Row(what, "seconds", system, rung["seconds"])
                yield Row(what, "products", system, rung["products"])
                for quantity, error in rung["errors"].items():
                    yield Row(f"{what}, {quantity}", "error", system, error)


def accuracy(results: Any) -> Iterator[Row]:
    """The error of every estimator at equal products."""
    for spectrum, estimators in results.items():
        for name, points in estimators.items():
            for point in points:
                what = f"{spectrum}, {name}, {point['products']} products"
                yield Row(what, "error", "flatjax", point["error"])


def transforms(results: Any) -> Iterator[Row]:
    """A step of every transform in gradients, by the clock and by flops, and its memory."""
    for network, steps in results.items():
        for name, step in steps.items():
            what = f"{network}, {name}"
            system = "peer" if name.startswith(("optax", "naive")) else "flatjax"
            yield Row(what, "seconds", system, step["time_ratio"])
            yield Row(what, "gradients", system, step["gradients"])
            yield Row(what, "memory", system, step["memory_ratio"])


def cold_start(results: Any) -> Iterator[Row]:
    """Seconds from import to the first answer."""
    for network, systems in results.items():
        for system, found in systems.items():
            if "total" in found:
                yield Row(network, "seconds", system, found["total"])


BENCHMARKS = {
    "accuracy": accuracy,
    "side_by_side": side_by_side,
    "transforms": transforms,
    "cold_start": cold_start,
}


def ratios(before: pathlib.Path, after: pathlib.Path, name: str) -> dict[Row, float]:
    """After over before of every number that both have; the rows are those after."""

    def of(folder):
        record = json.loads((folder / f"{name}.json").read_text())
        return {row[:3]: row for row in BENCHMARKS[name](record["results"])}

    old, new = of(before), of(after)
    return {new[k]: new[k].value / old[k].value for k in new.keys() & old.keys() if old[k].value}


def report(before: pathlib.Path, after: pathlib.Path) -> Iterator[str]:
    """The lines of a table in markdown, and below it the rows that the noise does not explain."""
    yield "| benchmark | measure | rows | median ratio | 5 to 95 % | the same of the peers |"
    yield "| --- | --- | --- | --- | --- | --- |"
    outside = []
    for name in BENCHMARKS:
        found = ratios(before, after, name)
        for measure in MEASURES:
            ours = {r: v for r, v in found.items() if r.measure == measure and _own(r)}
            peers = [v for r, v in found.items() if r.measure == measure and not _own(r)]
            if not ours:
                continue
            low, middle, high = np.percentile(list(ours.values()), (5, 50, 95))
            noise = np.percentile(peers, (5, 95)) if peers else (np.nan, np.nan)
            limit = noise[1] if peers and measure == "seconds" else 1.0
            others = f"{noise[0]:.2f} to {noise[1]:.2f}" if peers else ""
            yield (
                f"| {name} | {measure} | {len(ours)} | {middle:.3f} | {low:.2f} to {high:.2f} "
                f"| {others} |"
            )
            worse = sorted(((v, r) for r, v in ours.items() if v > 1.01 * limit), reverse=True)
            outside += [
                f"- {name}, {r.what}: {measure} x {v:.2f} ({r.value:.3g})" for v, r in worse
            ]
    yield ""
    yield "More than before, and of seconds more than 95 % of the peers' ratios:"
    yield ""
    yield from outside or ["- none"]


def _own(row: Row) -> bool:
    return row.system == "flatjax"
