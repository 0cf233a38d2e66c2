"""Learning rate and batch size decide early how curved and how noisy a region SGD trains in.

Jastrzebski et al. 2020, "The Break-Even Point on Optimization Trajectories of Deep Neural
Networks". K is the covariance of the per-example gradients, H the Hessian. A tanh network that
starts flat learns the digits, a quarter of the labels wrong, with cross-entropy. lambda_K, lambda_H
and tr K grow until SGD can no longer stand them, the break-even point; with a larger learning rate
or a smaller batch that comes earlier, and the largest values on the way (medians of 9, means of 9,
up to 97 % training accuracy) stay smaller: the variance-reduction conjecture. By the
pre-conditioning conjecture tr K / lambda_K is larger then. The break-even point of the small rate
is here the first measurement at which tr K exceeds the largest tr K of the large rate; from there
its predictions on the test set leave the path of the large rate's.

The paper's K is that of the gradients of batches, not of examples. It is measured too, and alone
where the network has batch normalisation, with which no example has a gradient of its own. The
conjectures are also about such networks, and the paper finds that without a large learning rate
normalisation does not make the loss surface better conditioned.

    python -m experiments break_even_point        # three seeds, 2 minutes

Found: a ten times smaller rate makes the largest lambda_H 3.9 times and tr K 1.6 times as large, a
batch of 200 in place of 8 makes them 3.2 and 1.4 times as large; after the break-even point the
paths are 1.5 times as far apart as before. For single examples lambda_K remains open (1.2 times in
both cases, with standard errors of 0.1 and 0.3: of 200, a quarter of them with wrong labels, single
ones decide it late in training); for batches it is 1.6 and 1.4 times as large. With batch norm the
small rate makes lambda_H 5.4 times, lambda_K 2.7 times and tr K 2.3 times as large; and with the
small rate lambda_K is 2.4 times that without norm: by itself the norm makes nothing flatter.

The pre-conditioning conjecture is not seen. The paper has a largest tr K / lambda_K of 14.3 against
10.7; here it does not differ beyond the noise without norm, and with norm it is smaller with the
large rate, by 13 %: a large rate lowers tr K as much as lambda_K, so that over accuracies of 60 to
97 % the ratio's mean is 8.8 with the large rate and 10.4 with the small one. At equal, large rate
the norm itself raises the ratio, by 8 %.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.break_even_point.training import Arm, run_arm
from experiments.lib.lab import Lab, Options, Runs, shared
from experiments.lib.training.minibatch import load_seeds
from experiments.lib.verdicts.curves import words
from experiments.lib.verdicts.figures import style

LEARNED = 0.97
"""Training accuracy up to which is compared."""


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 400  # training examples
    label_noise: float = 0.25  # share of wrong labels
    width: int = 64  # units of each of the three hidden layers
    init_scale: float = 0.6  # of the initial weights; small, so that training starts flat
    rates: tuple[float, ...] = (1.0, 0.3, 0.1)  # from the largest, all with the middle batch size
    batch_sizes: tuple[int, ...] = (8, 40, 200)  # three, all with the smallest learning rate
    norm_rates: tuple[float, ...] = (1.0, 0.1)  # from the largest, with batch normalisation
    norm_steps: int = 480  # steps with it: the small rate needs no more of them than the large one
    time: float = 400.0  # steps times learning rate of every arm without
    measurements: int = 120  # on the way of every arm
    examples: int = 200  # K is that of so many training examples
    gradient_batches: int = 30  # K_B is that of at least so many batches of the middle size
    chunk: int = 60  # measurements between two saves


# fmt: off
lab = Lab(
    Config, "Jastrzebski et al. 2020",
    smoke={"seeds": 1, "train_size": 40, "width": 8, "rates": (1.0, 0.5),
           "batch_sizes": (8, 8, 8), "norm_rates": (1.0, 0.5), "norm_steps": 20,
           "gradient_batches": 5, "time": 10.0, "measurements": 10, "examples": 16, "chunk": 5},
    paper={"data": "cifar10", "train_size": 45000, "width": 512, "rates": (0.1, 0.01, 0.001),
           "time": 4000.0},
)
# fmt: on
EXPERIMENT = lab.experiment


class Roles(NamedTuple):
    """The arms that are compared, by name."""

    fast: str
    slow: str
    small: str
    large: str
    norm_fast: str
    norm_slow: str


def roles(config: Config) -> Roles:
    """The extremes of the learning rates and of the batch sizes."""
    return Roles(
        f"rate_{config.rates[0]:g}",
        f"rate_{config.rates[-1]:g}",
        f"batch_{config.batch_sizes[0]}",
        f"batch_{config.batch_sizes[-1]}",
        f"norm_rate_{config.norm_rates[0]:g}",
        f"norm_rate_{config.norm_rates[-1]:g}",
    )


def arms(config: Config) -> dict[str, Arm]:
    """The arms by name: learning rates, batch sizes, and learning rates with batch norm."""
    small, middle, large = config.batch_sizes

    def plain(rate: float, batch_size: int) -> Arm:
        return Arm(rate, batch_size, round(config.time / rate))

    slowest = config.rates[-1]
    return (
        {f"rate_{rate:g}": plain(rate, middle) for rate in config.rates}
        | {f"batch_{size}": plain(slowest, size) for size in (small, large)}
        | {f"norm_rate_{r:g}": Arm(r, middle, config.norm_steps, True) for r in config.norm_rates}
    )


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The records of every arm."""
    seeds = list(config.seed_range())
    options = {"train_size": config.train_size, "label_noise": config.label_noise}
    data = load_seeds(config.data, seeds, **options)
    return shared(
        config,
        {
            name: functools.partial(run_arm, config, out / name, arm, data)
            for name, arm in arms(config).items()
        },
    )


