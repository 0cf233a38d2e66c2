"""Which calls a system needs for its answers: the cheapest that reach the wanted true errors.

A calibration is a list of rungs: ``method``, ``rung``, ``documented``, ``seconds`` (the median,
warm) and ``errors`` by quantity (root mean square over seeds).
"""

import itertools
from collections.abc import Iterable
from typing import Any

Rung = dict[str, Any]


def reaching(rungs: Iterable[Rung], quantity: str, target: float) -> dict[str, Rung]:
    """By method, the lowest rung from which on every error is at most the target.

    One rung that is good by chance, with all higher ones worse, is none.
    """
    found: dict[str, Rung] = {}
    missed: set[str] = set()
    for rung in sorted(rungs, key=lambda r: -r["rung"]):
        method = rung["method"]
        if rung["errors"].get(quantity, float("inf")) > target:
            missed.add(method)
        elif method not in missed:
            found[method] = rung
    return found


def best(rungs: Iterable[Rung], quantity: str, target: float) -> Rung | None:
    """The cheapest rung that reaches the target, or ``None``."""
    found = reaching(rungs, quantity, target).values()
    return min(found, key=lambda r: r["seconds"], default=None)


def all_round(rungs: list[Rung], targets: dict[str, float]) -> dict[str, Any]:
    """The cheapest set of calls that answers everything the system can reach.

    Calls of one method are shared: its highest rung that any of its quantities needs.
    """
    choices = {q: reaching(rungs, q, target) for q, target in targets.items()}
    reached = [q for q in targets if choices[q]]
    seconds = {(r["method"], r["rung"]): r["seconds"] for r in rungs}
    cheapest, calls = float("inf"), ()
    for combination in itertools.product(*(choices[q].values() for q in reached)):
        highest: dict[str, int] = {}
        for rung in combination:
            highest[rung["method"]] = max(highest.get(rung["method"], 0), rung["rung"])
        total = sum(seconds[item] for item in highest.items())
        if total < cheapest:
            cheapest, calls = total, tuple(highest.items())
    missing = [q for q in targets if not choices[q]]
    return {"calls": [list(c) for c in calls], "reached": reached, "missing": missing}
