"""Learning rate and batch size decide early how curved and how noisy a region SGD trains in.

Jastrzebski et al. 2020, "The Break-Even Point on Optimization Trajectories of Deep Neural
Networks". K is the covariance of the per-example gradients, H the Hessian. A tanh network that
starts flat learns the digits, a quarter of the labels wrong, with cross-entropy. lambda_K, lambda_H
and tr K grow until SGD can no longer stand them, the break-even point; with a larger learning rate
or a smaller batch that comes earlier, and the largest values on the way (medians of 9, means of 9,
up to 97 % training accuracy) stay smaller: the variance-reduction conjecture. By the
pre-conditioning conjecture tr K / lambda_K is larger then. The break-even point of the small rate
is here the first measurement at which tr K exceeds the largest tr K of the large rate; from there
its predictions on the test set leave the path of the large rate's. In the paper's model it is where
(1 - eta lambda_H)^2 + eta^2 s^2 (N - S) / (S (N - 1)) reaches 1, with the batch size S and N
examples; s^2 is here the mean of |H_i e - H e|^2 over the examples, for the top eigenvector e, so
that the sum is the mean square of what a step of SGD makes of e.

The paper's K is that of the gradients of batches, not of examples. It is measured too, and alone
where the network has batch normalisation, with which no example has a gradient of its own. The
conjectures are also about such networks, and the paper finds that without a large learning rate
normalisation does not make the loss surface better conditioned: some arms train the same network
with it, `mlp-3-64-tanh-batch` or `s2cnn-8-batch`. A network of one's own has none, and the claims
on it stay open.

An arm with another order of the batches says what chance does, and how far paths are apart that
have no reason to part; what lies before the break-even point, whether paths part only there.
tr K / lambda_K is compared from the sixth measurement on: it is large in the untrained network.

    python -m experiments break_even_point        # five seeds, some minutes

real: a small convolutional network on a thousand clean images of Fashion-MNIST. paper: SimpleCNN on
CIFAR-10, and not its ResNet-32, which has batch norm and no twin without.

Found: the large rate and the small batch lower lambda_H 4.1 and 3.3 times, and everything measured
on batch gradients that is not a matter of few examples; lambda_K itself 1.4 and 1.0 times, within
its noise. Pre-conditioning is not seen on the digits. At the largest lambda_H the sum of the
paper's model is between 0.07 and 1.6 over the arms, not near 1. That paths part there is void: they
part as much before. On Fashion-MNIST, with convolutions, the large rate lowers lambda_H, lambda_K
and tr K 6.1, 5.4 and 3.7 times, the small batch 3.6, 4.6 and 2.7 times; with batch norm the rate
lowers lambda_H 1.8 times. Pre-conditioning stays open there, and the sum is not near 1 either.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.break_even_point.arms import arms, plain_arms, roles
from experiments.break_even_point.numbers import (
    LEARNED,
    break_even,
    compared,
    largest,
    learned,
    nearest,
    smooth,
)
from experiments.break_even_point.training import run_arm
from experiments.lib.lab import Lab, Options, Runs, shared
from experiments.lib.nets.architecture import Architecture
from experiments.lib.training.minibatch import load_seeds
from experiments.lib.verdicts.curves import words
from experiments.lib.verdicts.figures import style


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 400  # training examples
    label_noise: float = 0.25  # share of wrong labels
    # the network; small initial weights, so that training starts flat
    architecture: Architecture = Architecture(init_scale=0.6)
    rates: tuple[float, ...] = (1.0, 0.3, 0.1)  # from the largest, all with the middle batch size
    batch_sizes: tuple[int, ...] = (8, 40, 200)  # three, all with the smallest learning rate
    norm_rates: tuple[float, ...] = (1.0, 0.1)  # from the largest, with batch normalisation
    norm_steps: int = 480  # steps with it: the small rate needs no more of them than the large one
    time: float = 400.0  # steps times learning rate of every arm without ...
    epochs: int | None = None  # ... or so many passes over the training set in its place
    measurements: int = 120  # on the way of every arm
    examples: int = 200  # K is that of so many training examples
    curvature_examples: int | None = None  # H is that of so many; None: of all
    gradient_batches: int = 30  # K_B is that of so many batches of the middle size
    test_size: int | None = None  # test examples; None: all
    chunk: int = 60  # measurements between two saves


# fmt: off
lab = Lab(
    Config, "Jastrzebski et al. 2020",
    smoke={"seeds": 1, "train_size": 40, "architecture": {"hidden": (8,) * 3}, "rates": (1.0, 0.5),
           "batch_sizes": (8, 8, 8), "norm_rates": (1.0, 0.5), "norm_steps": 20,
           "gradient_batches": 5, "time": 10.0, "measurements": 10, "examples": 16, "chunk": 5},
    real={"data": "fashion_mnist", "seeds": 3, "train_size": 1000, "test_size": 500,
          "label_noise": 0.0, "architecture": {"network": "s2cnn-8"},
          "rates": (0.2, 0.06, 0.02), "batch_sizes": (8, 64, 256), "norm_rates": (0.2, 0.02),
          "norm_steps": 300, "time": 25.0, "measurements": 40, "examples": 100,
          "curvature_examples": 250, "gradient_batches": 15, "chunk": 20},
    paper={
        "data": "cifar10",  # section 4
        "train_size": 50_000,  # all of it; that some is held back is not stated
        "label_noise": 0.0,  # none
        "architecture": {"network": "simple_cnn"},  # appendix
        "rates": (0.1, 0.01, 0.001),  # section 4, SimpleCNN and ResNet-32
        "batch_sizes": (10, 128, 1024),  # section 4: from 10 to 1024; 128 with the rates
        "norm_rates": (1.0, 0.001),  # section 4, SimpleCNN with batch norm
        "epochs": 200,  # section 4
        "norm_steps": 78_000,  # 200 epochs of 390
        "measurements": 200,  # one an epoch: how many is not stated
        "curvature_examples": 2500,  # appendix: 5 % of the training set, as K_B's
        "gradient_batches": 20,  # 20 of 128 are as many
    },
)
# fmt: on
EXPERIMENT = lab.experiment


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The records of every arm."""
    seeds = list(config.seed_range())
    data = load_seeds(
        config.data,
        seeds,
        train_size=config.train_size,
        label_noise=config.label_noise,
        test_size=config.test_size,
        num_classes=config.architecture.classes,
        flat=config.architecture.flat,
    )
    return shared(
        config,
        {
            name: functools.partial(run_arm, config, out / name, arm, data)
            for name, arm in arms(config).items()
        },
    )


