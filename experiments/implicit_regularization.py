"""Implicit regularisation: discrete steps follow the flow of a modified loss; made explicit.

Barrett & Dherin (ICLR 2021, "Implicit Gradient Regularization"): gradient descent with step h
follows the flow of L + h/4 |grad L|^2 with an error of third order a step, that of L itself only
with second. Smith et al. (ICLR 2021, "On the Origin of Implicit Regularization in Stochastic
Gradient Descent"): SGD without replacement over m batches follows, on average over their order, the
flow of L + h/(4m) sum_k |grad L_k|^2 (ISGR); with a small step and that term added explicitly, one
gets what the large step does.

The orders are measured in double precision on 128 digits: one step, two units of time, and one
epoch of four batches averaged over all 24 orders. The training part is an MLP on 400 digits, a
quarter of the labels wrong: SGD with a large step, SGD with a tenth of it for ten times as long,
and the same with the explicit term of the large step.

    python -m experiments implicit_regularization                  # three seeds, 2 minutes

Found on seeds 0-4: orders 1.94 and 2.94 (theory 2 and 3) for one step, 1.70 and 2.66 for the mean
epoch (its next term still counts); after two units of time the modified flow is 14 times as near.
In training the trace of the Fisher information peaks at 143 with the small step, 60 with the large
one, and 64 with the small one and the explicit term: 93 % of the effect, on a logarithmic scale.
The final test accuracy, 70.7, 72.2 and 71.0 per cent, hardly differs: with the wrong labels all
fitted in the end, that early difference is lost.

gpu and paper: the training part by a fully connected network on CIFAR-10, when prepared.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatjax
from experiments.lib import endpoint, minibatch, penalty_arms
from experiments.lib.claims import Claim, Figure, judge, run_folder, write_summary
from experiments.lib.curves import by_seed, curve
from experiments.lib.figures import figure, style
from experiments.lib.minibatch import Recipe
from experiments.lib.progress import say
from experiments.lib.seeds import each_seed
from experiments.lib.sharing import shared
from experiments.registry import Experiment, ExperimentConfig

ARMS = ("large step", "small step", "explicit")


@dataclass(frozen=True, kw_only=True)
class Config(ExperimentConfig):
    """The options."""

    data: str = "digits"
    """The data set of the training part."""

    train_size: int = 400
    """Training examples there."""

    label_noise: float = 0.25
    """The fraction of wrong labels there."""

    recipe: Recipe = field(
        default_factory=lambda: Recipe(init_scale=0.6, epochs=120, record_every=3)
    )
    """Network there, and training with the large step."""

    large_rate: float = 0.5
    """The large step."""

    factor: int = 10
    """The small step is so many times smaller, and trained so many times as long."""

    order_size: int = 128
    """Examples on which the orders are measured."""

    hidden: int = 16
    """Hidden units of the network there."""

    steps: tuple[float, ...] = (0.4, 0.2, 0.1, 0.05, 0.025)
    """Steps h, each half the last."""

    epoch_steps: tuple[float, ...] = (0.1, 0.05, 0.025, 0.0125)
    """Steps of the epochs of four batches."""

    horizon: float = 2.0
    """Time of the longer comparison."""


_LARGE = Recipe(hidden=(512, 512, 512), init_scale=0.6, batch_size=128, epochs=60, record_every=1)

PRESETS = {
    "smoke": Config(
        preset="smoke", train_size=24, order_size=16, hidden=4, steps=(0.02, 0.01),
        epoch_steps=(0.02, 0.01), horizon=0.2, factor=2,
        recipe=Recipe(hidden=(6,), batch_size=12, epochs=2, record_every=1),
    ),
    "cpu": Config(preset="cpu", seeds=3, first_seed=100),
    "gpu": Config(
        preset="gpu", seeds=3, first_seed=100, data="cifar10", train_size=10_000, recipe=_LARGE,
        large_rate=0.2,
    ),
    "paper": Config(
        preset="paper", seeds=3, first_seed=100, data="cifar10", train_size=50_000,
        label_noise=0.0, recipe=_LARGE, large_rate=0.2,
    ),
}  # fmt: skip

_BARRETT = "Barrett & Dherin 2021"
_SMITH = "Smith et al. 2021"

CLAIMS = {
    c.name: c
    for c in (
        Claim(
            name="order-flow",
            statement="Order in h of one step's distance from the gradient flow; theory 2.",
            paper=_BARRETT, low=1.85, high=2.1, reason="1.93 to 1.94 on seeds 0-4",
        ),
        Claim(
            name="order-modified",
            statement="Order in h of one step's distance from the modified flow; theory 3.",
            paper=_BARRETT, low=2.8, high=3.1, reason="2.92 to 2.95 on seeds 0-4",
        ),
        Claim(
            name="horizon",
            statement="Distance from the modified over that from the gradient flow, after two "
            "units of time, at the smallest step.",
            paper=_BARRETT, high=0.3, reason="0.0548 to 0.0836 on seeds 0-4",
        ),
        Claim(
            name="epoch-order-isgr",
            statement="Order in h of the mean epoch's distance from the ISGR flow; theory 3.",
            paper=_SMITH, low=2.5, high=3.1, reason="2.57 to 2.71 on seeds 0-4",
        ),
        Claim(
            name="epoch-order-flow",
            statement="Order in h of the mean epoch's distance from the gradient flow; theory 2.",
            paper=_SMITH, low=1.5, high=2.2, reason="1.63 to 1.73 on seeds 0-4",
        ),
        Claim(
            name="epoch-isgr-closer",
            statement="Distance of the mean epoch from the ISGR flow over that from the IGR flow.",
            paper=_SMITH, high=0.7, reason="0.251 to 0.39 on seeds 0-4",
        ),
        Claim(
            name="large-step-lowers",
            statement="The largest tr F of the large step over that of the small one.",
            paper=_SMITH, high=0.6, reason="0.366 to 0.487 on seeds 0-4",
        ),
        Claim(
            name="explicit-lowers",
            statement="The largest tr F with the explicit term over that of the small step.",
            paper=_SMITH, high=0.6, reason="0.391 to 0.492 on seeds 0-4",
        ),
        Claim(
            name="explicit-recovers",
            statement="What the explicit term takes off the logarithm of the largest tr F, as a "
            "multiple of what the large step takes off.",
            paper=_SMITH, low=0.7, high=1.3, reason="0.817 to 0.989 on seeds 0-4",
        ),
        Claim(
            name="large-step-test",
            statement="Final test accuracy of the large step minus that of the small one.",
            paper=_SMITH, low=0.0, reason="-0.00644 to 0.0344 on seeds 0-4",
        ),
        Claim(
            name="explicit-test",
            statement="Final test accuracy with the explicit term minus that of the small step.",
            paper=_SMITH, low=0.0, reason="-0.015 to 0.0157 on seeds 0-4",
        ),
    )
}  # fmt: skip


def orders(config: Config, seed: int) -> dict[str, list[float]]:
    """Distances from the flows of one seed, in double precision."""
    with jax.enable_x64(True):
        data = minibatch.small_data("digits", seed=seed, train_size=config.order_size)
        recipe = Recipe(hidden=(config.hidden,), loss="squared_error")
        batch = jax.tree.map(
            lambda a: jnp.asarray(a, jnp.float64), minibatch.training_batch(recipe, data)
        )
        stacked = minibatch.stack_seeds([data])
        start = minibatch.init_runs(recipe, stacked, jnp.array([seed], jnp.uint32))
        start = jax.tree.map(lambda a: a.astype(jnp.float64), endpoint.run_of(start, 0))
        return {k: [float(x) for x in v] for k, v in _distances(config, recipe, start, batch)}


@functools.cache
def _programs(recipe: Recipe) -> tuple[Any, Any, Any]:
    """The flows, gradient descent and the mean epoch: compiled once for all seeds."""
    losses_fn = minibatch.losses_fn(recipe.activation, recipe.loss)

    def gradient(params, batch):
        return jax.grad(lambda p: losses_fn(p, batch).mean())(params)

    def moved(params, factor, direction):
        return jax.tree.map(lambda a, b: a + factor * b, params, direction)

    def head(name, h):
        if name == "isgr":
            return flatjax.stochastic_implicit_gradient_regularization(
                h, loss_fn=losses_fn, micro_batches=4
            )
        return flatjax.implicit_gradient_regularization(h) if name == "modified" else None

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def flow(name, substeps, start, batch, h, time):
        """The flow of L or of a modified loss, by classical Runge-Kutta steps."""
        tx = head(name, h)

        def field(params):
            g = gradient(params, batch)
            if tx is not None:
                grad_fn = lambda p: gradient(p, batch)  # noqa: E731
                g, _ = tx.update(g, tx.init(params), params, grad_fn=grad_fn, batch=batch)
            return jax.tree.map(jnp.negative, g)

        dt = time / substeps

        def step(_, p):
            k1 = field(p)
            k2 = field(moved(p, dt / 2, k1))
            k3 = field(moved(p, dt / 2, k2))
            k4 = field(moved(p, dt, k3))
            slope = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k1, k2, k3, k4)
            return moved(p, dt, slope)

        return jax.lax.fori_loop(0, substeps, step, start)

    @jax.jit
    def descend(start, batch, h, count):
        return jax.lax.fori_loop(0, count, lambda _, p: moved(p, -h, gradient(p, batch)), start)

    @jax.jit
    def mean_epoch(start, batch, h):
        parts = jax.tree.map(lambda a: a.reshape(4, -1, *a.shape[1:]), batch)

        def one(order):
            def step(p, k):
                return moved(p, -h, gradient(p, jax.tree.map(lambda a: a[k], parts))), None

            return jax.lax.scan(step, start, order)[0]

        every_order = jnp.array(list(itertools.permutations(range(4))))
        return jax.tree.map(lambda a: a.mean(0), jax.vmap(one)(every_order))

    return flow, descend, mean_epoch


def _distances(config, recipe, start, batch):
    flow, descend, mean_epoch = _programs(recipe)

    def distance(a, b):
        return optax.tree.norm(jax.tree.map(jnp.subtract, a, b))

    steps, smallest, horizon = config.steps, config.steps[-1], config.horizon
    long = descend(start, batch, smallest, round(horizon / smallest))
    epochs = [(h, mean_epoch(start, batch, h)) for h in config.epoch_steps]
    for name in ("flow", "modified"):
        yield (
            f"step {name}",
            [
                distance(descend(start, batch, h, 1), flow(name, 32, start, batch, h, h))
                for h in steps
            ],
        )
        end = flow(name, 400, start, batch, smallest, horizon)
        yield f"horizon {name}", [distance(long, end)]
    for name in ("flow", "modified", "isgr"):
        yield (
            f"epoch {name}",
            [distance(p, flow(name, 32, start, batch, h, 4 * h)) for h, p in epochs],
        )


def measure(recipe: Recipe, params: Any, data: Any, key: Any) -> dict[str, jax.Array]:
    """Trace of the Fisher information, and the mean squared norm of the batches' gradients."""
    inputs, targets = minibatch.training_batch(recipe, data)
    size = recipe.batch_size or len(inputs)
    count = len(inputs) // size
    part = lambda a: a[: count * size].reshape(count, size, *a.shape[1:])  # noqa: E731
    gradient = jax.grad(functools.partial(minibatch.mean_loss, recipe))
    each = jax.vmap(gradient, in_axes=(None, 0))(params, (part(inputs), part(targets)))
    squares = optax.tree.norm(each, squared=True) / count
    return {**penalty_arms.measure(recipe)(params, data, key), "squared_gradients": squares}


