"""`spectrum` of 29 million parameters within 12 GB, and its certificates against float64.

A decoder of eight layers of 512 and 4,096 classes on one sequence of 64 tokens (short: two layers
of 64), the Hessian of its loss before training. A process of its own is given what 12 GB leave
beside the parameters, by `Plan.basis_bytes`, and says the most memory that it has held. The same
network of 1.05 million parameters has its spectrum taken in float32 and, as the truth, in float64
with tolerances a thousandth as large and other probes.
"""

import json
import resource
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

import flatjax
from benchmarks import _networks

BUDGET = 12 * 10**9
SIZES = {
    "29M": {"width": 512, "layers": 8, "heads": 8, "vocabulary": 4096, "examples": 1},
    "1M": {"width": 128, "layers": 4, "vocabulary": 1024, "examples": 2},
    "short": {"width": 64, "layers": 2, "vocabulary": 256, "examples": 2},
}
POINTS = 4  # of the grid of the density one in so many is kept
EXACT = {"tol": 1e-6, "trace_rtol": 1e-3, "max_trace_products": 400, "max_steps": 320}


def hessian(size: str) -> Any:
    """The operator, of the same parameters in the widest dtype that is switched on."""
    with jax.enable_x64(False):  # which draws other numbers
        problem = _networks.transformer(**SIZES[size])
    params = jax.tree.map(lambda a: a.astype(float), problem.params)
    return flatjax.hessian(problem.losses_fn, params, problem.batch)


def held() -> int:
    """The most bytes that this process has held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def one(size: str, budget: int | None, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """What a spectrum says and costs."""
    op = hessian(size)
    if budget is not None:
        left = budget - held()
        options["basis_bytes"] = flatjax.plan(op, budget_bytes=left, max_probes=1).basis_bytes
    begin = time.process_time()
    found = flatjax.spectrum(op, key=jax.random.key(seed), k=5, num_bottom=2, **options)
    out: dict[str, Any] = {"size": op.size, "seconds": time.process_time() - begin, "bytes": held()}
    out |= {"products": found.num_products, "steps": int(found.state.run.step)}
    out |= {"basis_bytes": options.get("basis_bytes"), "complete": found.complete}
    for name in ("top", "bottom"):
        pairs = getattr(found, name)
        numbers = ("values", "residual_norms", "converged")
        out[name] = {a: np.asarray(getattr(pairs, a)).tolist() for a in numbers}
    for name in ("trace", "frobenius_norm"):
        estimate = getattr(found, name)
        out[name] = [float(estimate.value), *map(float, estimate.interval)]
    grid, band = (np.asarray(a) for a in (found.density.grid, found.density.cdf_band))
    out["density"] = [a[::POINTS].tolist() for a in (grid, *band)]
    return out


def apart(size: str, budget: int | None, seed: int, exact: bool) -> dict[str, Any]:
    """The same in a process of its own."""
    request = json.dumps([size, budget, seed, EXACT if exact else {}, exact])
    command = [sys.executable, "-m", "benchmarks.large_spectrum", request]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def holds(found: dict[str, Any], truth: dict[str, Any]) -> dict[str, bool]:
    """Which certificates the truth bears out, its own errors allowed for."""
    out = {}
    for name in ("top", "bottom"):
        values, exact = (np.asarray(a[name]["values"]) for a in (found, truth))
        allowed = sum(np.asarray(a[name]["residual_norms"]) for a in (found, truth))
        out[name] = bool((abs(values - exact) <= allowed).all())
    for name in ("trace", "frobenius_norm"):
        (_, low, high), (_, least, most) = found[name], truth[name]
        out[name] = bool(low <= most and least <= high)
    grid, low, high = map(np.asarray, found["density"])
    least, most = (np.interp(grid, truth["density"][0], a) for a in truth["density"][1:])
    # Two bands of 95 % meet at more points than that, where both are right. Outside the probes'
    # nodes they have no width but rounding: up to 8 units of a share of one in float32.
    meet = (low <= most + 1e-6) & (least <= high + 1e-6)
    out["density"] = bool(meet.mean() >= 0.95)
    return out


def main(short: bool = False) -> dict[str, Any]:
    """The large one, the small one in both precisions, and which certificates hold."""
    small = "short" if short else "1M"
    out = {"large": apart(small if short else "29M", BUDGET, 0, exact=False)}
    print("   ", out["large"], flush=True)
    out |= {
        "float32": apart(small, None, 0, exact=False),
        "float64": apart(small, None, 1, exact=True),
    }
    return out | {"holds": holds(out["float32"], out["float64"])}


if __name__ == "__main__":
    size, budget, seed, options, exact = json.loads(sys.argv[1])
    jax.config.update("jax_enable_x64", exact)
    print(json.dumps(one(size, budget, seed, options)))
