"""From `import` to the first answer, and the memory of it, every system in a fresh process.

The answer is the all-round one of the side-by-side comparison, by the calls that were chosen there
(the trace alone of a system that answers nothing else). Systems on JAX run three times: without a
compilation cache, once to fill a persistent one, and once with it. The memory is the largest
resident set of the process, beside that after the import.
"""

import functools
import pathlib
import tempfile
from typing import Any

from benchmarks import side_by_side
from benchmarks.peers import adapter, worker

NETWORKS = {
    True: ("mlp-small", "transformer-small"),
    False: ("mlp-small", "cnn-small", "transformer-small", "mlp-medium", "transformer-medium"),
}


def main(rows, short: bool = False) -> dict[str, dict[str, Any]]:
    """By network and system."""
    known = rows.beside("side_by_side")
    out: dict = {}
    for name in NETWORKS[short]:
        path, truth = side_by_side.prepared(name)
        rest = (path, truth, side_by_side.limit_of(name), short)
        for system in adapter.SYSTEMS:
            calibrate = functools.partial(side_by_side.calibrate, system, *rest)
            found = known.get(f"{name}/{system}/calibration", calibrate)
            row = rows.get(f"{name}/{system}", lambda s=system, f=found, p=path: cold(s, f, p))
            out.setdefault(name, {})[system] = row
            print(f"   {name} {system}: {row.get('total', row.get('failure'))}", flush=True)
    return out


def cold(system: str, found, path) -> dict[str, Any]:
    """One system; seconds of the import, the setup, the first and the second answer."""
    if not found["rungs"]:
        return {"failure": found.get("failure", "no method ran")}
    calls = side_by_side.chosen(system, found)["documented"]["all"]["calls"]
    if not calls:
        return {"failure": "no quantity is reached"}
    row = once(system, found, calls, path, {})
    if found["framework"] == "jax":
        with tempfile.TemporaryDirectory() as folder:
            cache = {
                "JAX_COMPILATION_CACHE_DIR": folder,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            }
            once(system, found, calls, path, cache)
            row["cached_total"] = once(system, found, calls, path, cache)["total"]
            files = pathlib.Path(folder).rglob("*")
            row["cache_bytes"] = sum(f.stat().st_size for f in files if f.is_file())
    return row


def once(system, found, calls, path, environment) -> dict[str, Any]:
    """A fresh process."""
    running = worker.Worker(system, side_by_side.THREADS, environment)
    options = {(r["method"], r["rung"]): r["options"] for r in found["rungs"]}
    try:
        setup = running.ask(do="setup", task=str(path))
        answers = []
        for _ in range(2):
            replies = [
                running.ask(do="call", method=method, options=options[method, rung], seed=300)
                for method, rung in map(tuple, calls)
            ]
            answers.append(sum(reply["seconds"] for reply in replies))
    finally:
        running.close()
    return {
        "import": running.start_seconds,
        "setup": setup["seconds"],
        "first": answers[0],
        "second": answers[1],
        "total": running.start_seconds + setup["seconds"] + answers[0],
        "imported_bytes": running.ready["imported_bytes"],
        "peak_bytes": replies[-1]["peak_bytes"],
    }
