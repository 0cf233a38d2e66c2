"""Curvature, accuracy and epochs of all pairs of learning rate and batch size, at equal loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import flatjax
from experiments.lib.data.small import shuffled_batches, small_data, stack_seeds
from experiments.lib.nets.mlp import FlatMlp
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.runs.progress import say
from experiments.lib.verdicts.claims import by_name, claims_of
from experiments.lib.verdicts.figures import figure, style
from experiments.lib.verdicts.statistics import rank_correlation
from flatjax import loops

if TYPE_CHECKING:
    from experiments.three_factors import Config

Pairs = dict[tuple[float, int], dict[str, np.ndarray]]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _train(net, losses_fn, batch_size, rate, max_epochs, stop_loss, params, data, keys):
    """Until the loss is low enough: the parameters, the epochs, the loss and the test accuracy."""

    def one(params, data, key):
        batch = (data.inputs, data.targets)

        def step(params, index):
            part = jax.tree.map(lambda a: a[index], batch)
            gradient = jax.grad(lambda p: losses_fn(p, part).mean())(params)
            return params - rate * gradient, None

        def epoch(carry):
            params, _, count = carry
            order = shuffled_batches(jax.random.fold_in(key, count), len(batch[1]), batch_size)
            params, _ = loops.scan(step, params, order)
            return params, losses_fn(params, batch).mean(), count + 1

        def done(carry):
            goes_on = (carry[1] > stop_loss) & (carry[2] < max_epochs)
            return ~goes_on  # also with a loss that is not a number

        start = (params, jnp.float32(jnp.inf), jnp.int32(0))
        params, loss, count = loops.until(done, epoch, start)
        accuracy = net.accuracy(params, data.test_inputs, data.test_targets)
        return {"params": params, "loss": loss, "epochs": count, "test_accuracy": accuracy}

    return jax.vmap(one)(params, data, keys)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _curvature(losses_fn, probes, params, data):
    """Largest eigenvalue and trace of the Hessian of every seed."""
    tracker = flatjax.track(1, num_blocks=2)

    def one(params, data):
        hessian = flatjax.hessian(losses_fn, params, (data.inputs, data.targets))
        start = tracker.init(params, key=jax.random.key(0))
        top = loops.fori(60, lambda _, t: tracker.update(hessian, t), start)
        trace = flatjax.trace(hessian, key=jax.random.key(1), num_products=probes)
        return {"sharpness": top.values[0], "trace": trace.value}

    return jax.vmap(one)(params, data)


def run_pair(
    config: Config, out: Path, rate: float, batch_size: int, net: FlatMlp, losses_fn: Any, data: Any
) -> dict[str, np.ndarray]:
    """What was measured at the end of one pair, (seeds,) each; kept in a file."""

    def made() -> dict[str, Any]:
        say(f"eta {rate:g}, S {batch_size}", enabled=not config.quiet)
        params = net.init_seeds(config.seed_range())
        keys = jax.random.split(jax.random.key(1), config.seeds)
        max_epochs = round(config.max_time / rate * batch_size / config.train_size)
        found = _train(
            net,
            losses_fn,
            batch_size,
            jnp.float32(rate),
            max_epochs,
            config.stop_loss,
            params,
            data,
            keys,
        )
        return found | _curvature(losses_fn, config.probes, found.pop("params"), data)

    return kept_arrays(out / f"rate_{rate:g}_batch_{batch_size}.npz", made)


def pieces(
    config: Config, out: Path
) -> dict[tuple[float, int], Callable[[], dict[str, np.ndarray]]]:
    """The pairs as pieces of work; each returns what was measured at its end."""
    data = stack_seeds(
        [
            small_data(config.data, seed=seed, train_size=config.train_size)
            for seed in config.seed_range()
        ]
    )
    net = FlatMlp((data.inputs.shape[-1], config.width, config.width, 10))
    losses_fn = net.losses("squared_error")
    return {
        (rate, size): functools.partial(run_pair, config, out, rate, size, net, losses_fn, data)
        for size in config.batch_sizes
        for rate in config.rates
    }


_claim = claims_of("Jastrzebski et al. 2017", "set on seeds 0-4")

CLAIMS = by_name(
    _claim(
        "sharpness-falls-with-the-ratio",
        "Rank correlation of eta / S with the largest eigenvalue at the end.",
        None,
        -0.9,
    ),
    _claim(
        "trace-falls-with-the-ratio",
        "Rank correlation of eta / S with the trace of the Hessian at the end.",
        None,
        -0.9,
    ),
    _claim(
        "accuracy-rises-with-the-ratio",
        "Rank correlation of eta / S with the validation accuracy.",
        0.4,
        None,
    ),
    _claim(
        "equal-ratio-equal-curvature",
        "Largest relative range of the trace within pairs of equal eta / S.",
        None,
        0.05,
    ),
    _claim(
        "unequal-ratio-unequal-curvature",
        "Relative range of the trace over all pairs.",
        0.2,
        None,
    ),
    _claim(
        "equal-ratio-equal-time",
        "Largest relative range of the epochs within pairs of equal eta / S.",
        None,
        0.1,
    ),
)


def ratios_of(pairs: Iterable[tuple[float, int]]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Eta / S of all pairs, and for each value which pairs have it."""
    ratios = np.array([rate / size for rate, size in pairs])
    return ratios, [np.isclose(ratios, r, rtol=1e-3) for r in np.unique(ratios.round(8))]


def spread(values: np.ndarray) -> float:
    """Largest over smallest, minus one."""
    return float(values.max() / values.min() - 1)


def measure(config: Config, pairs: Pairs) -> dict:
    """The number of every claim for every seed."""
    found: dict[str, dict[int, float | None]] = {name: {} for name in CLAIMS}
    ratios, groups = ratios_of(pairs)
    for i, seed in enumerate(config.seed_range()):

        def column(name: str, i: int = i) -> np.ndarray:
            return np.array([float(p[name][i]) for p in pairs.values()])

        def rank(name: str) -> float:
            return rank_correlation(ratios, column(name))

        reached = (column("loss") <= config.stop_loss).all()
        for claim, name in (
            ("sharpness-falls-with-the-ratio", "sharpness"),
            ("trace-falls-with-the-ratio", "trace"),
            ("accuracy-rises-with-the-ratio", "test_accuracy"),
        ):
            found[claim][seed] = rank(name) if reached else None
        trace, epochs = column("trace"), column("epochs")
        found["equal-ratio-equal-curvature"][seed] = max(spread(trace[g]) for g in groups)
        found["unequal-ratio-unequal-curvature"][seed] = spread(trace)
        found["equal-ratio-equal-time"][seed] = max(spread(epochs[g]) for g in groups)
    return found


def draw(path: Path, config: Config, pairs: Pairs) -> None:
    """Curvature, accuracy and epochs against eta / S, means over seeds."""
    words = {
        "sharpness": "largest eigenvalue",
        "trace": "trace of the Hessian",
        "test_accuracy": "validation accuracy",
        "epochs": "epochs to the loss",
    }
    with figure(path, 1, 4, panel=(3.2, 3.0)) as panels:
        for axes, (name, label) in zip(panels, words.items(), strict=True):
            for number, rate in enumerate(config.rates):
                x = [rate / size for size in config.batch_sizes]
                y = [pairs[rate, size][name].mean() for size in config.batch_sizes]
                axes.plot(x, y, **style(number), label=f"eta {rate:g}")
            axes.set(xlabel="eta / S", ylabel=label, xscale="log")
        panels[3].set_yscale("log")
        panels[0].legend()
