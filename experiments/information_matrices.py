"""Gradient covariance C, Hessian H and Fisher information F along training: alike in direction.

Thomas et al. 2020, "On the Interplay between Noise and Curvature and its Effect on Optimization
and Generalization". A small tanh network learns the digits with cross-entropy by full-batch
gradient descent; C (uncentred), H and F (exact) of the training set are formed and compared by the
ratio of their traces r(A, B), their cosine s(A, B) and the overlap of their top subspaces. They
grow alike in direction early and stay so, but not in scale: r(C, F) goes to zero as the labels are
fitted. And F is the second-order divergence: KL(p_w || p_(w+d)) = d'Fd / 2 for small d.

    python -m experiments information_matrices        # three seeds, 18 seconds

Found at the end: s(F, H) 0.95, s(C, F) 0.88, s(H, C) 0.82; the top subspaces of F and H overlap to
88 %; r(C, F) has fallen to 0.003 of its first value.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

import flatjax
from experiments.lib.data.small import small_data
from experiments.lib.lab import Lab, Options, shared
from experiments.lib.nets.mlp import FlatMlp
from experiments.lib.runs.kept import each_seed, kept_arrays
from experiments.lib.runs.metrics import MetricsLog
from experiments.lib.verdicts.figures import style
from flatjax import loops

PAIRS = (("H", "C"), ("C", "F"), ("F", "H"))
TOP = 9
"""The top subspace: as many directions as classes but one."""
DISTANCES = (1e-1, 1e-2, 1e-3)
"""Lengths of the random d in the divergence."""

Records = dict[str, np.ndarray]
"""By name, (seeds, steps) and more axes each."""


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 200  # training examples, all of them in every batch
    width: int = 12  # units of the hidden layer; the matrices have the square of the parameters
    learning_rate: float = 0.3  # of gradient descent
    steps: tuple[int, ...] = (0, 20, 100, 500, 3000)  # the matrices are compared after so many


# fmt: off
lab = Lab(
    Config, "Thomas et al. 2020",
    smoke={"seeds": 1, "train_size": 30, "width": 3, "steps": (0, 5, 20)},
    paper={"data": "mnist", "train_size": 5000, "width": 20,
           "steps": (0, 100, 500, 2000, 10_000, 50_000)},
)
# fmt: on
EXPERIMENT = lab.experiment


@functools.partial(jax.jit, static_argnums=0)
def _descend(losses_fn, params, batch, rate, steps):
    gradient = jax.grad(lambda p: losses_fn(p, batch).mean())
    return loops.fori(steps, lambda _, p: p - rate * gradient(p), params)


def matrices(net: FlatMlp, losses_fn: Any, params: jax.Array, batch: Any) -> dict[str, np.ndarray]:
    """C, H and F as dense arrays, in float64."""
    fisher = flatjax.fisher(net, flatjax.softmax_cross_entropy, params, batch)
    found = {
        "C": flatjax.gradient_covariance(losses_fn, params, batch, centered=False),
        "H": flatjax.hessian(losses_fn, params, batch),
        "F": fisher,
    }
    return {name: np.asarray(op.to_dense(), np.float64) for name, op in found.items()}


def compare(found: dict[str, np.ndarray]) -> dict[str, float]:
    """Ratios of traces, cosines and overlaps of the top subspaces of all pairs."""
    size = len(found["H"])
    tops = {
        name: scipy.linalg.eigh(a, subset_by_index=(size - TOP, size - 1))[1]
        for name, a in found.items()
    }
    numbers: dict[str, float] = {}
    for a, b in PAIRS:
        left, right = found[a], found[b]
        numbers[f"r({a},{b})"] = float(np.trace(left) / np.trace(right))
        norms = np.linalg.norm(left) * np.linalg.norm(right)
        numbers[f"s({a},{b})"] = float(np.vdot(left, right) / norms)
        numbers[f"overlap({a},{b})"] = float(np.square(tops[a].T @ tops[b]).sum() / TOP)
    return numbers


def divergences(net: FlatMlp, params: jax.Array, inputs: Any, key: jax.Array) -> list[float]:
    """KL(p_w || p_(w+d)) over d'Fd / 2 for random d of all lengths; in float64."""
    with jax.enable_x64(True):
        params = jnp.asarray(np.asarray(params), jnp.float64)
        inputs = jnp.asarray(np.asarray(inputs), jnp.float64)
        labels = jnp.zeros(len(inputs), jnp.int32)  # the exact Fisher needs none
        fisher = flatjax.fisher(net, flatjax.softmax_cross_entropy, params, (inputs, labels))
        direction = jax.random.normal(key, params.shape, jnp.float64)
        direction /= jnp.linalg.norm(direction)
        form = jnp.vdot(direction, fisher @ direction)
        before = jax.nn.log_softmax(net(params, inputs))
        ratios = []
        for distance in DISTANCES:
            after = jax.nn.log_softmax(net(params + distance * direction, inputs))
            divergence = (jnp.exp(before) * (before - after)).sum(-1).mean()
            ratios.append(float(divergence / (distance**2 * form / 2)))
        return ratios


