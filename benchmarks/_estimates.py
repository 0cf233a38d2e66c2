"""Products until a trace, a density or a whole spectrum is as good as stated, beside the formulas.

The spectra of `products`, turned by a cosine transform, so that no probe is special. A trace to 1 %
of the sum of magnitudes (the semicircle's trace is near zero), a density to a Wasserstein distance
of 0.05 standard deviations of the spectrum; all at once: these two and the five largest values to
1 %. The products are those of a ladder: of the first of two rungs in turn that are as good, so that
luck at one does not count; 1,000 where none is, as so many products with unit vectors show the
whole matrix. The peers are what the formulas say, in NumPy: Hutchinson's mean over Rademacher
probes, stochastic Lanczos quadrature from normal ones, and for all at once both of them and ARPACK
with the loosest tolerance that is enough. Of several methods of a trace and depths of a quadrature
those count that need the fewest.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft

import flatjax
from benchmarks.accuracy import rotated
from benchmarks.peers.errors import wasserstein

RUNGS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
DEPTHS = (8, 16, 32, 64)
METHODS = ("hutchinson", "deflated", "xtrace")
GOALS = {"top": 0.01, "trace": 0.01, "density": 0.05}
SEEDS = {True: 2, False: 4}
TOP = 5
Run = Callable[[int], tuple[int, dict[str, float]]]


def needed(run: Run, rungs: Iterable[int], size: int) -> int:
    """The products of the first of two rungs in turn whose errors are within their goals."""
    before = None
    for rung in rungs:
        spent, errors = run(rung)
        good = all(error <= GOALS[name] for name, error in errors.items())
        if good and before is not None:
            return before
        before = spent if good else None
    return size


def trace_error(value: Any, values: np.ndarray) -> float:
    """Over the sum of magnitudes."""
    return abs(float(value) - values.sum()) / np.abs(values).sum()


def density_error(nodes, weights, values: np.ndarray) -> float:
    """The Wasserstein distance, in standard deviations."""
    nodes, weights = np.asarray(nodes, float), np.asarray(weights, float)
    share = np.full(len(values), 1 / len(values))
    return wasserstein(nodes, weights, values, share) / values.std()


def top_error(found, values: np.ndarray) -> float:
    """The worst relative error of the largest."""
    exact = np.sort(values)[::-1][:TOP]
    return float(np.max(np.abs(np.asarray(found, float) - exact) / exact))


def own(values: np.ndarray, seed: int) -> dict[str, list[Run]]:
    """The estimators of flatjax, by quantity and variant."""
    like, key = jax.ShapeDtypeStruct((len(values),), jnp.float32), jax.random.key(seed)
    op = jax.tree_util.Partial(rotated, jnp.asarray(values, jnp.float32))

    def trace(method, count):
        found = flatjax.trace(op, key=key, method=method, num_products=count, structure=like)
        return found.num_products, {"trace": trace_error(found.value, values)}

    def density(count):
        third = count // 3
        options = {"num_probes": 2, "num_steps": third, "deflation_steps": third}
        found = flatjax.spectral_density(op, key=key, structure=like, **options)
        return 3 * third, {"density": density_error(found.atoms, found.weights, values)}

    def everything(count):
        # A half for the pairs, a half for four probes, and more for the trace where it asks for it.
        options = {"num_steps": max(count // 2, TOP + 1), "probe_steps": max(count // 8, 2)}
        found = flatjax.spectrum(op, key=key, k=TOP, num_bottom=1, structure=like, **options)
        return found.num_products, {
            "top": top_error(found.top.values, values),
            "trace": trace_error(found.trace.value, values),
            "density": density_error(found.density.atoms, found.density.weights, values),
        }

    traces = [functools.partial(trace, method) for method in METHODS]
    return {"trace": traces, "density": [density], "all": [everything]}


def hutchinson(values: np.ndarray, seed: int) -> Run:
    """The running mean of $z' A z$."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (RUNGS[-1], len(values)))
    forms = np.square(scipy.fft.dct(signs, norm="ortho")) @ values
    return lambda count: (count, {"trace": trace_error(forms[:count].mean(), values)})


def quadrature(values: np.ndarray, seed: int, depth: int) -> Run:
    """The mean of the Gauss quadratures of normal probes, with full reorthogonalisation."""
    rng, rules = np.random.default_rng(seed), []

    def rule():
        q = rng.standard_normal(len(values))
        rows, a, b = [q / np.linalg.norm(q)], [], []
        for _ in range(depth):
            w = values * rows[-1]
            a.append(w @ rows[-1])
            for _ in range(2):
                w = w - np.array(rows).T @ (np.array(rows) @ w)
            b.append(np.linalg.norm(w))
            rows.append(w / b[-1])
        nodes, s = np.linalg.eigh(np.diag(a) + np.diag(b[:-1], 1) + np.diag(b[:-1], -1))
        return nodes, s[0] ** 2

    def run(count):
        while len(rules) < count // depth:
            rules.append(rule())
        nodes, weights = map(np.concatenate, zip(*rules, strict=True))
        error = density_error(nodes, weights / len(rules), values)
        return depth * len(rules), {"density": error}

    return run


def cell(values: np.ndarray, seeds: int, arpack) -> dict[str, dict[str, list[int]]]:
    """Products by quantity and method, one number per start."""
    size = len(values)
    by_seed = [own(values, s) for s in range(seeds)]

    def best(name):
        variants = zip(*(runs[name] for runs in by_seed), strict=True)
        counts = ([needed(run, RUNGS, size) for run in runs] for runs in variants)
        return min(counts, key=np.mean)

    mine = {name: best(name) for name in by_seed[0]}
    traces = [needed(hutchinson(values, s), RUNGS, size) for s in range(seeds)]
    by_depth = [
        [needed(quadrature(values, s, m), (r for r in RUNGS if r >= m), size) for s in range(seeds)]
        for m in DEPTHS
    ]
    densities = min(by_depth, key=np.mean)
    tops = []
    for s in range(seeds):
        runs = [arpack(values, TOP, tol, s, None) for tol in (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)]
        good = [count for count, found in runs if top_error(found, values) <= GOALS["top"]]
        tops.append(good[0] if good else size)
    everything = [sum(counts) for counts in zip(traces, densities, tops, strict=True)]
    theirs = {"trace": traces, "density": densities, "all": everything}
    return {name: {"flatjax": mine[name], "formulas": theirs[name]} for name in mine}
