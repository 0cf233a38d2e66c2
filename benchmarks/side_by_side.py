"""flatjax beside PyHessian, curvlinops, hessian-eigenthings, matfree and traceax.

The same trained networks with the same float32 weights and data, one process a system, each on the
same number of cores with as many threads. First every system is calibrated by itself: each of its
methods climbs its ladder of options until the true errors, the root mean square over seeds
against a float64 truth, have reached the targets. Every system so knows its cheapest way before
the clock runs. Then the chosen calls of all systems run in turn, round by round; the tables show
medians and spreads of these rounds. All is warm: what a call compiles is compiled before.
"""

import itertools
import os
import pathlib
import queue
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.peers import adapter, errors, plan, tasks, worker

THREADS = 1
SEEDS = (0, 1, 2, 3, 4)  # the first three for calls that take long
# The small and medium tasks are committed, with their truth; the large ones are made on demand.
KEPT, MADE = pathlib.Path("benchmarks/tasks"), pathlib.Path("runs/benchmarks/tasks")
# What the calibration compiles is not compiled again for the rounds.
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path("runs/benchmarks/programs").resolve()),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}
# Seconds a call may take, by the size of the network: what needs more is not reached.
LIMITS = {"small": 1.0, "medium": 2.0, "large": 5.0}
# Times that, before a method is said not to reach even the loosest target; in the short form once.
PATIENCE = 4
ROUNDS = 5
PLAIN, LARGEST = "spectrum without options", "spectrum without the smallest"
SHORT = ("mlp-small", "transformer-small", "cnn-small")


def main(rows, short: bool = False, networks: Sequence[str] = ()) -> dict[str, Any]:
    """The networks named, by default all, in the short form the small ones.

    The short form looks for the looser of the targets only. Networks that were finished before are
    in the results too.
    """
    wanted = networks or (SHORT if short else tasks.NAMES)
    if unknown := set(wanted) - set(tasks.NAMES):
        raise SystemExit(f"no network {', '.join(sorted(unknown))}; there are {tasks.NAMES}")
    finished = [name for name in tasks.NAMES if rows.path(f"{name}/rounds").exists()]
    names = [name for name in tasks.NAMES if name in {*wanted, *finished}]
    return {name: measure(name, rows, short) for name in names}


def limit_of(name: str) -> float:
    """The seconds a call may take on a network."""
    return LIMITS[name.partition("-")[2]]


