"""Scale invariance: with batch norm only the direction of the weights counts.

Where every layer is followed by batch norm without scale and shift, and the last layer is not
trained, the loss is a function on the sphere: L(cw) = L(w), so that gradients go with 1 / |w| and
are orthogonal to w, the Hessian with 1 / |w|^2, and eta / |w|^2 is the learning rate that counts
(van Laarhoven 2017). A step of SGD lengthens the weights by a known amount, weight decay shortens
them, and where the two balance each step turns them by sqrt(2 eta lambda) (Wan et al. 2021). These
laws are tested in double precision. On the sphere there are three regimes (Kodryan et al., NeurIPS
2022): convergence, a chaotic equilibrium, and divergence. Weight decay alone makes training
periodic (Lobacheva et al., NeurIPS 2021): as the weights become short the effective rate grows,
until training jumps away. And the width of a minimum on the sphere, 1 / (lambda_1 |w|^2), first
falls and then rises with weight decay, the more so after the learning rate is annealed.

    python -m experiments scale_invariance

Found: the laws hold to rounding, and the angle of a step is 0.9975 of the equilibrium's. The three
regimes are there; in the last one every step turns the weights by a right angle, to which gradients
are orthogonal. With weight decay training jumps away 15 times, without it never. Along the edge of
stability, at 1.015 of 2 / eta, the effective sharpness falls as |w|^2 does, to the power 0.84, and
the test loss with it; that it rises before, by 12 %, is not certain. Annealing sharpens, by a
third.

real: the papers' network, a quarter as wide, on Fashion-MNIST: the laws hold, a small rate
converges and a large one wanders at chance, and annealing helps. 60 epochs are too few for the
balance (an angle of .73 +- .02 of the equilibrium's), and 150 for training to jump away, so that
what follows a jump is void or open. paper: theirs on CIFAR-10, when prepared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib.lab import Lab, Options, Runs, shared
from experiments.lib.runs.kept import each_seed
from experiments.lib.training.recipes import Recipe
from experiments.lib.verdicts.curves import curve
from experiments.lib.verdicts.figures import reference, style
from experiments.scale_invariance.laws import laws
from experiments.scale_invariance.numbers import (
    destabilised,
    edge,
    falls,
    follows,
    gains,
    identities,
    improves,
    last_quarter,
    law,
    rises,
    sharpens,
    smooth,
    trend,
    turning,
)  # fmt: skip
from experiments.scale_invariance.training import DECAYS, decays, sphere

NETWORK = "experiments.lib.nets.scale_invariant:PerceptronSI"


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 300  # training examples
    test_size: int | None = None  # test examples; None for all that are left
    batch_size: int = 30  # examples an update of the laws
    law_rate: float = 0.1  # learning rate of the laws ...
    law_decay: float = 0.05  # ... and weight decay
    law_burn_in: int = 1500  # updates before the angle is measured ...
    law_steps: int = 3000  # ... over so many
    sphere_rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 1.0)  # effective rates
    regimes: tuple[float, float, float] = (1e-3, 0.03, 1.0)  # those that the claims are about
    sphere: Recipe = Recipe(network=NETWORK, batch_size=50, epochs=120, record_every=2)  # training
    decay_rate: float = 0.1  # with weight decay and cross-entropy: the learning rate ...
    decay: float = 0.01  # ... and the decay
    decayed: Recipe = Recipe(network=NETWORK, batch_size=50, epochs=800, record_every=1)
    phase_rate: float = 0.02  # of the phases, with squared error ...
    phase_decay: float = 0.012  # ... and their weight decay
    phases: Recipe = Recipe(network=NETWORK, loss="squared_error", batch_size=100, epochs=1800,
                            record_every=30)  # fmt: skip
    high_rate: float = 0.1  # of the annealed runs, before ...
    low_rate: float = 0.02  # ... and after half of the epochs
    annealed: Recipe = Recipe(network=NETWORK, loss="squared_error", batch_size=100, epochs=1800,
                              record_every=30)  # fmt: skip
    products: int = 10  # of a largest eigenvalue
    measured: int | None = None  # training examples of what is recorded; None for all


# fmt: off
CONV = {"network": "experiments.lib.nets.scale_invariant:ConvNetSI"}
SMALL_CONV = {"network": "experiments.lib.nets.scale_invariant:SmallConvNetSI"}
SMALL = {"batch_size": 20, "epochs": 4, "record_every": 1}
lab = Lab(
    Config, "Kodryan et al. 2022",
    smoke={"seeds": 1, "train_size": 40, "law_burn_in": 5, "law_steps": 5, "products": 4,
           "sphere_rates": (1e-3, 0.03, 1.0), "batch_size": 20,
           "sphere": SMALL, "decayed": SMALL, "annealed": SMALL,
           "phases": {"batch_size": 20, "epochs": 4, "record_every": 1}},
    real={"data": "fashion_mnist", "seeds": 3, "train_size": 1000, "test_size": 1000,
          "measured": 250, "products": 8,
          "law_burn_in": 600, "law_steps": 600, "law_rate": 0.05,
          "sphere_rates": (1e-4, 1e-3, 1e-2, 0.1, 1.0), "regimes": (1e-3, 1e-2, 1.0),
          "sphere": SMALL_CONV | {"batch_size": 100, "epochs": 20, "record_every": 1},
          "decayed": SMALL_CONV | {"batch_size": 100, "epochs": 60, "record_every": 1},
          "phases": SMALL_CONV | {"batch_size": 200, "epochs": 150, "record_every": 5},
          "annealed": SMALL_CONV | {"batch_size": 200, "epochs": 150, "record_every": 5}},
    # Of the code of Lobacheva et al. 2021 (lr .01, decay .001, 1001 epochs, 32 channels, head of
    # norm 10, no augmentation) and of Kodryan et al. 2022 (effective rates from 1e-5 up); batches
    # of 128. The laws, and what has squared error, are ours.
    paper={"data": "cifar10", "seeds": 3, "train_size": 50_000, "measured": 1000,
           "batch_size": 128, "law_burn_in": 0, "law_steps": 1000,
           "sphere_rates": tuple(10.0**k for k in range(-5, 1)), "regimes": (1e-5, 1e-3, 1e-1),
           "sphere": CONV | {"batch_size": 128, "epochs": 1001, "record_every": 10},
           "decay_rate": 0.01, "decay": 0.001,
           "decayed": CONV | {"batch_size": 128, "epochs": 1001, "record_every": 1},
           "phases": CONV | {"batch_size": 128, "epochs": 1000, "record_every": 10},
           "annealed": CONV | {"batch_size": 128, "epochs": 1000, "record_every": 10}},
)
# fmt: on
EXPERIMENT = lab.experiment


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The laws, the sphere by effective learning rate, and the arms with weight decay."""
    seeds = list(config.seed_range())
    parts: dict[str, Callable[[], Runs]] = {
        "sphere": functools.partial(sphere, config, out),
        **{name: functools.partial(decays, config, out, name) for name in DECAYS},
    }
    by_seed = each_seed(config, lambda seed, folder: laws(config, seed))
    found: dict[Any, Any] = shared(config, {**by_seed, **parts})
    runs = {"laws": {k: np.array([found[s][k] for s in seeds]) for k in found[seeds[0]]}}
    return runs | {arm: records for part in parts for arm, records in found[part].items()}


