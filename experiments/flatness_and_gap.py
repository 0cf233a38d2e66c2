"""Flatness and the generalisation gap: only measures that no rescaling of nodes changes can rank.

Dinh et al. (ICML 2017, "Sharp minima can generalize for deep nets"): scaling the weights into a
ReLU node by c and those out of it by 1 / c leaves the function as it is and makes the Hessian as
sharp as one likes. Tsuzuku, Sato and Sugiyama (ICML 2020, "Normalized flat minima") answer with a
sharpness that is minimised over the noise of every node and so cannot change; it follows the gap
between training and test accuracy as the labels become random. Liang et al. (AISTATS 2019) have
the Fisher-Rao norm for the same reason; Jiang et al. (ICLR 2020) compare dozens of such measures.
ReLU networks without biases learn 160 digits, some of the labels wrong, at two learning rates of
Adam, with squared error until the loss is 0.02; in float64 ten measures are taken of each network
and of two copies whose nodes are rescaled at random, by factors up to 3 and up to 10.

    python -m experiments flatness_and_gap

Found: all invariances hold to rounding. Normalised sharpness has the rank correlation 0.89 ± 0.02
with the gap, rescaled copies or not, and noise relative to the weights 0.88 ± 0.01; those of trace,
norm and largest eigenvalue are 0.80, 0.91 and 0.58 without copies and 0.27, 0.28 and 0.22 among
them. To be invariant is not enough: the Fisher-Rao norm, -0.50 ± 0.07, goes the other way.

paper: their CIFAR-10 with a fully connected network, whose nodes are rescaled here; theirs are
convolutional.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatjax
from experiments.lib.lab import Lab, Options
from experiments.lib.nets import losses
from experiments.lib.runs.errors import BadNetwork
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.training import curvature, recipes
from experiments.lib.training.recipes import Recipe
from experiments.lib.training.settings import load_grid, train_grid
from experiments.lib.verdicts.figures import COLORS
from experiments.lib.verdicts.statistics import mean_and_error, rank_correlation

Runs = dict[str, np.ndarray]
"""The measures by name, (seeds, networks, copies), of which the first copy is the network itself;
`gap` and `reached`, (seeds, networks); `function`, `undone` and `identity`, see `measured`."""

INVARIANT = {
    "normalised sharpness": "trace",
    "Fisher-Rao norm": "norm",
    "adaptive SAM": "SAM sharpness",
    "adaptive noise": "Gaussian noise",
}
"""The measures that no rescaling changes, each with one of those that it does."""
MEASURES = (*INVARIANT, "largest eigenvalue", *INVARIANT.values(), "Keskar's phi")


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 160  # training examples
    fractions: tuple[float, ...] = (0.0, 0.2, 0.4, 0.7, 0.9)  # of wrong labels; 0.9 is random
    rates: tuple[float, ...] = (1e-3, 4e-3)  # learning rates of Adam
    factors: tuple[float, ...] = (3.0, 10.0)  # of each copy, the largest by which a node is scaled
    measured: int | None = None  # training examples of the measures; None for all
    rho: float = 0.05  # radius of the SAM sharpness
    adaptive_rho: float = 0.5  # the same relative to the weights
    sigma: float = 0.02  # standard deviation of the Gaussian noise
    adaptive_sigma: float = 0.1  # the same relative to the weights
    recipe: Recipe = Recipe(
        hidden=(48, 48), activation="relu", init_scale=2**0.5, loss="squared_error",
        batch_size=40, epochs=400, record_every=20, stop_loss=0.02,
    )  # network and training  # fmt: skip


# fmt: off
lab = Lab(
    Config, "Tsuzuku et al. 2020", shares=False,
    smoke={"seeds": 1, "train_size": 30, "fractions": (0.0, 0.9), "rates": (1e-3,),
           "factors": (3.0,),
           "recipe": {"hidden": (6,), "batch_size": 15, "epochs": 4, "record_every": 2}},
    real={"data": "fashion_mnist", "seeds": 3, "train_size": 1000, "measured": 250,
          "recipe": {"hidden": (128, 128)}},
    # Theirs: CIFAR-10 and labels of which more and more are random. The rest is ours.
    paper={"data": "cifar10", "train_size": 50_000, "measured": 100,
           "recipe": {"hidden": (512, 512, 512), "batch_size": 128, "epochs": 1000}},
)
# fmt: on
EXPERIMENT = lab.experiment


def without_biases(rate: Any) -> optax.GradientTransformation:
    """Adam that leaves the biases at zero: the network is homogeneous in its weights."""
    biases = lambda params: jax.tree.map(lambda a: a.ndim < 2, params)  # noqa: E731
    return optax.chain(optax.masked(optax.set_to_zero(), biases), optax.adam(rate))


def rescaled(params: Any, factors: Sequence[Any], *, undone: bool = True) -> Any:
    """The weights into each hidden node times its factor, those out of it over it, or as they were.

    Args:
      params: of `experiments.lib.nets.mlp`.
      factors: of the nodes of each hidden layer, (width,).
      undone: whether the weights out of the nodes are divided, so that the function is the same.
    """
    new = {name: dict(layer) for name, layer in params.items()}
    for i, c in enumerate(factors):
        new[f"layer_{i}"] = jax.tree.map(lambda a, c=c: a * c, new[f"layer_{i}"])
        if undone:
            new[f"layer_{i + 1}"]["kernel"] /= c[:, None]
    return new


def measures(config: Config, params: Any, batch: Any) -> dict[str, float]:
    """Every measure of a point, and both sides of the identity of the Fisher-Rao norm."""
    recipe, key = config.recipe, jax.random.key(0)
    model_fn, losses_fn = recipes.model_of(recipe), recipes.losses_fn(recipe)
    point, steps = (losses_fn, params, batch), {"ascent_steps": 10}
    diagonal = curvature.gauss_newton_diagonal(model_fn, params, batch[0])
    rao = flatjax.fisher_rao_norm(
        model_fn, losses.OUTPUT_LOSSES[recipe.loss], params, batch, kind="empirical",
        degree=len(recipe.hidden) + 1,
    )  # fmt: skip
    sam, noise = flatjax.sam_sharpness, functools.partial(flatjax.average_sharpness, key=key)
    relative = {"adaptive": True, "offset": 0.0}
    found = {
        "normalised sharpness": flatjax.normalized_sharpness(params, diagonal).value,
        "Fisher-Rao norm": rao.value,
        "adaptive SAM": sam(*point, rho=config.adaptive_rho, **steps, **relative).value,
        "adaptive noise": noise(*point, sigma=config.adaptive_sigma, **relative).value,
        "largest eigenvalue": flatjax.sharpness(flatjax.hessian(*point), key=key).value,
        "trace": optax.tree.sum(diagonal),
        "norm": optax.tree.norm(params),
        "SAM sharpness": sam(*point, rho=config.rho, **steps).value,
        "Gaussian noise": noise(*point, sigma=config.sigma).value,
        "Keskar's phi": flatjax.eps_sharpness(*point, **steps).value,
        "identity": rao.from_outputs / rao.squared,
    }
    return {name: float(value) for name, value in found.items()}


def measured(config: Config, seed: int, params: Any, batch: Any) -> dict[str, np.ndarray]:
    """The measures of a network and its copies, (copies,).

    Beside them, of each copy, how far its outputs are from the network's, relative to the largest:
    `function`, and `undone` where the weights out of the nodes stay as they were.
    """
    with jax.enable_x64(True):
        params, batch = jax.tree.map(
            lambda a: jnp.asarray(np.asarray(a), jnp.float64), (params, batch)
        )
        rng, model_fn = np.random.default_rng([seed, 9]), recipes.model_of(config.recipe)
        before, widths = model_fn(params, batch[0]), config.recipe.hidden
        each, off = [measures(config, params, batch)], {"function": [0.0], "undone": [0.0]}
        for c in config.factors:
            factors = [c ** rng.uniform(-1, 1, width) for width in widths]
            for name, undone in (("function", True), ("undone", False)):
                after = model_fn(rescaled(params, factors, undone=undone), batch[0])
                off[name].append(float(abs(after - before).max() / abs(before).max()))
            each.append(measures(config, rescaled(params, factors), batch))
        return {k: np.array([m[k] for m in each]) for k in each[0]} | {
            k: np.array(v) for k, v in off.items()
        }


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The measures of all networks, and their gaps."""
    if not config.recipe.flat:
        raise BadNetwork("the nodes of a fully connected network are rescaled: leave out --network")
    seeds, recipe = config.seed_range(), config.recipe
    data = load_grid(config.data, recipe, seeds, config.fractions, train_size=config.train_size)
    trained = train_grid(
        out / "training", recipe, data, seeds, lambda seed, rate: without_biases(rate),
        {rate: rate for rate in config.rates}, quiet=config.quiet,
    )  # fmt: skip

    def of_network(rate: float, fraction: float) -> dict[str, np.ndarray]:
        runs = trained[rate, fraction]

        def every_seed() -> dict[str, np.ndarray]:
            each = [
                measured(
                    config, seed, curvature.run_of(runs.params, i),
                    recipes.training_batch(
                        recipe, curvature.run_of(data[fraction], i), config.measured
                    ),
                )
                for i, seed in enumerate(seeds)
            ]  # fmt: skip
            return {name: np.stack([found[name] for found in each]) for name in each[0]}

        last = {name: runs.records[name][:, -1] for name in ("train_accuracy", "test_accuracy")}
        return kept_arrays(out / f"measures_{rate:g}_{fraction:g}.npz", every_seed) | {
            "gap": last["train_accuracy"] - last["test_accuracy"],
            "reached": runs.reached,
        }

    each = [of_network(rate, fraction) for fraction in config.fractions for rate in config.rates]
    return {name: np.stack([found[name] for found in each], axis=1) for name in each[0]}