def prepared(name: str) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
    """The file of a task, and its truth; both are made once and kept."""
    store = KEPT if (KEPT / f"{name}.npz").exists() else MADE
    path, truth = store / f"{name}.npz", store / f"{name}-truth.npz"
    if not path.exists():
        tasks.save(path, tasks.create(name))
    if not truth.exists():
        command = [sys.executable, "-m", "benchmarks.peers.truth", str(path), str(truth)]
        wide = {**os.environ, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
        subprocess.run(command, check=True, env=wide)
    with np.load(truth) as file:
        return path.resolve(), {key: file[key] for key in file.files}


def measure(name: str, rows, short: bool) -> dict[str, Any]:
    """One network."""
    limit = limit_of(name)
    path, truth = prepared(name)
    # One system a core: what is chosen here is timed alone afterwards.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    lanes: queue.Queue[int] = queue.Queue()
    for lane in range(max(1, cores // THREADS)):
        lanes.put(lane)

    def calibrated(system):
        lane = lanes.get()
        try:
            key = f"{name}/{system}/calibration"
            found = rows.get(key, lambda: calibrate(system, path, truth, limit, short, lane))
        finally:
            lanes.put(lane)
        print(
            f"   {name} {system}: {len(found['rungs'])} rungs {found.get('failure', '')}",
            flush=True,
        )
        return found

    with ThreadPoolExecutor(lanes.qsize()) as pool:
        systems = dict(zip(adapter.SYSTEMS, pool.map(calibrated, adapter.SYSTEMS), strict=True))
    timed = rows.get(f"{name}/rounds", lambda: rounds(systems, path, truth))
    reference = {
        key: float(truth[key])
        for key in ("eigenvalue_error", "trace_error", "density_error", "dense", "trace")
    }
    reference["top"] = float(truth["top"][0])
    return {
        "params": int(truth["size"]),
        "threads": THREADS,
        "seconds_allowed": limit,
        "truth": reference,
        "systems": {
            system: summarise(found, timed.get(system, {})) for system, found in systems.items()
        },
    }


def calibrate(system: str, path, truth, limit: float, short: bool, lane: int = 0) -> dict[str, Any]:
    """The true errors, warm times and products of every rung, until the targets are reached."""
    targets = errors.targets(short)
    environment = {**CACHE, "BENCH_LANE": str(lane)}
    try:
        running = worker.Worker(system, THREADS, environment)
    except worker.Failure as failure:
        return {"failure": str(failure), "rungs": []}
    about = {**running.ready, "short": short}
    most = limit if short else PATIENCE * limit
    rungs, notes = [], []
    try:
        methods = running.ask(do="setup", task=str(path))["methods"]
        for method, facts in methods.items():
            for index, options in enumerate(facts["ladder"]):
                try:
                    rung = climb(running, about["framework"], method, options, truth, limit, most)
                except worker.Failure as failure:
                    notes.append(f"{method} {options}: {failure}")
                    if running.process.poll() is not None:
                        running = worker.Worker(system, THREADS, environment)
                        running.ask(do="setup", task=str(path))
                    break
                if rung["seconds"] > most:  # seen once, which is no error over seeds
                    break
                place = {"method": method, "rung": index, "documented": facts["documented"]}
                rungs.append({**place, **rung})
                if is_enough(rung, facts, targets, limit, most):
                    break
    except worker.Failure as failure:
        return {**about, "failure": str(failure), "rungs": rungs}
    finally:
        running.close()
    return {**about, "rungs": rungs, "notes": notes}


def is_enough(rung, facts, targets, limit: float, most: float) -> bool:
    """Whether a ladder ends with a rung: it met every target, or took more than ``limit`` seconds.

    ``most`` seconds are allowed until what it is documented for has met the loosest target.
    """
    met = {q: rung["errors"].get(q, 0.0) for q in facts["gives"]}
    if all(error <= min(targets[q]) for q, error in met.items()):
        return True
    loosest = all(met[q] <= max(targets[q]) for q in facts["documented"])
    return rung["seconds"] > (limit if loosest else most)


def climb(running, framework, method, options, truth, limit, most) -> dict[str, Any]:
    """One rung."""

    def call(seed):
        request = {"method": method, "options": options, "seed": seed}
        return running.ask(timeout=60 + 4 * limit, do="call", **request)

    last = call(SEEDS[0])
    if framework == "jax":  # compile, every shape that the seeds meet
        for seed in SEEDS[1:3]:
            last = call(seed)
    seeds = SEEDS if last["seconds"] < limit / 10 else SEEDS[:3]
    replies = [call(seed) for seed in seeds] if last["seconds"] < most else [last]
    found = [errors.errors(reply["answer"], truth) for reply in replies]
    return {
        "options": options,
        "seconds": statistics.median(r["seconds"] for r in replies),
        "products": statistics.median(r["answer"]["products"] for r in replies),
        "errors": {q: errors.root_mean_square([f[q] for f in found]) for q in found[0]},
    }


def chosen(system: str, found) -> dict[str, dict[str, Any]]:
    """What a system is timed with: by use of its methods, the calls for each target and for all."""
    out = {}
    for use in ("documented", "any"):
        rungs = found["rungs"] if use == "any" else [documented(r) for r in found["rungs"]]
        single = {
            f"{quantity} {target:g}": plan.best(rungs, quantity, target)
            for quantity, targets in errors.targets(found.get("short", False)).items()
            for target in targets
        }
        out[use] = {"single": single, "all": cheapest(system, rungs, errors.ALL_ROUND)}
        if system == "flatjax":  # to be held against a peer that does not reach all of them
            out[use]["parts"] = {
                ",".join(part): cheapest(system, rungs, {q: errors.ALL_ROUND[q] for q in part})
                for size in (2, 3)
                for part in itertools.combinations(errors.ALL_ROUND, size)
            }
    return out


def cheapest(system: str, rungs, targets) -> dict[str, Any]:
    """The calls for several quantities; of flatjax one, if pairs at the top are among them."""
    ways = [rungs]
    if system == "flatjax" and "top" in targets:
        ways = [[r for r in rungs if r["method"] == name] for name in ("spectrum", PLAIN, LARGEST)]
    seconds = {(r["method"], r["rung"]): r["seconds"] for r in rungs}

    def effort(found):
        return len(found["missing"]), sum(seconds[tuple(call)] for call in found["calls"])

    return min((plan.all_round(way, targets) for way in ways), key=effort)


def documented(rung):
    """The rung with those of its errors that its documentation offers it for."""
    kept = {q: error for q, error in rung["errors"].items() if q in rung["documented"]}
    return {**rung, "errors": kept}


def calls_of(system: str, found, parts=None) -> list[tuple[str, int]]:
    """Every call of a system that the rounds time; of flatjax's parts those named, or all."""
    calls = set()
    for use in chosen(system, found).values():
        calls |= {(r["method"], r["rung"]) for r in use["single"].values() if r is not None}
        held = [a for part, a in use.get("parts", {}).items() if parts is None or part in parts]
        for several in (use["all"], *held):
            calls |= {(method, rung) for method, rung in several["calls"]}
    if system == "flatjax":  # and as it is called without options
        calls |= {(r["method"], 0) for r in found["rungs"] if r["method"] == PLAIN}
    return sorted(calls)


def parts_of(systems) -> set[str]:
    """What the systems reach of the whole, each where something is missing."""
    uses = (use for name, found in systems.items() for use in chosen(name, found).values())
    return {",".join(use["all"]["reached"]) for use in uses if use["all"]["missing"]}


def rounds(systems, path, truth) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Seconds and errors of the chosen calls, the systems in turn, with a new seed every round."""
    running, calls, timed, parts = {}, {}, {}, parts_of(systems)
    for system, found in systems.items():
        if not found["rungs"]:
            continue
        running[system] = worker.Worker(system, THREADS, CACHE)
        running[system].ask(do="setup", task=str(path))
        calls[system] = calls_of(system, found, parts)
        timed[system] = {f"{method}|{rung}": [] for method, rung in calls[system]}
    options = {
        (system, r["method"], r["rung"]): r["options"]
        for system, found in systems.items()
        for r in found["rungs"]
    }

    def ask(system, method, rung, seed):
        request = {"method": method, "options": options[system, method, rung], "seed": seed}
        return running[system].ask(do="call", **request)

    for system in running:  # warm up: seeds of their own, as many as shapes may differ
        for method, rung in calls[system]:
            for seed in (100, 101, 102):
                if ask(system, method, rung, seed)["seconds"] > 2:
                    break
    for turn in range(ROUNDS):
        for system in running:
            for method, rung in calls[system]:
                reply = ask(system, method, rung, 200 + turn)
                timed[system][f"{method}|{rung}"].append(
                    {
                        "seconds": reply["seconds"],
                        "products": reply["answer"]["products"],
                        "errors": errors.errors(reply["answer"], truth),
                    }
                )
    for process in running.values():
        process.close()
    return timed


def summarise(found, timed) -> dict[str, Any]:
    """What the tables need: for each target the best call, and all at once."""
    about = {k: found.get(k) for k in ("version", "framework_version", "note", "notes", "failure")}
    if not timed:
        return about
    system = "flatjax" if any(r["method"] == "spectrum" for r in found["rungs"]) else ""
    for use, picked in chosen(system, found).items():
        about[use] = {
            "single": {
                target: None if rung is None else described([rung], timed)
                for target, rung in picked["single"].items()
            },
            "all": several(found, picked["all"], timed),
        }
        if "parts" in picked:
            about[use]["parts"] = {
                part: several(found, calls, timed)
                for part, calls in picked["parts"].items()
                if not calls["missing"] and all(f"{m}|{r}" in timed for m, r in calls["calls"])
            }
    plain = [r for r in found["rungs"] if r["method"] == PLAIN]
    if plain:
        about["plain"] = described(plain, timed)
    about["rungs"] = [
        {k: r[k] for k in ("method", "options", "seconds", "products", "errors")}
        for r in found["rungs"]
    ]
    return about


def several(found, picked, timed) -> dict[str, Any]:
    """The calls that answer several quantities, with what they took."""
    return {**picked, **described(rungs_of(found, picked["calls"]), timed)}


def rungs_of(found, calls):
    """The rungs of some calls."""
    wanted = {(method, rung) for method, rung in calls}
    return [r for r in found["rungs"] if (r["method"], r["rung"]) in wanted]


def described(rungs, timed) -> dict[str, Any]:
    """Method, options, seconds, products and errors of a set of calls made one after the other."""
    if not rungs:
        return {}
    runs = [timed[f"{r['method']}|{r['rung']}"] for r in rungs]
    together = list(zip(*runs, strict=True))
    found: dict[str, float] = {}
    for rows in runs:
        for quantity in rows[0]["errors"]:
            value = errors.root_mean_square([row["errors"][quantity] for row in rows])
            found[quantity] = min(value, found.get(quantity, float("inf")))
    return {
        "method": " + ".join(f"{r['method']} {options_text(r['options'])}".strip() for r in rungs),
        "seconds": errors.summary([sum(row["seconds"] for row in turn) for turn in together]),
        "products": statistics.median(sum(row["products"] for row in turn) for turn in together),
        "errors": found,
    }


def options_text(options) -> str:
    """``(a=1, b=2)``."""
    inside = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"({inside})" if inside else ""