# fmt: off
THEORY = {"source": "theory", "paper": "van Laarhoven 2017"}
LOBACHEVA = "Lobacheva et al. 2021"
LYU = "Lyu, Li & Arora 2022"
lab.claim("identities",
          "Largest relative error of L(cw) = L(w), of gradient and Hessian with c and c^2, and the "
          "cosine of gradient and weights.",
          identities, high=1e-6, reason="null: every weight has a factor of its own",
          null=law("identities_null"), **THEORY)
lab.claim("norm-law", "Largest relative error of |w'|^2 = |w|^2 + eta^2 |g|^2 in single updates.",
          law("norm_law"), high=1e-5, reason="null: with weight decay", null=law("norm_law_null"),
          **THEORY)
lab.claim("same-path",
          "Angle between the ends of two runs whose weights are c times as long, at c^2 times the "
          "learning rate and 1 / c^2 the weight decay.",
          law("same_path"), high=1e-6, reason="null: the decay is not divided",
          null=law("same_path_null"), **THEORY)
lab.claim("equilibrium-angle",
          "Root mean square angle of a step over sqrt(2 eta lambda), where lengths are in balance.",
          law("angle"), low=0.95, high=1.05, source="theory", paper="Wan et al. 2021",
          reason="1; null: the first steps", null=law("angle_null"))
