"""Gradient covariance C, Hessian H and Fisher information F along training: alike in direction.

Thomas et al. 2020, "On the Interplay between Noise and Curvature and its Effect on Optimization
and Generalization". Small tanh networks learn the digits with cross-entropy by full-batch gradient
descent; C (uncentred), H and F (exact) are formed and compared by the ratio of their traces
r(A, B), their cosine s(A, B) and the overlap of their top subspaces. Two arms: `fitted` has several
times as many parameters as examples, and its matrices are those of the training set; all labels are
fitted, and C vanishes beside F. `fresh` has several times as many examples as parameters, and its
matrices are those of test examples, near a minimum of the expected loss: there F is close to H in
scale too, C is of their order, and Takeuchi's criterion Tr(H^-1 C) / n of the order of the gap
between test and training loss. And F is the second-order divergence:
KL(p_w || p_(w+d)) = d'Fd / 2 for small d, which C is not.

    python -m experiments information_matrices

Found: fitted, s(F, H) = 0.954, s(C, F) = 0.866, s(H, C) = 0.811, and tr C is 0.003 of tr F. With
fresh data tr F is 1.15 times tr H and tr C 1.37 times tr F, directions agree to 0.97, and
Takeuchi's criterion is 0.95 ± 0.09 of the gap.
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
from experiments.lib.lab import Lab, Options, Runs, shared
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

CUT = 1e-3
"""Of the largest eigenvalue: smaller ones are left out of the inverse in Takeuchi's criterion."""


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 200  # training examples of `fitted`, all of them in every batch
    width: int = 12  # units of its hidden layer; the matrices have the square of the parameters
    fresh_size: int = 1200  # the same of `fresh` ...
    fresh_width: int = 3  # ... and its units
    test_size: int | None = None  # test examples; all others unless given
    learning_rate: float = 0.3  # of gradient descent
    steps: tuple[int, ...] = (0, 20, 100, 500, 3000)  # the matrices are compared after so many