class Phases(NamedTuple):
    """Mean distances of the slow arm's predictions to another's path, (seeds,) each.

    Attributes:
      before: before the break-even point.
      after: from there to where nearly everything is learned.
    """

    before: np.ndarray
    after: np.ndarray


def phases(runs: Runs, config: Config, role: str) -> Phases:
    """The distances to the path of the arm in a role; NaN without a break-even point."""
    slow, fast, other = (runs[getattr(roles(config), r)] for r in ("slow", "fast", role))
    found = []
    for i, at in enumerate(break_even(slow, fast)):
        end = learned(slow["accuracy"][i])
        if at is None or at < 2 or at + 2 > end:
            found.append([np.nan] * 2)
            continue
        distance = nearest(slow["predictions"][i][:end], other["predictions"][i])
        found.append([distance[:at].mean(), distance[at:].mean()])
    return Phases(*np.array(found).T)


def apart(phase: str) -> Any:
    """The measure of a claim: the distance to the large rate over that to the other order."""

    def measured(runs: Runs, config: Config) -> np.ndarray:
        fast, again = (getattr(phases(runs, config, role), phase) for role in ("fast", "again"))
        return fast / again

    return measured


def over(a: str, b: str, quantity: str) -> Any:
    """The measure of a claim on the largest value of the arm of one role over another's."""

    def measured(runs: Runs, config: Config) -> np.ndarray:
        named = roles(config)._asdict()
        return largest(runs[named[a]], quantity) / largest(runs[named[b]], quantity)

    return measured