def train(config: Config, out: Path) -> dict[str, dict[str, np.ndarray]]:
    """The records of the three arms, at the same times: steps times step length."""
    seeds = list(config.seed_range())
    data = minibatch.load_seeds(
        config.data, seeds, train_size=config.train_size, label_noise=config.label_noise
    )
    slow = dataclasses.replace(
        config.recipe,
        epochs=config.recipe.epochs * config.factor,
        record_every=config.recipe.record_every * config.factor,
    )
    large, small = config.large_rate, config.large_rate / config.factor

    def explicit(seed, _):
        # On minibatches: the expected square of their gradients is ISGR's term.
        return optax.chain(flatjax.implicit_gradient_regularization(large), optax.sgd(small))

    optimizers = {
        "large step": (config.recipe, lambda seed, _: optax.sgd(large)),
        "small step": (slow, lambda seed, _: optax.sgd(small)),
        "explicit": (slow, explicit),
    }

    def one(arm: str) -> dict[str, np.ndarray]:
        recipe, make = optimizers[arm]
        say(arm, enabled=not config.quiet)
        return minibatch.train_arm(
            out / arm.replace(" ", "_"),
            recipe,
            data,
            seeds,
            make,
            measure=functools.partial(measure, recipe),
            quiet=config.quiet,
        ).records

    return shared({arm: functools.partial(one, arm) for arm in optimizers})


