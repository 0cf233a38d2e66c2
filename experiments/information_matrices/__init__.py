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

`--network` is that of `fitted`; `fresh` has its own, by `--fresh-architecture.network`.

Found: fitted, s(F, H) = 0.954, s(C, F) = 0.866, s(H, C) = 0.811, and tr C is 0.003 of tr F. With
fresh data tr F is 1.15 times tr H and tr C 1.37 times tr F, directions agree to 0.97, and
Takeuchi's criterion is 0.95 ± 0.09 of the gap. With convolutions on Fashion-MNIST s(F, H) = 0.990,
and 0.81 to 0.82 for the other two; Takeuchi's criterion is 0.54 ± 0.15 of the gap.

real: small convolutional networks on Fashion-MNIST, by SGD with momentum.
paper: one of the paper's networks on MNIST, by SGD with momentum, when it is prepared.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.information_matrices.comparisons import PAIRS
from experiments.information_matrices.training import run_seed
from experiments.lib.lab import Lab, Options, Runs, shared
from experiments.lib.nets.architecture import Architecture
from experiments.lib.runs.kept import each_seed
from experiments.lib.verdicts.figures import style


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 200  # training examples of `fitted` ...
    architecture: Architecture = Architecture(hidden=(12,))  # ... and its network
    fresh_size: int = 1200  # the same of `fresh` ...
    fresh_architecture: Architecture = Architecture(hidden=(3,))  # ... which --network leaves alone
    test_size: int | None = None  # test examples; all others unless given
    pool: int = 1  # images are averaged over squares of so many pixels on a side
    batch_size: int | None = None  # examples a step, drawn with replacement; all unless given
    learning_rate: float = 0.3  # of gradient descent ...
    momentum: float = 0.0  # ... with so much heavy-ball momentum
    steps: tuple[int, ...] = (0, 20, 100, 500, 3000)  # the matrices are compared after so many


# fmt: off
lab = Lab(
    Config, "Thomas et al. 2020",
    smoke={"seeds": 1, "train_size": 30, "architecture": {"hidden": (3,)}, "fresh_size": 30,
           "test_size": 30, "steps": (0, 5, 20)},
    real={"data": "fashion_mnist", "seeds": 3, "pool": 4, "test_size": 1000,
          "train_size": 200, "architecture": {"network": "cnn-4-tanh"},
          "fresh_size": 5000, "fresh_architecture": {"network": "cnn-2-tanh"},
          "batch_size": 64, "learning_rate": 0.01, "momentum": 0.9,  # as in `paper`
          "steps": (0, 300, 6000)},
    paper={
        "data": "mnist", "pool": 4,  # appendix B.2: 7 x 7 inputs
        # Appendix B.2: one hidden layer, by default of 70 ReLU units.
        "architecture": {"hidden": (70,), "activation": "relu"},
        "fresh_architecture": {"hidden": (70,), "activation": "relu"},
        # Its experiments as remembered, not checked against the text: 5,000 to 50,000 examples, SGD
        # with momentum 0.9, rates of 0.001 to 0.01, batches of 64 or 512, measured every 75k steps.
        "train_size": 5000, "fresh_size": 50_000,
        "batch_size": 64, "learning_rate": 0.01, "momentum": 0.9,
        "steps": tuple(range(0, 750_001, 75_000)),
    },
)
# fmt: on
EXPERIMENT = lab.experiment


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