def against_edge(role: str, of: str) -> Any:
    """The measure of a claim on an arm's largest lambda_H times the rate / 2 of another's."""

    def measured(runs: Runs, config: Config) -> np.ndarray:
        named = roles(config)._asdict()
        return largest(runs[named[role]], "lambda_H") * (arms(config)[named[of]].rate / 2)

    return measured


def hand_in_hand(shuffled: bool) -> Any:
    """The measure of a claim on the correlation of lambda_H and lambda_K along training."""

    def measured(runs: Runs, config: Config) -> list[float]:
        rng = np.random.RandomState(0)
        rows = []
        for name in plain_arms(config, most=config.rates[-2]):
            pairs = zip(*(compared(runs[name], q) for q in ("lambda_H", "lambda_K")), strict=True)
            both = [(h, rng.permutation(k) if shuffled else k) for h, k in pairs]
            rows.append([np.corrcoef(h, k)[0, 1] for h, k in both])
        return np.min(rows, 0).tolist()

    return measured


def condition(worst: Any, *, at_top: bool = True, exchanged: bool = False) -> Any:
    """The measure of a claim on the left side of the condition of stability, over all arms.

    At the largest lambda_H or in the untrained network; or as if all had the largest rate.
    """

    def measured(runs: Runs, config: Config) -> list[float]:
        rows, n = [], config.train_size
        for name in plain_arms(config):
            arm = arms(config)[name]
            rate = config.rates[0] if exchanged else arm.rate
            share = (n - arm.batch_size) / (arm.batch_size * (n - 1))
            pairs = zip(*(compared(runs[name], q) for q in ("lambda_H", "variance_H")), strict=True)
            left = [(h, (1 - rate * h) ** 2 + share * rate**2 * v) for h, v in pairs]
            rows.append([row[np.argmax(h) if at_top else 0] for h, row in left])
        return worst(rows, 0).tolist()

    return measured


# fmt: off
QUANTITIES = {
    "lambda-h": ("lambda_H", "lambda_H"), "lambda-k": ("lambda_K", "lambda_K"),
    "trace-k": ("trace_K", "tr K"), "lambda-b": ("lambda_B", "lambda_K of batch gradients"),
    "trace-b": ("trace_B", "tr K of batch gradients"),
}
COMPARED = {
    "rate": ("the smallest learning rate over that with the largest", "slow", "fast"),
    "batch": ("the largest batch over that with the smallest", "large", "small"),
    "norm-rate": ("batch norm and the smallest learning rate over that with the largest",
                  "norm_slow", "norm_fast"),
}
SIGN = {"low": 1.0, "source": "sign"}
for by, (words_of, a, b) in COMPARED.items():
    pair = ("norm_again", "norm_slow") if by == "norm-rate" else ("again", "slow")
    for name, (quantity, what) in QUANTITIES.items():
        if by != "norm-rate" or not name.endswith("-k"):  # with norm no example has a gradient
            lab.claim(f"{by}-reduces-{name}", f"The largest {what} with {words_of}.",
                      over(a, b, quantity), null=over(*pair, quantity), **SIGN)
lab.claim("sharpness-within-stability",
          "The largest lambda_H with the largest learning rate, times rate / 2.",
          against_edge("fast", "fast"), high=1.1, source="theory",
          reason="1, and a tenth for swings", null=against_edge("slow", "fast"))
lab.claim("curvature-and-noise-go-together",
          "Smallest correlation of lambda_H and lambda_K along training, of the arms with all but "
          "the largest learning rate.",
          hand_in_hand(shuffled=False), low=0.8, source="paper", reason="K stands for H there",
          null=hand_in_hand(shuffled=True))
