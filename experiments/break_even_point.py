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

    python -m experiments break_even_point        # three seeds, 2 minutes of one core

Found: a ten times smaller rate makes the largest lambda_H 3.9 times and tr K 1.6 times as large, a
batch of 200 in place of 8 makes them 3.2 and 1.4 times as large; after the break-even point the
paths are 1.5 times as far apart as before. Open remain lambda_K (1.2 times in both cases, with
standard errors of 0.1 and 0.3: of 200 examples, a quarter of them with wrong labels, single ones
decide it late in training) and with it the pre-conditioning conjecture: 14.3 against 10.7 in the
paper, tr K / lambda_K does not differ beyond the noise here.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import flatjax
from experiments.lib.claims import Claim, Figure, judge, run_folder, write_summary
from experiments.lib.figures import figure, style
from experiments.lib.progress import say
from experiments.lib.small import FlatMlp, SmallData, small_data, stack_seeds
from experiments.lib.trajectory import run_chunks
from experiments.registry import Experiment, ExperimentConfig

TRACKER = flatjax.track(1, products=2)
SHOWN = 200
"""Test examples whose predictions are recorded."""


@dataclass(frozen=True, kw_only=True)
class Config(ExperimentConfig):
    """The options."""

    seeds: int = 3
    first_seed: int = 100

    data: str = "digits"
    """The data set."""

    train_size: int = 400
    """Training examples."""

    label_noise: float = 0.25
    """Share of wrong labels."""

    width: int = 64
    """Units of each of the three hidden layers."""

    init_scale: float = 0.6
    """Of the initial weights; small, so that training starts flat."""

    rates: tuple[float, ...] = (1.0, 0.3, 0.1)
    """Learning rates, from the largest, all with the middle batch size ..."""

    batch_sizes: tuple[int, ...] = (8, 40, 200)
    """... and three batch sizes, all with the smallest learning rate."""

    time: float = 400.0
    """Steps times learning rate of every arm."""

    measurements: int = 120
    """Measurements on the way of every arm."""

    examples: int = 200
    """K is that of so many training examples."""

    chunk: int = 60
    """Measurements between two saves."""


PRESETS = {
    "smoke": Config(
        seeds=1,
        train_size=40,
        width=8,
        rates=(1.0, 0.5),
        batch_sizes=(8, 8, 8),
        time=10.0,
        measurements=10,
        examples=16,
        chunk=5,
    ),
    "cpu": Config(),
    "gpu": Config(data="cifar10", train_size=20000, width=256, rates=(0.1, 0.03, 0.01), time=2000),
    "paper": Config(
        data="cifar10", train_size=45000, width=512, rates=(0.1, 0.01, 0.001), time=4000
    ),
}


class State(NamedTuple):
    """A state of training; with a leading axis of seeds."""

    params: jax.Array
    track: Any
    key: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 7))
def _advance(net, losses_fn, batch_size, examples, rate_and_every, data, state, blocks):
    rate, every = rate_and_every

    def block(data, state, _):
        batch = (data.inputs, data.targets)

        def update(_, carry):
            params, key = carry
            key, draw = jax.random.split(jax.random.wrap_key_data(key))
            index = jax.random.choice(draw, batch[1].shape[0], (batch_size,), replace=False)
            part = jax.tree.map(lambda a: a[index], batch)
            gradient = jax.grad(lambda p: losses_fn(p, part).mean())(params)
            return params - rate * gradient, jax.random.key_data(key)

        params, key = jax.lax.fori_loop(0, every, update, (state.params, state.key))
        operator = flatjax.hessian(losses_fn, params, batch)
        track = jax.lax.fori_loop(0, 3, lambda _, t: TRACKER.update(operator, t), state.track)
        some = jax.tree.map(lambda a: a[:examples], batch)
        values = jnp.linalg.eigvalsh(flatjax.gradient_gram(losses_fn, params, some))
        predictions = jax.nn.softmax(net(params, data.test_inputs[:SHOWN]))
        found = {
            "lambda_H": track.values[0],
            "lambda_K": values[-1],
            "trace_K": values.sum(),
            "loss": losses_fn(params, batch).mean(),
            "accuracy": net.accuracy(params, *batch),
            "test_accuracy": net.accuracy(params, data.test_inputs, data.test_targets),
            "predictions": predictions.astype(jnp.float16),
        }
        return State(params, track, key), found

    def one(data, state):
        return jax.lax.scan(functools.partial(block, data), state, length=blocks)

    return jax.vmap(one)(data, state)


def arms(config: Config) -> dict[str, tuple[float, int]]:
    """Learning rate and batch size of every arm."""
    small, middle, large = config.batch_sizes
    found = {f"rate_{rate:g}": (rate, middle) for rate in config.rates}
    slowest = config.rates[-1]
    return found | {f"batch_{small}": (slowest, small), f"batch_{large}": (slowest, large)}