def run_seed(config: Config, seed: int, folder: Path) -> dict:
    """The comparisons of one seed after every number of steps."""
    data = small_data(config.data, seed=seed, train_size=config.train_size)
    net, losses_fn = network(data.inputs.shape[-1], config.width)
    batch = (jnp.asarray(data.inputs), jnp.asarray(data.targets))
    rows = []

    def trained() -> dict[str, np.ndarray]:
        params, done, kept = net.init(jax.random.key(seed)), 0, []
        for step in config.steps:
            params = _descend(losses_fn, params, batch, config.learning_rate, step - done)
            kept.append(params)
            done = step
        return {"params": np.stack(kept)}

    kept = kept_arrays(folder / "params.npz", trained)["params"]
    with MetricsLog(folder) as log:
        for step, params in zip(config.steps, jnp.asarray(kept), strict=True):
            row: dict[str, Any] = dict(compare(matrices(net, losses_fn, params, batch)))
            row["loss"] = float(losses_fn(params, batch).mean())
            row["accuracy"] = float(net.accuracy(params, *batch))
            row["kl"] = divergences(net, params, batch[0], jax.random.key(seed))
            log.write(step, "matrices", row)
            rows.append(row | {"step": step})
    return {"rows": rows}


@functools.cache
def network(inputs: int, width: int) -> tuple[FlatMlp, Any]:
    """The network and its losses; one object for each, so that nothing is compiled twice."""
    net = FlatMlp((inputs, width, 10))
    return net, net.losses("cross_entropy")


@lab.run
def run(config: Config, out: Path) -> Records:
    """The comparisons of all seeds."""
    results = shared(config, each_seed(config, functools.partial(run_seed, config)))
    rows = [result["rows"] for result in results.values()]
    return {name: np.array([[row[name] for row in own] for own in rows]) for name in rows[0][0]}


def last(name: str) -> Any:
    """The measure of a claim on a comparison at the end."""
    return lambda runs, config: runs[name][:, -1]


def least_growth(runs: Records, config: Config) -> np.ndarray:
    """The growth of the cosine that grows least."""
    cosines = np.array([runs[f"s({a},{b})"] for a, b in PAIRS])
    return (cosines[:, :, -1] - cosines[:, :, 0]).min(0)


def farthest(runs: Records, config: Config) -> np.ndarray:
    """The ratio of the divergence to its second order that is farthest from 1."""
    ratios = runs["kl"][:, :, -1]
    return np.take_along_axis(ratios, abs(ratios - 1).argmax(1)[:, None], 1)[:, 0]


# fmt: off
lab.claim("fisher-like-hessian", "s(F, H) at the end.", last("s(F,H)"),
          low=0.9, source="seeds", reason="set on seeds 0-4")
lab.claim("covariance-like-fisher", "s(C, F) at the end.", last("s(C,F)"),
          low=0.6, source="seeds", reason="set on seeds 0-4")
lab.claim("hessian-like-covariance", "s(H, C) at the end.", last("s(H,C)"),
          low=0.55, source="seeds", reason="set on seeds 0-4")
lab.claim("cosines-grow", "Least growth of a cosine from first to last step.", least_growth,
          low=0.0, source="seeds", reason="set on seeds 0-4")
lab.claim("same-top-directions", "Overlap of the top subspaces of F and H.", last("overlap(F,H)"),
          low=0.8, source="seeds", reason="set on seeds 0-4")
lab.claim("scales-part", "r(C, F) at the end over r(C, F) at the first step.",
          lambda runs, config: runs["r(C,F)"][:, -1] / runs["r(C,F)"][:, 0],
          high=0.3, source="seeds", reason="set on seeds 0-4")
lab.claim("fisher-is-the-divergence",
          "KL(p_w || p_(w+d)) over d'Fd / 2 at the smallest d, all steps: the ratio farthest "
          "from 1.", farthest, low=0.99, high=1.01, source="theory", paper="Amari 1998",
          reason="exact but for third order")
# fmt: on


@lab.figure("C, H and F in pairs along training; every seed a line.", columns=3, panel=(4.0, 3.2))
def matrix_pairs(panels: Any, runs: Records, config: Config) -> None:
    """Cosines, ratios of traces and overlaps along training; every seed a thin line."""
    words = {"s": "cosine $s$", "r": "ratio of traces $r$", "overlap": "overlap of top subspaces"}
    for axes, (kind, label) in zip(panels, words.items(), strict=True):
        for number, (a, b) in enumerate(PAIRS):
            for i, row in enumerate(runs[f"{kind}({a},{b})"]):
                text = f"${a}$, ${b}$" if i == 0 else None
                axes.plot(runs["step"][i] + 1, row, **style(number), label=text)
        axes.set(xlabel="step + 1", ylabel=label, xscale="log")
        axes.legend()
    panels[1].set_yscale("log")


@lab.extra
def rows(runs: Records, config: Config) -> dict[str, Any]:
    """All comparisons."""
    return {"rows": runs}
