"""Fast ensembles: networks along a cyclic learning rate, their average, and independent ones.

Fast geometric ensembling (FGE; Garipov et al., NeurIPS 2018, "Loss surfaces, mode connectivity, and
fast ensembling of DNNs") goes on from a trained network with a learning rate that rises and falls,
and takes a member at the end of every cycle; SWA (Izmailov et al., UAI 2018, "Averaging weights
leads to wider optima and better generalization") averages the weights of these members in place of
their predictions. Here an MLP learns 400 digits, a fifth of whose labels are wrong, for 50 epochs,
and goes on for 8 cycles of 8 epochs. The null is the same with the smallest rate all along, whose
members do not differ. Beside them are as many networks trained independently, at several times the
cost. Members are compared by their negative log-likelihood (NLL) on the test set, as they are and
at the best temperature (Ashukha et al. 2020).

    python -m experiments fast_ensembling

Found: the ensemble of FGE has 0.86 of its members' NLL, 0.95 at the best temperature, and the
average of their weights 0.93; but it is no more accurate than the network before the cycles (0.0 ±
0.6 points), and every member after the second makes it worse. The first cycle leaves a third of the
wrong labels unlearned, and a network with 0.85 of the NLL; the next ones learn them again. As many
independent networks have 0.78 of the ensemble's NLL, and two of them, which cost less, 0.90: that
FGE beats independent networks at equal cost (Garipov et al.) is not seen here, with wrong labels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatjax
from experiments.lib.lab import Lab, Options, Runs, Table
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.training import minibatch, recipes
from experiments.lib.training.between import Between
from experiments.lib.training.curvature import run_of
from experiments.lib.training.descent import Descent, descent, updates
from experiments.lib.training.recipes import Recipe
from experiments.lib.training.settings import train_settings
from experiments.lib.verdicts.curves import curve, words
from experiments.lib.verdicts.figures import reference, style
from experiments.lib.verdicts.statistics import with_error

ARMS = ("FGE", "small rate", "independent")


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 400  # training examples
    test_size: int | None = None  # test examples; None for all that are left
    label_noise: float = 0.2  # the fraction of wrong labels
    recipe: Recipe = Recipe(
        activation="relu", init_scale=2**0.5, batch_size=40, epochs=50, record_every=10
    )  # network and training before the cycles
    descent: Descent = Descent(learning_rate=0.1, weight_decay=1e-3)
    members: int = 8  # cycles, and independent networks
    cycle: int = 8  # epochs of one
    high: float = 0.6  # the learning rate in the middle of a cycle ...
    low: float = 0.005  # ... and at its ends

    def __post_init__(self):
        if self.recipe.loss != "cross_entropy":
            raise ValueError(
                "ensembles are judged by likelihood: recipe.loss must be cross_entropy"
            )


# fmt: off
lab = Lab(
    Config, "Garipov et al. 2018", shares=False,
    smoke={"seeds": 1, "train_size": 40, "test_size": 40, "members": 2, "cycle": 1,
           "recipe": {"hidden": (8,), "batch_size": 10, "epochs": 2, "record_every": 1}},
    real={"data": "fashion_mnist", "seeds": 3, "train_size": 2000, "test_size": 2000,
          "members": 5, "cycle": 4, "high": 0.2,
          "recipe": {"network": "s2cnn-16", "batch_size": 50, "epochs": 30}},
    # The authors' code, timgaripov/dnn-mode-connectivity, with WRN-28-10 on CIFAR-100: 160 of 200
    # epochs, then 20 cycles. Where it anneals linearly, here a cosine does.
    paper={"data": "cifar100", "seeds": 3, "train_size": 50_000, "label_noise": 0.0,
           "descent": {"momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine"},
           "members": 20, "cycle": 2, "high": 0.05, "low": 0.01,
           "recipe": {"network": "wide_resnet-28-10", "classes": 100, "batch_size": 128,
                      "epochs": 160, "flip": True, "crop": 4}},
)
# fmt: on
EXPERIMENT = lab.experiment


def rate(config: Config, high: Any) -> Any:
    """The learning rate by the update: cycles that begin and end with the smallest."""
    period = config.cycle * updates(config.recipe, config.train_size)
    schedule = flatjax.cyclic_schedule(config.low, high, period)
    return lambda count: schedule(count + period // 2)


@lab.run
def run(config: Config, out: Path) -> Runs:
    """Trains all members, and scores their ensembles."""
    seeds, recipe, count = list(config.seed_range()), config.recipe, config.members
    rate(config, config.high)  # raises for a cycle of an odd number of updates
    data = minibatch.load_seeds(
        config.data, seeds, train_size=config.train_size, test_size=config.test_size,
        label_noise=config.label_noise, num_classes=recipe.classes, flat=recipe.flat,
    )  # fmt: skip

    def answers(params: Any, model_state: Any, data: Any, key: Any) -> dict[str, Any]:
        return {"logits": recipes.logits(recipe, params, model_state, data.test_inputs)}

    alone = minibatch.train_arm(
        out / "independent",
        recipe,
        minibatch.repeat(data, count),
        [seed + 1000 * member for seed in seeds for member in range(count)],
        lambda seed, hyper: descent(config.descent, recipe, config.train_size),
        measure=answers,
        quiet=config.quiet,
    )
    period = config.cycle * updates(recipe, config.train_size)

    def cycles(seed: Any, high: Any) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(config.descent.weight_decay)
        step = optax.sgd(rate(config, high), config.descent.momentum or None)
        return optax.chain(decay, step, flatjax.swa(every=period))

    settings = {"FGE": config.high, "small rate": config.low}
    first = run_of((alone.params, alone.model_state), slice(None, None, count))
    cyclic = train_settings(
        out / "cycles",
        dataclasses.replace(recipe, epochs=count * config.cycle, record_every=1),
        data,
        seeds,
        cycles,
        settings,
        measure=answers,
        start=minibatch.repeat(first, len(settings)),
        quiet=config.quiet,
    )

    ends = np.arange(1, count + 1) * config.cycle
    logits = {arm: found.records["logits"][:, ends] for arm, found in cyclic.items()}
    last = alone.records["logits"][:, -1]
    logits["independent"] = last.reshape(len(seeds), count, *last.shape[1:])
    for arm, found in cyclic.items():
        logits[f"SWA, {arm}"] = np.stack(
            [averaged(recipe, run_of(data, i), run_of(found, i)) for i in range(len(seeds))]
        )[:, None]
    scored = {
        arm: kept_arrays(
            out / f"{arm.replace(', ', '_').replace(' ', '_').lower()}.npz",
            lambda z=z: scores(z, data.test_targets, seeds),
        )
        for arm, z in logits.items()
    }
    for arm, found in cyclic.items():
        scored[arm] |= {n: found.records[n] for n in ("epoch", "train_loss", "test_loss")}
    return scored


def averaged(recipe: Recipe, data: Any, trained: minibatch.Trained) -> np.ndarray:
    """The logits of one run's average on the test set, with batch statistics of its own."""
    params = flatjax.averaged_params(trained.opt_state, trained.params)
    return np.asarray(Between(recipe, data, trained.model_state).answers(params))