def numbers(distances: list[dict[str, list[float]]], runs: dict[str, dict[str, np.ndarray]]):
    """The measured number of every claim, one a seed."""

    def order(name):
        return np.array([np.log2(d[name][-2] / d[name][-1]) for d in distances])

    def ratio(a, b):
        return np.array([d[a][-1] / d[b][-1] for d in distances])

    top = {arm: r["trace_fisher"].max(1) for arm, r in runs.items()}
    final = {arm: r["test_accuracy"][:, -1] for arm, r in runs.items()}
    lowered = np.log(top["large step"] / top["small step"])
    return {
        "order-flow": order("step flow"),
        "order-modified": order("step modified"),
        "horizon": ratio("horizon modified", "horizon flow"),
        "epoch-order-isgr": order("epoch isgr"),
        "epoch-order-flow": order("epoch flow"),
        "epoch-isgr-closer": ratio("epoch isgr", "epoch modified"),
        "large-step-lowers": top["large step"] / top["small step"],
        "explicit-lowers": top["explicit"] / top["small step"],
        "explicit-recovers": np.log(top["explicit"] / top["small step"])
        / np.where(lowered == 0, np.nan, lowered),
        "large-step-test": final["large step"] - final["small step"],
        "explicit-test": final["explicit"] - final["small step"],
    }