lab.claim("stability-is-reached",
          "Smallest left side of the condition of stability at the largest lambda_H, of all arms.",
          condition(np.min), low=0.7, source="theory", reason="1 at the break-even point",
          null=condition(np.min, at_top=False))
lab.claim("stability-is-kept", "The largest of them.",
          condition(np.max), high=1.1, source="theory", reason="1, and a tenth for swings",
          null=condition(np.max, exchanged=True))
lab.claim("rate-preconditions",
          "Largest tr K / lambda_K with the largest rate over that with the smallest.",
          over("fast", "slow", "ratio_K"), null=over("again", "slow", "ratio_K"), **SIGN)
lab.claim("rate-preconditions-batches", "The same of the gradients of batches.",
          over("fast", "slow", "ratio_B"), null=over("again", "slow", "ratio_B"), **SIGN)
lab.claim("batch-preconditions",
          "Largest tr K / lambda_K with the smallest batch over that with the largest.",
          over("small", "large", "ratio_K"), null=over("again", "slow", "ratio_K"), **SIGN)
lab.claim("paths-differ-after-the-break-even-point",
          "Mean distance of the small rate's predictions after the break-even point to the path of "
          "the large rate's, over that to their own path with another order of the batches.",
          apart("after"), low=1.3, source="seeds", reason="no size is known; null: before it",
          null=apart("before"))
lab.claim("norm-sharpness-within-stability",
          "With batch norm, the largest lambda_H with the largest rate, times rate / 2.",
          against_edge("norm_fast", "norm_fast"), high=1.1, source="theory",
          reason="1, and a tenth for swings", null=against_edge("norm_slow", "norm_fast"))
lab.claim("norm-rate-preconditions",
          "With batch norm, the largest tr K / lambda_K of batch gradients with the largest rate "
          "over that with the smallest.",
          over("norm_fast", "norm_slow", "ratio_B"),
          null=over("norm_again", "norm_slow", "ratio_B"), **SIGN)
lab.claim("norm-alone-does-not-flatten",
          "The largest lambda_K of batch gradients with the smallest rate, with batch norm over "
          "without.",
          over("norm_slow", "slow", "lambda_B"), null=over("norm_again", "norm_slow", "lambda_B"),
          **SIGN)
lab.claim("norm-conditions",
          "The largest tr K / lambda_K of batch gradients with the largest rate, with batch norm "
          "over without.",
          over("norm_fast", "fast", "ratio_B"), null=over("norm_again", "norm_slow", "ratio_B"),
          **SIGN)
# fmt: on


def draw(panel: Any, runs: Runs, config: Config, names: Any, x: str, quantity: str) -> None:
    """Seed means of one quantity of some arms."""
    for number, name in enumerate(names):
        records = runs[name]
        across, values = (np.mean([smooth(row) for row in records[of]], 0) for of in (x, quantity))
        shown = across < (LEARNED if x == "accuracy" else np.inf)
        look = style(number, markers=False)
        panel.plot(across[shown], values[shown], **look, label=str(arms(config)[name]))
    panel.set(xlabel=words(x), ylabel=words(quantity))


@lab.figure("Curvature and noise along training, their start, and 2 / learning rate.",
            rows=2, columns=2, panel=(5.0, 3.4))  # fmt: skip