def scores(logits: np.ndarray, targets: np.ndarray, seeds: Any) -> dict[str, np.ndarray]:
    """How good members are, and ensembles of the first 1, 2, ... of them.

    Args:
      logits: (seeds, members, n, classes).
      targets: (seeds, n).
      seeds: of the halves of the test set, between which the temperature is chosen.

    Returns:
      Arrays (seeds, members): `nll`, `calibrated` and `accuracy` of the first members together, by
      their mean prediction, and `disagreement`, the share of the examples on which two of them
      differ; `member nll` and so on of each member alone.
    """

    def of(z: np.ndarray, seed: int, labels: np.ndarray) -> dict[str, float]:
        found = flatjax.calibrated_nll(z, labels, key=jax.random.key(seed))
        hits = np.asarray(jax.nn.softmax(jnp.asarray(z)).mean(0).argmax(-1)) == labels
        return {
            "nll": float(found.uncalibrated),
            "calibrated": float(found.value),
            "accuracy": float(hits.mean()),
        }

    rows = []
    for z, labels, seed in zip(logits, targets, seeds, strict=True):
        count, chosen = len(z), z.argmax(-1)
        together = [of(z[: k + 1], seed, labels) for k in range(count)]
        alone = [of(z[k : k + 1], seed, labels) for k in range(count)]
        row = {name: [each[name] for each in together] for name in together[0]}
        row |= {f"member {name}": [each[name] for each in alone] for name in alone[0]}
        unequal = (chosen[:, None] != chosen).mean(-1)
        row["disagreement"] = [
            unequal[:k, :k].sum() / max(1, k * (k - 1)) for k in range(1, count + 1)
        ]
        rows.append(row)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def over_member(arm: str, name: str, of: str | None = None) -> Any:
    """The measure of a claim: a number of an arm's ensemble over the mean of members'."""
    return lambda runs, config: runs[arm][name][:, -1] / runs[of or arm][f"member {name}"].mean(1)


def over_base(arm: str) -> Any:
    """The measure of a claim: the accuracy of an ensemble minus that before the cycles."""
    return lambda runs, config: runs[arm]["accuracy"][:, -1] - runs["independent"]["accuracy"][:, 0]


def over_fge(members: int) -> Any:
    """The measure of a claim: the NLL of so many independent networks over that of FGE."""
    return lambda runs, config: (
        runs["independent"]["nll"][:, members - 1] / runs["FGE"]["nll"][:, -1]
    )