# fmt: off
lab = Lab(
    Config, "Thomas et al. 2020",
    smoke={"seeds": 1, "train_size": 30, "width": 3, "fresh_size": 30,
           "test_size": 30,
           "steps": (0, 5, 20)},
    paper={"data": "mnist", "train_size": 5000, "width": 20,
           "fresh_size": 50_000, "fresh_width": 2, "steps": (0, 100, 500, 2000, 10_000, 50_000)},
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


def takeuchi(found: dict[str, np.ndarray], count: int) -> float:
    """Tr(H^-1 C) / n, the inverse where H is well above zero."""
    values, vectors = np.linalg.eigh(found["H"])
    kept = values > CUT * values.max()
    forms = (vectors[:, kept] * (found["C"] @ vectors[:, kept])).sum(0)
    return float((forms / values[kept]).sum() / count)


def divergences(net: FlatMlp, losses_fn: Any, params: Any, batch: Any, key: Any) -> Any:
    """KL(p_w || p_(w+d)) over d'Fd / 2, and over d'Cd / 2, for random d of all lengths."""
    with jax.enable_x64(True):
        params = jnp.asarray(np.asarray(params), jnp.float64)
        batch = jnp.asarray(np.asarray(batch[0]), jnp.float64), jnp.asarray(np.asarray(batch[1]))
        fisher = flatjax.fisher(net, flatjax.softmax_cross_entropy, params, batch)
        direction = jax.random.normal(key, params.shape, jnp.float64)
        direction /= jnp.linalg.norm(direction)
        _, slopes = jax.jvp(lambda p: losses_fn(p, batch), (params,), (direction,))
        forms = np.array([jnp.vdot(direction, fisher @ direction), jnp.square(slopes).mean()])
        before = jax.nn.log_softmax(net(params, batch[0]))
        ratios = []
        for distance in DISTANCES:
            after = jax.nn.log_softmax(net(params + distance * direction, batch[0]))
            divergence = (jnp.exp(before) * (before - after)).sum(-1).mean()
            ratios.append(float(divergence) / (distance**2 * forms / 2))
        return np.array(ratios).T.tolist()


def run_seed(config: Config, seed: int, folder: Path) -> dict:
    """The comparisons of one seed after every number of steps, by arm."""
    sizes = {
        "fitted": (config.train_size, config.width),
        "fresh": (config.fresh_size, config.fresh_width),
    }
    return {arm: run_arm(config, arm, *size, seed, folder / arm) for arm, size in sizes.items()}


def run_arm(config: Config, arm: str, size: int, width: int, seed: int, folder: Path) -> list:
    """The comparisons of one arm."""
    data = small_data(config.data, seed=seed, train_size=size, test_size=config.test_size)
    net, losses_fn = network(data.inputs.shape[-1], width)
    train = (jnp.asarray(data.inputs), jnp.asarray(data.targets))
    test = (jnp.asarray(data.test_inputs), jnp.asarray(data.test_targets))
    batch = test if arm == "fresh" else train
    rows = []

    def trained() -> dict[str, np.ndarray]:
        params, done, kept = net.init(jax.random.key(seed)), 0, []
        for step in config.steps:
            params = _descend(losses_fn, params, train, config.learning_rate, step - done)
            kept.append(params)
            done = step
        return {"params": np.stack(kept)}

    folder.mkdir(parents=True, exist_ok=True)
    kept = kept_arrays(folder / "params.npz", trained)["params"]
    with MetricsLog(folder) as log:
        for step, params in zip(config.steps, jnp.asarray(kept), strict=True):
            found = matrices(net, losses_fn, params, batch)
            row: dict[str, Any] = dict(compare(found))
            row["loss"] = float(losses_fn(params, train).mean())
            row["gap"] = float(losses_fn(params, test).mean()) - row["loss"]
            row["accuracy"] = float(net.accuracy(params, *train))
            if arm == "fresh":
                row["takeuchi"] = takeuchi(found, size)
            row["kl"], row["kl_by_c"] = divergences(
                net, losses_fn, params, batch, jax.random.key(seed)
            )
            log.write(step, "matrices", row)
            rows.append(row | {"step": step})
    return rows


@functools.cache
def network(inputs: int, width: int) -> tuple[FlatMlp, Any]:
    """The network and its losses; one object for each, so that nothing is compiled twice."""
    net = FlatMlp((inputs, width, 10))
    return net, net.losses("cross_entropy")


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The comparisons of all seeds by arm, (seeds, steps) and more axes each."""
    results = shared(config, each_seed(config, functools.partial(run_seed, config))).values()
    return {
        arm: {
            name: np.array([[row[name] for row in result[arm]] for result in results])
            for name in rows[0]
        }
        for arm, rows in next(iter(results)).items()
    }


def at(arm: str, name: str, step: int = -1) -> Any:
    """The measure of a claim on a comparison, at the end unless at another step."""
    return lambda runs, config: runs[arm][name][:, step]


def over_first(arm: str, name: str) -> Any:
    """The measure of a claim on a comparison at the end over that at the first step."""
    return lambda runs, config: runs[arm][name][:, -1] / runs[arm][name][:, 0]


def over_gap(step: int) -> Any:
    """The measure of a claim on Takeuchi's criterion over the gap of the losses."""
    return lambda runs, config: runs["fresh"]["takeuchi"][:, step] / runs["fresh"]["gap"][:, step]


def farthest(name: str) -> Any:
    """The measure of a claim on the ratios at the shortest distance: the one farthest from 1."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        ratios = np.concatenate([records[name][:, :, -1] for records in runs.values()], axis=1)
        return np.take_along_axis(ratios, abs(ratios - 1).argmax(1)[:, None], 1)[:, 0]

    return measure


# fmt: off
lab.claim("fisher-like-hessian", "s(F, H) at the end, labels fitted.", at("fitted", "s(F,H)"),
          low=0.93, source="seeds", reason="the paper shows curves near 1; null: before training",
          null=at("fitted", "s(F,H)", 0))
lab.claim("covariance-like-fisher", "s(C, F) at the end, labels fitted.", at("fitted", "s(C,F)"),
          low=0.85, source="seeds", reason="the paper shows curves near 1; null: before training",
          null=at("fitted", "s(C,F)", 0))
lab.claim("hessian-like-covariance", "s(H, C) at the end, labels fitted.", at("fitted", "s(H,C)"),
          low=0.8, source="seeds", reason="the paper shows curves near 1; null: before training",
          null=at("fitted", "s(H,C)", 0))
lab.claim("same-top-directions", "Overlap of the top subspaces of F and H at the end.",
          at("fitted", "overlap(F,H)"), low=0.8, source="seeds",
          reason="set on seeds 0-4; null: before training", null=at("fitted", "overlap(F,H)", 0))
lab.claim("fisher-is-the-hessian", "r(F, H) of test examples at the end.",
          at("fresh", "r(F,H)"), low=0.8, high=1.25, source="theory",
          reason="1 where the model is right; null: before training",
          null=at("fresh", "r(F,H)", 0))
lab.claim("covariance-of-their-scale", "r(C, F) of test examples at the end.",
          at("fresh", "r(C,F)"), low=0.8, high=3.0, source="theory",
          reason="1 where the model is right, more where it is too sure; null: labels fitted",
          null=at("fitted", "r(C,F)"))
lab.claim("fresh-directions-agree", "s(F, H) of test examples at the end.",
          at("fresh", "s(F,H)"), low=0.9, source="seeds",
          reason="the paper shows curves near 1; null: before training",
          null=at("fresh", "s(F,H)", 0))
lab.claim("takeuchi-is-the-gap", "Tr(H^-1 C) / n over test minus training loss, at the end.",
          over_gap(-1), low=0.5, high=2.0, source="theory",
          reason="the gap to first order in 1 / n; null: before training", null=over_gap(0))
lab.claim("fitted-scales-part", "r(C, F) at the end over r(C, F) at the first step, labels fitted.",
          over_first("fitted", "r(C,F)"), high=0.05, source="theory",
          paper="not in the paper: no error is left in C",
          reason="null: test examples", null=over_first("fresh", "r(C,F)"))
lab.claim("fisher-is-the-divergence",
          "KL(p_w || p_(w+d)) over d'Fd / 2 at the smallest d, all steps: the ratio farthest "
          "from 1.", farthest("kl"), low=0.99, high=1.01, source="theory", paper="Amari 1998",
          reason="exact but for third order; null: C in place of F", null=farthest("kl_by_c"))
# fmt: on


@lab.figure(
    "C, H and F in pairs along training; every seed a line. Above: labels fitted, training set; "
    "below: more examples than parameters, test set.",
    rows=2,
    columns=3,
    panel=(4.0, 3.0),
)
def pairs(panels: Any, runs: Runs, config: Config) -> None:
    """Cosines, ratios of traces and overlaps along training; every seed a thin line."""
    words = {"s": "cosine $s$", "r": "ratio of traces $r$", "overlap": "overlap of top subspaces"}
    for line, (arm, records) in zip(panels, runs.items(), strict=True):
        for axes, (kind, label) in zip(line, words.items(), strict=True):
            for number, (a, b) in enumerate(PAIRS):
                for i, row in enumerate(records[f"{kind}({a},{b})"]):
                    text = f"${a}$, ${b}$" if i == 0 else None
                    axes.plot(records["step"][i] + 1, row, **style(number), label=text)
            axes.set(xlabel="step + 1", ylabel=f"{label}, {arm}", xscale="log")
        line[1].set_yscale("log")
        line[0].legend()


@lab.extra
def rows(runs: Runs, config: Config) -> dict[str, Any]:
    """All comparisons."""
    return {"rows": runs}