def growth(axes: Any, runs: Runs, config: Config) -> None:
    """lambda_H, lambda_K, tr K and accuracy of the arms without batch norm."""
    plain = plain_arms(config)
    for panel, quantity in zip(axes.flat, ("lambda_H", "lambda_K", "trace_K", "accuracy"),
                               strict=True):  # fmt: skip
        draw(panel, runs, config, plain, "time", quantity)
    for panel in axes.flat[:3]:
        panel.set_yscale("log")
    for number, rate in enumerate(config.rates):
        look = {**style(number, markers=False), "linewidth": 0.8}
        axes[0, 0].axhline(2 / rate, **look, label=rf"$2/\eta$, $\eta$ = {rate:g}")
    start = axes[1, 1].inset_axes((0.45, 0.15, 0.5, 0.5))
    draw(start, runs, config, plain, "time", "accuracy")
    start.set(xlim=(0, 0.15 * config.time), xlabel="", ylabel="")
    axes[0, 1].legend(fontsize=7, loc="upper right")
    axes[0, 0].legend(fontsize=6, ncols=2, loc="upper right")


@lab.figure("With and without batch normalisation; seed means.", columns=3, panel=(4.0, 3.2))
def batch_norm(axes: Any, runs: Runs, config: Config) -> None:
    """lambda_H, lambda_K and tr K of batch gradients against the training accuracy."""
    fast, slow, _, _, norm_fast, norm_slow, *_ = roles(config)
    for panel, quantity in zip(axes, ("lambda_H", "lambda_B", "trace_B"), strict=True):
        draw(panel, runs, config, (fast, slow, norm_fast, norm_slow), "accuracy", quantity)
        panel.set_yscale("log")
    axes[0].legend(fontsize=7, loc="upper right")


@lab.figure("Paths of the predictions of up to three seeds, over the nearest run's value; the "
            "cross is the break-even point of the small rate.",
            columns=2, panel=(5.0, 4.0))  # fmt: skip
def paths(axes: Any, runs: Runs, config: Config) -> None:
    """The predictions of the large (red) and the small rate (blue) in two principal components."""
    pair = [runs[name] for name in roles(config)[:2]]
    seeds = range(min(3, config.seeds))
    rows = np.stack([[r["predictions"][i].astype(np.float32) for i in seeds] for r in pair])
    flat = rows.reshape(-1, np.prod(rows.shape[3:]))
    there = np.isfinite(flat).all(1)  # before a run diverged
    left, values, _ = np.linalg.svd(flat[there] - flat[there].mean(0), full_matrices=False)
    points = (left * values)[:, :2]
    lines = np.full((len(flat), 2), np.nan)
    lines[there] = points
    lines = lines.reshape(*rows.shape[:3], 2)
    low, high = points.min(0), points.max(0)
    grid = np.meshgrid(*(np.linspace(a, b, 120) for a, b in zip(low, high, strict=True)))
    places = np.stack(grid, -1).reshape(-1, 1, 2)
    closest = ((places - points) ** 2).sum(-1).argmin(1)
    for panel, quantity in zip(axes, ("lambda_K", "accuracy"), strict=True):
        heights = np.stack([[smooth(r[quantity][i]) for i in seeds] for r in pair]).ravel()[there]
        colours = heights[closest].reshape(grid[0].shape)
        shown = panel.pcolormesh(*grid, colours, cmap="Greys", alpha=0.6, shading="nearest")
        panel.figure.colorbar(shown, ax=panel, label=words(quantity))
        for own, colour, name in zip(lines, ("red", "blue"), ("large", "small"), strict=True):
            for i, line in enumerate(own):
                label = f"{name} learning rate" if i == 0 else None
                panel.plot(*line.T, color=colour, linewidth=1.2, label=label)
        for i, at in zip(seeds, break_even(pair[1], pair[0]), strict=False):
            if at is not None:
                panel.plot(*lines[1, i, at], marker="X", color="black", markersize=10)
        panel.set(xlabel="first component", ylabel="second component")
        panel.legend(fontsize=8, loc="upper left")


@lab.extra
def ends(runs: Runs, config: Config) -> dict[str, Any]:
    """The last accuracies."""
    last = {"last_test_accuracy": "test_accuracy", "last_training_accuracy": "accuracy"}
    return {k: {name: r[of][:, -1] for name, r in runs.items()} for k, of in last.items()}