def draw(path: Path, config: Config, distances: list[dict], runs: dict[str, dict]) -> None:
    """Distances against the step, and the three arms over time."""
    with figure(path, 1, 4, panel=(3.4, 3.1), dpi=95) as axes:
        names = {"flow": "gradient flow", "modified": "IGR flow", "isgr": "ISGR flow"}
        for panel, kind, steps in (
            (axes[0], "step", config.steps),
            (axes[1], "epoch", config.epoch_steps),
        ):
            for number, (name, label) in enumerate(names.items()):
                if f"{kind} {name}" in distances[0]:
                    mean = np.mean([d[f"{kind} {name}"] for d in distances], axis=0)
                    panel.plot(steps, mean, **style(number), label=label)
            panel.set(xscale="log", yscale="log", xlabel="h")
            panel.tick_params(axis="x", which="minor", labelbottom=False)
            panel.legend(fontsize=8)
        axes[0].set(title="distance after one step")
        axes[1].set(title="of the mean epoch")
        batches = max(1, config.train_size // (config.recipe.batch_size or config.train_size))
        for number, (arm, records) in enumerate(runs.items()):
            rate = config.large_rate / (1 if arm == "large step" else config.factor)
            time = records["epoch"][0] * batches * rate
            curve(axes[2], time, records["trace_fisher"], number, arm)
            curve(axes[3], time, records["test_accuracy"], number, arm)
        axes[2].set(xlabel="steps times step length", title="tr F")
        axes[3].set(xlabel="steps times step length", title="test accuracy")
        axes[2].legend(fontsize=8)


def main(config: Config) -> None:
    """Runs the experiment, or shows the finished run."""
    with run_folder(config) as out:
        seeds = list(config.seed_range())
        say("orders", enabled=not config.quiet)
        found = each_seed(config, lambda seed, folder: orders(config, seed))
        distances = [found[seed] for seed in seeds]
        runs = train(config, out)
        values = numbers(distances, runs)
        draw(out / "orders.png", config, distances, runs)
        caption = "Distances from the flows, mean over seeds; training at equal time."
        write_summary(
            out,
            config,
            [judge(claim, by_seed(seeds, values[name])) for name, claim in CLAIMS.items()],
            [Figure("orders.png", caption)],
            {
                "distances": {name: [d[name] for d in distances] for name in distances[0]},
                "final_test_accuracy": {a: r["test_accuracy"][:, -1] for a, r in runs.items()},
                "largest_trace": {a: r["trace_fisher"].max(1) for a, r in runs.items()},
                "largest_squared_gradients": {
                    a: r["squared_gradients"].max(1) for a, r in runs.items()
                },
                "noisy_fit": {a: r["noisy_fit"][:, -1] for a, r in runs.items()},
            },
        )


EXPERIMENT = Experiment(main=main, presets=PRESETS)