def correlations(runs: Runs, name: str, *, copies: bool) -> list[float]:
    """Of each seed the rank correlation of a measure with the gap, with or without the copies."""
    values = runs[name] if copies else runs[name][..., :1]
    gaps = np.where(runs["reached"], runs["gap"], np.nan)[..., None] + 0 * values
    return [rank_correlation(x.ravel(), y.ravel()) for x, y in zip(values, gaps, strict=True)]


def with_gap(name: str) -> Any:
    """The measure of a claim: the `correlations`, rescaled copies among the networks."""
    return lambda runs, config: correlations(runs, name, copies=True)


def largest_change(name: str) -> Any:
    """The measure of a claim: the largest relative change of any copy from its network."""
    return lambda runs, config: abs(runs[name][..., 1:] / runs[name][..., :1] - 1).max(axis=(1, 2))


def largest(name: str) -> Any:
    """The measure of a claim: the largest over networks and copies."""
    return lambda runs, config: runs[name].max(axis=(1, 2))


def identity_off(layers: int) -> Any:
    """The measure of a claim: how far the identity is off with so many layers too many."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        depth = len(config.recipe.hidden) + 1
        factor = ((depth + layers) / depth) ** 2
        return abs(factor * runs["identity"] - 1).max(axis=(1, 2))

    return measure


# fmt: off
ROUNDING = "float64; 1e-10 is far above its rounding and far below what any other measure moves"
lab.claim("same-function",
          "Largest difference of an output of a copy from the network's, over the largest output.",
          largest("function"), high=1e-10, source="theory", paper="Dinh et al. 2017",
          reason=ROUNDING + "; in the null the weights out of the nodes stay as they were",
          null=largest("undone"))
for name, other in INVARIANT.items():
    lab.claim(f"{name.lower().replace(' ', '-')}-invariant",
              f"Largest relative change of a copy: {name}.", largest_change(name), high=1e-10,
              source="theory", reason=f"{ROUNDING}; the null: {other}", null=largest_change(other),
              paper="Liang et al. 2019" if name == "Fisher-Rao norm" else None)
lab.claim("fisher-rao-identity",
          "Largest relative difference of w'Fw from its form in the outputs, layers squared times "
          "the mean square of <output gradient, outputs>.",
          identity_off(0), high=1e-10, source="theory", paper="Liang et al. 2019, theorem 3.1",
          reason=ROUNDING + "; the null counts one layer too many", null=identity_off(1))
lab.claim("normalised-ranks",
          "Rank correlation of normalised sharpness and gap, rescaled copies included.",
          with_gap("normalised sharpness"), low=0.8, source="margin",
          reason="strong, by our choice; the null: the trace, copies included",
          null=with_gap("trace"))
lab.claim("eigenvalue-does-not",
          "Rank correlation of the largest eigenvalue and the gap, rescaled copies included.",
          with_gap("largest eigenvalue"), high=0.5, source="margin", paper="Dinh et al. 2017",
          reason="what is left of a perfect order if half of the points are copies, all of them "
          "sharper than the networks; the null: normalised sharpness",
          null=with_gap("normalised sharpness"))
# fmt: on


@lab.figure(
    "The networks of all seeds (full) and their rescaled copies (open); rank correlations of "
    "measure and gap without and with the copies. No rescaling changes the first four measures.",
    rows=2, columns=5, panel=(2.6, 2.6), sharey=True,
)  # fmt: skip
def scatter(axes: Any, runs: Runs, config: Config) -> None:
    """Every measure against the gap."""
    order = [*INVARIANT, "norm", *(m for m in MEASURES if m not in INVARIANT and m != "norm")]
    colors = np.repeat(COLORS[: len(config.fractions)], len(config.rates))
    for panel, name in zip(axes.flat, order, strict=True):
        for k in range(len(colors)):
            gaps = runs["gap"][:, k]
            for j in range(len(config.factors), -1, -1):
                full = {"color": colors[k]} if j == 0 else {
                    "facecolors": "none", "edgecolors": colors[k], "alpha": 0.5}  # fmt: skip
                panel.scatter(runs[name][:, k, j], gaps, s=16 if j == 0 else 12, **full)
        without, among = (np.mean(correlations(runs, name, copies=c)) for c in (False, True))
        panel.set(xscale="log")
        panel.set_title(f"{name}\n{without:.2f}, with copies {among:.2f}", fontsize=10)
    for panel in axes[:, 0]:
        panel.set_ylabel("generalisation gap")
    handles = [
        axes[0, 0].scatter([], [], color=c, s=16, label=f"{q:g} wrong")
        for c, q in zip(COLORS, config.fractions, strict=False)
    ]
    axes[0, 0].legend(handles=handles, fontsize=7)


@lab.figure(
    "Rank correlation with the gap without and with rescaled copies; mean over seeds, two standard "
    "errors.",
    panel=(6.4, 4.0),
)  # fmt: skip
def ranks(axes: Any, runs: Runs, config: Config) -> None:
    """What is left of each correlation once rescaled copies are among the networks."""
    place = np.arange(len(MEASURES))
    for number, (copies, label) in enumerate(((False, "networks"), (True, "and rescaled copies"))):
        found = [mean_and_error(correlations(runs, m, copies=copies)) for m in MEASURES]
        axes.barh(
            place + 0.2 - 0.4 * (1 - number), [mean for mean, _ in found], height=0.38,
            xerr=[2 * (error or 0.0) for _, error in found], color=COLORS[number], label=label,
        )  # fmt: skip
    axes.set_yticks(place, MEASURES)
    axes.axhline(len(INVARIANT) - 0.5, color="#555555", linewidth=1)
    axes.invert_yaxis()
    axes.set(xlabel="rank correlation with the gap")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower left")


@lab.extra
def numbers(runs: Runs, config: Config) -> dict[str, Any]:
    """Every measure of every network."""
    return dict(runs)