def run_arm(
    config: Config, out: Path, name: str, net: FlatMlp, losses_fn: Any, data: SmallData
) -> dict[str, np.ndarray]:
    """The records of one arm, (seeds, measurements) and more axes each."""
    rate, batch_size = arms(config)[name]
    every = max(round(config.time / rate / config.measurements), 1)
    params = net.init_seeds(config.seed_range())
    keys = jax.random.split(jax.random.key(1), config.seeds)
    start = State(params, jax.vmap(TRACKER.init)(params, keys), jax.random.key_data(keys))
    hyper = (jnp.float32(rate), jnp.int32(every))
    _, records = run_chunks(
        out / name,
        start,
        lambda state, blocks: _advance(
            net, losses_fn, batch_size, config.examples, hyper, data, state, blocks
        ),
        config.measurements,
        config.chunk,
        axis=1,
        quiet=config.quiet,
    )
    return records | {"steps": every * np.arange(1, config.measurements + 1)}


def smooth(values: np.ndarray) -> np.ndarray:
    """Means of 9 of medians of 9: single spikes late in training do not count."""
    for mean in (np.median, np.mean):
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, 4, mode="edge"), 9)
        values = mean(windows, -1)
    return values


def largest(records: dict[str, np.ndarray], quantity: str, seed: int) -> float:
    """The largest smoothed value until nearly everything is learned."""
    if quantity == "ratio":
        values = records["trace_K"][seed] / records["lambda_K"][seed]
    else:
        values = records[quantity][seed]
    learned = np.flatnonzero(records["accuracy"][seed] >= 0.97)
    end = max(learned[0], 5) if len(learned) else len(values)
    return float(smooth(values[:end]).max())


def break_even(slow: dict[str, np.ndarray], fast: dict[str, np.ndarray], seed: int) -> int | None:
    """The measurement at which the slow arm's tr K passes the fast arm's largest."""
    passed = np.flatnonzero(smooth(slow["trace_K"][seed]) > largest(fast, "trace_K", seed))
    return int(passed[0]) if len(passed) else None


def divergence(slow: dict[str, np.ndarray], fast: dict[str, np.ndarray], seed: int) -> float | None:
    """Mean distance of the slow arm's predictions to the fast arm's path, after over before."""
    at = break_even(slow, fast, seed)
    learned = np.flatnonzero(slow["accuracy"][seed] >= 0.97)
    end = int(learned[0]) if len(learned) else len(slow["accuracy"][seed])
    if at is None or at < 2 or at + 2 > end:
        return None
    distance = nearest(slow["predictions"][seed], fast["predictions"][seed])
    return float(distance[at:end].mean() / distance[:at].mean())


def nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For every row of a the distance to the closest row of b, per example of the predictions."""
    a, b = (x.reshape(len(x), -1).astype(np.float32) for x in (a, b))
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0).min(1) / SHOWN)


_PAPER = "Jastrzebski et al. 2020"
_SEEDS = "set on seeds 0 and 1"


def _less(quantity: str, words: str, by: str, low: float) -> Claim:
    which = {
        "rate": "the smallest learning rate over that with the largest",
        "batch": "the largest batch over that with the smallest",
    }
    return Claim(
        name=f"{by}-reduces-{quantity}",
        statement=f"The largest {words} with {which[by]}.",
        paper=_PAPER,
        low=low,
        reason=_SEEDS,
    )


QUANTITIES = {
    "lambda-h": ("lambda_H", "lambda_H"),
    "lambda-k": ("lambda_K", "lambda_K"),
    "trace-k": ("trace_K", "tr K"),
}
CLAIMS = {
    c.name: c
    for c in (
        _less("lambda-h", "lambda_H", "rate", 2.0),
        _less("lambda-k", "lambda_K", "rate", 1.0),
        _less("trace-k", "tr K", "rate", 1.25),
        _less("lambda-h", "lambda_H", "batch", 1.7),
        _less("lambda-k", "lambda_K", "batch", 1.0),
        _less("trace-k", "tr K", "batch", 1.15),
        Claim(
            name="sharpness-within-stability",
            statement="The largest lambda_H with the largest learning rate, times rate / 2.",
            paper=_PAPER,
            high=1.1,
            reason=_SEEDS,
        ),
        Claim(
            name="rate-preconditions",
            statement="Largest tr K / lambda_K with the largest rate over that with the smallest.",
            paper=_PAPER,
            low=1.0,
            reason="the sign of the conjecture",
        ),
        Claim(
            name="batch-preconditions",
            statement="Largest tr K / lambda_K with the smallest batch over that with the largest.",
            paper=_PAPER,
            low=1.0,
            reason="the sign of the conjecture",
        ),
        Claim(
            name="paths-part-at-the-break-even-point",
            statement="Mean distance of the small rate's predictions to the path of the large "
            "rate's, after the break-even point over before.",
            paper=_PAPER,
            low=1.2,
            reason=_SEEDS,
        ),
    )
}


def measure(config: Config, records: dict[str, dict[str, np.ndarray]]) -> dict[str, dict]:
    """The number of every claim for every seed."""
    names = list(arms(config))
    fast, slow = names[0], names[len(config.rates) - 1]
    small, large = names[-2:]
    found: dict[str, dict[int, float | None]] = {name: {} for name in CLAIMS}
    for i, seed in enumerate(config.seed_range()):

        def top(arm: str, quantity: str, i: int = i) -> float:
            return largest(records[arm], quantity, i)

        for name, (quantity, _) in QUANTITIES.items():
            found[f"rate-reduces-{name}"][seed] = top(slow, quantity) / top(fast, quantity)
            found[f"batch-reduces-{name}"][seed] = top(large, quantity) / top(small, quantity)
        found["sharpness-within-stability"][seed] = top(fast, "lambda_H") * config.rates[0] / 2
        found["rate-preconditions"][seed] = top(fast, "ratio") / top(slow, "ratio")
        found["batch-preconditions"][seed] = top(small, "ratio") / top(large, "ratio")
        found["paths-part-at-the-break-even-point"][seed] = divergence(
            records[slow], records[fast], i
        )
    return found


def draw_growth(path: Path, config: Config, records: dict[str, dict[str, np.ndarray]]) -> None:
    """lambda_H, lambda_K and tr K against training accuracy, mean over seeds of every arm."""
    with figure(path, 1, 3, panel=(4.0, 3.2)) as panels:
        for axes, (quantity, words) in zip(panels, QUANTITIES.values(), strict=True):
            for number, (name, r) in enumerate(records.items()):
                rate, batch_size = arms(config)[name]
                axes.plot(
                    r["steps"] * rate,
                    np.mean([smooth(row) for row in r[quantity]], 0),
                    **style(number, markers=False),
                    label=f"rate {rate:g}, batch {batch_size}",
                )
            axes.set(xlabel="steps x learning rate", ylabel=words, xscale="log", yscale="log")
        panels[0].legend(fontsize=7)


def draw_paths(path: Path, config: Config, records: dict[str, dict[str, np.ndarray]]) -> None:
    """The predictions of the first seed along training in two principal components."""
    names = list(arms(config))
    fast, slow = names[0], names[len(config.rates) - 1]
    both = [records[name]["predictions"][0].astype(np.float32) for name in (fast, slow)]
    rows = np.concatenate([x.reshape(len(x), -1) for x in both])
    centred = rows - rows.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    plane = (left * values)[:, :2]
    cuts = [plane[: len(both[0])], plane[len(both[0]) :]]
    with figure(path, 1, 2, panel=(4.6, 3.4)) as panels:
        for axes, (quantity, words) in zip(
            panels, (("lambda_K", "lambda_K"), ("accuracy", "training accuracy")), strict=True
        ):
            shown = None
            top = max(smooth(records[n]["lambda_K"][0]).max() for n in (fast, slow))
            for name, points, marker in zip((fast, slow), cuts, ("o", "^"), strict=True):
                values = records[name][quantity][0]
                shown = axes.scatter(
                    *points.T,
                    c=values,
                    marker=marker,
                    s=14,
                    cmap="viridis",
                    vmin=0,
                    vmax=top if quantity == "lambda_K" else 1,
                    label=name.replace("_", " "),
                )
            at = break_even(records[slow], records[fast], 0)
            if at is not None:
                axes.plot(*cuts[1][at], marker="x", color="#D55E00", markersize=9, linestyle="none")
            axes.figure.colorbar(shown, ax=axes, label=words)
            axes.set(xlabel="first component", ylabel="second component")
            axes.legend()


def main(config: Config) -> None:
    """Runs the experiment, or shows the finished run."""
    with run_folder(config) as out:
        options = {"train_size": config.train_size, "label_noise": config.label_noise}
        data = stack_seeds(
            [small_data(config.data, seed=seed, **options) for seed in config.seed_range()]
        )
        data = SmallData(*map(jnp.asarray, data))
        sizes = (data.inputs.shape[-1], *[config.width] * 3, 10)
        net = FlatMlp(sizes, scale=config.init_scale)
        losses_fn = net.losses("cross_entropy")
        records = {}
        for name in arms(config):
            say(name, enabled=not config.quiet)
            records[name] = run_arm(config, out, name, net, losses_fn, data)
        numbers = measure(config, records)
        draw_growth(out / "growth.png", config, records)
        draw_paths(out / "paths.png", config, records)
        last = {name: r["test_accuracy"][:, -1] for name, r in records.items()}
        reached = {name: r["accuracy"][:, -1] for name, r in records.items()}
        write_summary(
            out,
            config,
            [judge(CLAIMS[name], values) for name, values in numbers.items()],
            [
                Figure("growth.png", "Curvature and gradient noise along training, seed means."),
                Figure(
                    "paths.png",
                    "Predictions of the first seed along training; the cross is the break-even "
                    "point of the small rate.",
                ),
            ],
            {"last_test_accuracy": last, "last_training_accuracy": reached},
        )


EXPERIMENT = Experiment(main=main, presets=PRESETS)