# fmt: off
NULL = "the null has the small rate all along"
lab.claim("fge-beats-its-members", "NLL of the FGE ensemble over the mean of its members.",
          over_member("FGE", "nll"), high=0.97, source="margin", reason=NULL,
          null=over_member("small rate", "nll"))
lab.claim("fge-beats-its-members-calibrated",
          "The same, each at its best temperature.", over_member("FGE", "calibrated"),
          high=1.0, source="sign", reason=NULL, null=over_member("small rate", "calibrated"))
lab.claim("fge-is-as-accurate", "Test accuracy of the FGE ensemble minus that before the cycles.",
          over_base("FGE"), low=0.0, source="sign", reason=NULL, null=over_base("small rate"))
lab.claim("swa-beats-members", "NLL of the averaged weights over the mean of the members.",
          over_member("SWA, FGE", "nll", "FGE"), high=1.0, source="sign", reason=NULL,
          paper="Izmailov et al. 2018", null=over_member("SWA, small rate", "nll", "small rate"))
lab.claim("independent-beats-fge",
          "NLL of as many independent networks over that of the FGE ensemble.",
          lambda runs, config: over_fge(config.members)(runs, config), high=1.0, source="sign",
          reason="at several times the cost; the null is one network", null=over_fge(1))
# fmt: on


@lab.figure(
    "Test NLL against the number of members, over that of the one network before the cycles, at "
    "temperature one and at the best; mean over seeds, two standard errors. Across, one network "
    "with the averaged weights of all members of FGE.",
    columns=2, sharey=True,
)  # fmt: skip
def members(axes: Any, runs: Runs, config: Config) -> None:
    """What another member brings."""
    count = np.arange(1, config.members + 1)
    for panel, name in zip(axes, ("nll", "calibrated"), strict=True):
        base = runs["independent"][name][:, :1]
        for number, arm in enumerate(ARMS):
            curve(panel, count, runs[arm][name] / base, number, arm, marker="o")
        reference(panel, (runs["SWA, FGE"][name] / base).mean(), "SWA")
        panel.set(xlabel="members")
    axes[0].set(ylabel="test NLL over the base network's", title="as they are")
    axes[1].set(title="at the best temperature")
    axes[1].legend(fontsize=8, loc="lower left")


@lab.figure(
    "Learning rate and losses along the cycles; geometric mean over seeds, two standard errors. "
    "Members are taken at the dots.",
    rows=3, sharex=True, panel=(7.0, 1.9),
)  # fmt: skip
def cycles(axes: Any, runs: Runs, config: Config) -> None:
    """The rise and fall of every cycle."""
    each = updates(config.recipe, config.train_size)
    count = np.arange(config.members * config.cycle * each + 1)
    ends = np.arange(1, config.members + 1) * config.cycle
    for number, (arm, high) in enumerate({"FGE": config.high, "small rate": config.low}.items()):
        options = style(number, markers=False)
        axes[0].plot(count / each, rate(config, high)(count), **options)
        for panel, name in zip(axes[1:], ("test_loss", "train_loss"), strict=True):
            panel.set(yscale="log", ylabel=words(name))
            losses = runs[arm][name]
            curve(panel, runs[arm]["epoch"][0], losses, number, arm)
            mean = np.exp(np.log(losses[:, ends]).mean(0))
            panel.plot(ends, mean, style(number)["marker"], color=options["color"])
    axes[0].set(ylabel="learning rate")
    axes[1].legend(fontsize=8, loc="upper right")
    axes[2].set(xlabel="epochs after the base network")


@lab.table
def comparison(runs: Runs, config: Config) -> Table:
    """Every ensemble in numbers, with its cost."""
    base, cost = config.recipe.epochs, config.members * config.cycle
    afford = max(1, (base + cost) // base)
    first = {"one network": ("independent", 1, base),
             f"{afford} independent": ("independent", afford, afford * base)}  # fmt: skip
    rows = [
        _row(runs[arm], name, number, epochs)
        for name, (arm, number, epochs) in {
            **first,
            **{arm: (arm, config.members, base + cost) for arm in ARMS[:2]},
            "SWA": ("SWA, FGE", 1, base + cost),
            f"{config.members} independent": ("independent", config.members, config.members * base),
        }.items()
    ]
    columns = ("ensemble", "epochs", "NLL", "calibrated NLL", "accuracy, %", "NLL of a member",
               "members disagree, %")  # fmt: skip
    return Table(columns, rows, "Mean and standard error over seeds, on the test set.")


def _row(records: dict[str, np.ndarray], name: str, number: int, epochs: int) -> list[Any]:
    numbers = [records[of][:, number - 1] for of in ("nll", "calibrated")]
    numbers += [100 * records["accuracy"][:, number - 1]]
    numbers += [records["member nll"][:, :number].mean(1)]
    return [
        name,
        epochs,
        *map(with_error, [*numbers, 100 * records["disagreement"][:, number - 1]]),
    ]