lab.claim("convergence",
          "At the small effective rate: loss of the last quarter over that of the second.",
          trend(0), high=0.7, source="margin", reason="goes on to fall; null: the middle rate",
          null=trend(1))
lab.claim("chaotic-equilibrium",
          "The same at the middle rate.",
          trend(1), low=0.7, high=1.4, source="margin", reason="stands; null: the small rate",
          null=trend(0))
lab.claim("equilibrium-is-no-chance",
          "Training accuracy there, neither all nor chance.",
          last_quarter("train_accuracy", 1), low=0.2, high=0.98, source="paper",
          reason="twice chance; null: the large rate", null=last_quarter("train_accuracy", 2))
lab.claim("divergence", "Training accuracy at the large rate.",
          last_quarter("train_accuracy", 2), high=0.2, source="paper",
          reason="within twice chance; null: the middle rate",
          null=last_quarter("train_accuracy", 1))
lab.claim("divergence-turns",
          "Angle of a step there over a right angle.",
          turning(2), low=0.95, high=1.0, source="theory",
          reason="gradients are orthogonal to the weights; null: the middle rate", null=turning(1))
lab.claim("destabilised",
          "With weight decay: how often the loss jumps to ten times its usual value.",
          destabilised("decay"), low=3.0, source="paper", paper=LOBACHEVA,
          reason="periodic; null: without decay", null=destabilised("no decay"))
lab.claim("sharpens-first",
          "Largest effective sharpness over that of the first record, at a small rate.",
          rises("phases"), low=1.05, source="margin", paper=LYU,
          reason="null: the large rate, which starts at the edge", null=rises("not annealed"))
lab.claim("widens-then",
          "Rank correlation of time and effective sharpness from there on.",
          falls("phases"), high=-0.9, source="margin", paper=LYU,
          reason="null: without weight decay", null=falls("phases, no decay"))
lab.claim("widens-as-norm-falls",
          "Slope of the logarithms of effective sharpness and |w|^2, second half.",
          follows("phases"), low=0.8, high=1.2, source="theory", paper=LYU,
          reason="1 at the edge, where it is 2 |w|^2 / eta; null: without weight decay",
          null=follows("phases, no decay"))
lab.claim("at-the-edge", "Largest eigenvalue over 2 / eta with weight decay, last quarter.",
          edge("phases", "phase_rate"), low=0.9, high=1.1, source="theory",
          paper=LYU, reason="1; null: without weight decay",
          null=edge("phases, no decay", "phase_rate"))
lab.claim("consolidates", "Test loss of the last quarter over that of the second.",
          improves("phases"), high=1.0, source="sign", paper=LYU,
          reason="null: without weight decay", null=improves("phases, no decay"))
lab.claim("annealing-sharpens",
          "Effective sharpness in the last quarter over the second, annealed in between.",
          sharpens("annealed"), low=1.0, source="sign", paper=LYU, reason="null: not annealed",
          null=sharpens("not annealed"))
lab.claim("annealing-helps",
          "Test accuracy in the last quarter, less that without annealing.",
          gains(1), low=0.0, source="sign", paper="Li, Wei & Ma 2019",
          reason="null: before annealing",
          null=gains(0))
# fmt: on