def smooth(values: np.ndarray) -> np.ndarray:
    """Means of 9 of medians of 9: single spikes late in training do not count."""
    for mean in (np.median, np.mean):
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, 4, mode="edge"), 9)
        values = mean(windows, -1)
    return values


def learned(accuracy: np.ndarray) -> int:
    """The first measurement at which nearly everything is learned."""
    found = np.flatnonzero(accuracy >= LEARNED)
    return int(found[0]) if len(found) else len(accuracy)


def largest(records: dict[str, np.ndarray], quantity: str) -> np.ndarray:
    """The largest smoothed value until nearly everything is learned, for every seed."""
    values = records[quantity]
    ends = [max(learned(row), 5) for row in records["accuracy"]]
    return np.array([smooth(v[:end]).max() for v, end in zip(values, ends, strict=True)], float)


def break_even(slow: dict[str, np.ndarray], fast: dict[str, np.ndarray]) -> list[int | None]:
    """The measurement at which the slow arm's tr K passes the fast arm's largest."""
    found = []
    for row, top in zip(slow["trace_K"], largest(fast, "trace_K"), strict=True):
        passed = np.flatnonzero(smooth(row) > top)
        found.append(int(passed[0]) if len(passed) else None)
    return found


def divergence(slow: dict[str, np.ndarray], fast: dict[str, np.ndarray]) -> list[float]:
    """Mean distance of the slow arm's predictions to the fast arm's path, after over before."""
    found = []
    for i, at in enumerate(break_even(slow, fast)):
        end = learned(slow["accuracy"][i])
        if at is None or at < 2 or at + 2 > end:
            found.append(np.nan)
            continue
        distance = nearest(slow["predictions"][i], fast["predictions"][i])
        found.append(distance[at:end].mean() / distance[:at].mean())
    return found


def nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For every row of a the distance to the closest row of b, per example of the predictions."""
    shown = a.shape[1]
    a, b = (x.reshape(len(x), -1).astype(np.float32) for x in (a, b))
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0).min(1) / shown)


def over(a: str, b: str, quantity: str) -> Any:
    """The measure of a claim on the largest value of the arm of one role over another's."""

    def measured(runs: Runs, config: Config) -> np.ndarray:
        named = roles(config)._asdict()
        return largest(runs[named[a]], quantity) / largest(runs[named[b]], quantity)

    return measured


def against_edge(role: str) -> Any:
    """The measure of a claim on the largest lambda_H times rate / 2."""

    def measured(runs: Runs, config: Config) -> np.ndarray:
        name = getattr(roles(config), role)
        return largest(runs[name], "lambda_H") * (arms(config)[name].rate / 2)

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
REDUCED = {
    "rate": {"lambda-h": 2.0, "lambda-k": 1.0, "trace-k": 1.25, "lambda-b": 1.3, "trace-b": 1.3},
    "batch": {"lambda-h": 1.7, "lambda-k": 1.0, "trace-k": 1.15, "lambda-b": 1.0, "trace-b": 1.25},
    "norm-rate": {"lambda-h": 3.0, "lambda-b": 1.7, "trace-b": 1.8},
}
SEEN = {"source": "seeds", "reason": "set on seeds 0 and 1"}
for by, (compared, a, b) in COMPARED.items():
    for name, low in REDUCED[by].items():
        lab.claim(f"{by}-reduces-{name}", f"The largest {QUANTITIES[name][1]} with {compared}.",
                  over(a, b, QUANTITIES[name][0]), low=low, **SEEN)
lab.claim("sharpness-within-stability",
          "The largest lambda_H with the largest learning rate, times rate / 2.",
          against_edge("fast"), high=1.1, **SEEN)
lab.claim("rate-preconditions",
          "Largest tr K / lambda_K with the largest rate over that with the smallest.",
          over("fast", "slow", "ratio_K"), low=1.0, source="sign")
lab.claim("rate-preconditions-batches", "The same of the gradients of batches.",
          over("fast", "slow", "ratio_B"), low=1.0, source="sign")
lab.claim("batch-preconditions",
          "Largest tr K / lambda_K with the smallest batch over that with the largest.",
          over("small", "large", "ratio_K"), low=1.0, source="sign")
lab.claim("paths-part-at-the-break-even-point",
          "Mean distance of the small rate's predictions to the path of the large rate's, after "
          "the break-even point over before.",
          lambda runs, config: divergence(*(runs[roles(config)[i]] for i in (1, 0))),
          low=1.2, **SEEN)
lab.claim("norm-sharpness-within-stability",
          "With batch norm, the largest lambda_H with the largest rate, times rate / 2.",
          against_edge("norm_fast"), high=1.1, **SEEN)
lab.claim("norm-rate-preconditions",
          "With batch norm, the largest tr K / lambda_K of batch gradients with the largest rate "
          "over that with the smallest.",
          over("norm_fast", "norm_slow", "ratio_B"), low=1.0, source="sign")
lab.claim("norm-alone-does-not-flatten",
          "The largest lambda_K of batch gradients with the smallest rate, with batch norm over "
          "without.",
          over("norm_slow", "slow", "lambda_B"), low=1.3, **SEEN)
lab.claim("norm-conditions",
          "The largest tr K / lambda_K of batch gradients with the largest rate, with batch norm "
          "over without.",
          over("norm_fast", "fast", "ratio_B"), low=1.0, **SEEN)
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
    plain = [name for name, arm in arms(config).items() if not arm.batch_norm]
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
    axes[0, 1].legend(fontsize=7)
    axes[0, 0].legend(fontsize=6, ncols=2)


@lab.figure("With and without batch normalisation; seed means.", columns=3, panel=(4.0, 3.2))
def batch_norm(axes: Any, runs: Runs, config: Config) -> None:
    """lambda_H, lambda_K and tr K of batch gradients against the training accuracy."""
    fast, slow, _, _, norm_fast, norm_slow = roles(config)
    for panel, quantity in zip(axes, ("lambda_H", "lambda_B", "trace_B"), strict=True):
        draw(panel, runs, config, (fast, slow, norm_fast, norm_slow), "accuracy", quantity)
        panel.set_yscale("log")
    axes[0].legend(fontsize=7)


@lab.figure("Paths of the predictions of up to three seeds, over the nearest run's value; the "
            "cross is the break-even point of the small rate.",
            columns=2, panel=(5.0, 4.0))  # fmt: skip
def paths(axes: Any, runs: Runs, config: Config) -> None:
    """The predictions of the large (red) and the small rate (blue) in two principal components."""
    pair = [runs[name] for name in roles(config)[:2]]
    seeds = range(min(3, config.seeds))
    rows = np.stack([[r["predictions"][i].astype(np.float32) for i in seeds] for r in pair])
    flat = rows.reshape(-1, np.prod(rows.shape[3:]))
    left, values, _ = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    points = (left * values)[:, :2]
    lines = points.reshape(*rows.shape[:3], 2)
    low, high = points.min(0), points.max(0)
    grid = np.meshgrid(*(np.linspace(a, b, 120) for a, b in zip(low, high, strict=True)))
    places = np.stack(grid, -1).reshape(-1, 1, 2)
    closest = ((places - points) ** 2).sum(-1).argmin(1)
    for panel, quantity in zip(axes, ("lambda_K", "accuracy"), strict=True):
        heights = np.stack([[smooth(r[quantity][i]) for i in seeds] for r in pair]).ravel()
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
        panel.legend(fontsize=8)


@lab.extra
def ends(runs: Runs, config: Config) -> dict[str, Any]:
    """The last accuracies."""
    last = {"last_test_accuracy": "test_accuracy", "last_training_accuracy": "accuracy"}
    return {k: {name: r[of][:, -1] for name, r in runs.items()} for k, of in last.items()}