@lab.figure(
    "Fixed effective learning rates on the sphere. Left: training loss, means of five records. "
    "Right: the angle of a step in the last quarter, whose largest value is a right angle. Mean "
    "over seeds, two standard errors.",
    columns=2,
)  # fmt: skip
def regimes(axes: Any, runs: Runs, config: Config) -> None:
    """Three regimes."""
    axes[0].set(yscale="log", xlabel="epoch", ylabel="training loss")
    for number, rate in enumerate(config.sphere_rates):
        records = runs[f"sphere {rate:g}"]
        losses = np.apply_along_axis(smooth, 1, records["loss"][:, 1:])
        epochs = smooth(records["epoch"][0, 1:].astype(float))
        curve(axes[0], epochs, losses, number, f"{rate:g}")
    axes[0].set_ylim(top=1e3)
    axes[0].legend(
        fontsize=7, ncols=3, loc="upper right", title=r"$\eta / |w|^2$", title_fontsize=7
    )
    squares = np.stack(
        [np.array_split(runs[f"sphere {r:g}"]["squared_gradients"][:, 1:], 4, axis=1)[3].mean(1)
         for r in config.sphere_rates], axis=1)  # fmt: skip
    axes[1].set(
        xscale="log", yscale="log", xlabel=r"effective learning rate $\eta / |w|^2$",
        ylabel="angle of a step, radians",
    )  # fmt: skip
    rates = np.array(config.sphere_rates)
    curve(axes[1], rates, np.arctan(rates * np.sqrt(squares)), 0, marker="o")
    reference(axes[1], np.pi / 2, "right angle", at="left")


@lab.figure(
    "With weight decay and without; one seed. Training loss (cross-entropy) and length of the "
    "weights.",
    rows=2, sharex=True, panel=(7.0, 2.0),
)  # fmt: skip
def periodic(axes: Any, runs: Runs, config: Config) -> None:
    """Periodic destabilisation."""
    labels = {"decay": rf"$\lambda$ = {config.decay:g}", "no decay": r"$\lambda$ = 0"}
    axes[0].set(yscale="log", ylabel="training loss")
    axes[1].set(yscale="log", xlabel="epoch", ylabel="$|w|$")
    for number, (arm, label) in enumerate(labels.items()):
        look = style(number, markers=False) | {"linewidth": 1}
        axes[0].plot(runs[arm]["epoch"][0], runs[arm]["loss"][0], label=label, **look)
        axes[1].plot(runs[arm]["epoch"][0], runs[arm]["norm"][0], **look)
    axes[0].legend(fontsize=8)


@lab.figure(
    "Effective sharpness with weight decay and without, with the edge of stability as thin lines, "
    "and test loss; geometric mean over seeds, two standard errors. Top: a small rate. Bottom: a "
    "large rate, annealed at half of the epochs or not.",
    rows=2, columns=2,
)  # fmt: skip
def phases(axes: Any, runs: Runs, config: Config) -> None:
    """Memorisation and consolidation."""
    top = {"phases": (rf"$\lambda$ = {config.phase_decay:g}", config.phase_rate),
           "phases, no decay": (r"$\lambda$ = 0", config.phase_rate)}  # fmt: skip
    bottom = {"annealed": ("annealed", config.low_rate),
              "not annealed": ("not annealed", config.high_rate)}  # fmt: skip
    for row, arms in zip(axes, (top, bottom), strict=True):
        row[0].set(yscale="log", xlabel="epoch", ylabel=r"$\lambda_1(H) |w|^2$")
        row[1].set(yscale="log", xlabel="epoch", ylabel="test loss")
        for number, (arm, (label, last_rate)) in enumerate(arms.items()):
            records = runs[arm]
            epochs = records["epoch"][0]
            rate = np.full(len(epochs), last_rate)
            if arm == "annealed":
                rate[epochs <= config.annealed.epochs // 2] = config.high_rate
            curve(row[0], epochs[1:], records["effective_sharpness"][:, 1:], number, label)
            bound = 2 * records["norm"][:, 1:] ** 2 / rate[1:]
            look = style(number, markers=False) | {"linewidth": 0.8, "alpha": 0.7}
            row[0].plot(epochs[1:], np.exp(np.log(bound).mean(0)), **look)
            curve(row[1], epochs[1:], records["test_loss"][:, 1:], number, label)
        row[1].legend(fontsize=8)


@lab.extra
def ends(runs: Runs, config: Config) -> dict[str, Any]:
    """The laws, and where all arms end."""
    names = ("loss", "train_accuracy", "test_loss", "test_accuracy", "norm")
    return {"laws": runs["laws"]} | {
        arm: {name: records[name][:, -1] for name in names}
        for arm, records in runs.items()
        if arm != "laws"
    }
