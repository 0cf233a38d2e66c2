"""Loss change allocation: nearly half of the parameters hurt at every step of SGD.

Lan, Liu, Zhou & Yosinski 2019, "LCA: Loss Change Allocation for Neural Network Training". A
parameter's share of the change of the training loss in a step is the integral of its gradient along
the step, here by Simpson's rule on the whole training set: the shares sum to the change of the
loss. A tanh network learns the digits with cross-entropy, by SGD and by slow full-batch descent.
A parameter hurts at a step if its share is positive, and oscillates if its update turns its sign.

    python -m experiments loss_change_allocation        # three seeds, 16 seconds

Found: 40 % of the parameters hurt at a step of SGD, 0.05 % at a step of slow descent; what they
lose is 18 % of what the others win. 45 % of the updates turn their sign from one step to the next.
(The paper has close to one half for both, with a ResNet on CIFAR-10.)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from experiments.lib.data.small import SmallData, small_data, stack_seeds
from experiments.lib.nets.mlp import FlatMlp
from experiments.lib.runs.trajectory import run_chunks
from experiments.lib.verdicts.claims import by_name, claims_of, judge_all
from experiments.lib.verdicts.figures import figure, style
from experiments.lib.verdicts.summary import Figure, run_folder, write_summary
from experiments.registry import Experiment, Options
from flatjax import loops

ARMS = ("sgd", "gd")


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    data: str = "digits"
    """The data set."""

    train_size: int = 300
    """Training examples: all of them in every allocation."""

    width: int = 64
    """Units of each of the two hidden layers."""

    learning_rate: float = 0.1
    """Of SGD."""

    batch_size: int = 25
    """Of SGD."""

    slow_rate: float = 0.05
    """Of full-batch gradient descent."""

    steps: int = 600
    """Updates."""

    chunk: int = 300
    """Updates between two saves."""


PRESETS = {
    "smoke": Config(seeds=1, train_size=50, width=8, steps=20, chunk=10),
    "cpu": Config(),
    "gpu": Config(data="cifar10", train_size=10000, width=512, steps=5000, batch_size=250),
    "paper": Config(data="cifar10", train_size=45000, width=1024, steps=20000, batch_size=250),
}


class State(NamedTuple):
    """A state of training; with a leading axis of seeds.

    Attributes:
      params: the parameters.
      gradient: of the whole training set there.
      before: the last update.
      allocation: every parameter's share of the loss's change so far.
      key: data of a PRNG key.
    """

    params: jax.Array
    gradient: jax.Array
    before: jax.Array
    allocation: jax.Array
    key: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 6))
def _advance(net, losses_fn, batch_size, rate, batch, state, steps):
    layers = layer_of(net)

    def step(batch, state, _):
        def mean_loss(p):
            return losses_fn(p, batch).mean()

        key, draw = jax.random.split(jax.random.wrap_key_data(state.key))
        gradient = state.gradient
        if batch_size is not None:
            index = jax.random.choice(draw, batch[1].shape[0], (batch_size,), replace=False)
            part = jax.tree.map(lambda a: a[index], batch)
            gradient = jax.grad(lambda p: losses_fn(p, part).mean())(state.params)
        change = -rate * gradient
        middle = jax.grad(mean_loss)(state.params + change / 2)
        params = state.params + change
        loss, last = jax.value_and_grad(mean_loss)(params)
        share = change * (state.gradient + 4 * middle + last) / 6
        found = {
            "loss": loss,
            "total": share.sum(),
            "hurting": (share > 0).mean(),
            "harm": jnp.maximum(share, 0).sum(),
            "help": jnp.minimum(share, 0).sum(),
            "layers": jax.ops.segment_sum(share, layers, num_segments=len(net.sizes) - 1),
            "turned": (change * state.before < 0).mean(),
        }
        key = jax.random.key_data(key)
        return State(params, last, change, state.allocation + share, key), found

    def one(batch, state):
        return loops.scan(functools.partial(step, batch), state, length=steps)

    return jax.vmap(one)(batch, state)


def layer_of(net: FlatMlp) -> jax.Array:
    """(size,) the layer of every parameter."""
    tree = net.unravel(np.zeros(net.size, np.float32))
    numbered = {
        name: jax.tree.map(lambda a, i=i: jnp.full(a.shape, i), tree[name])
        for i, name in enumerate(f"layer_{i}" for i in range(len(tree)))
    }
    return jax.flatten_util.ravel_pytree(numbered)[0]


def run_arm(
    config: Config, out: Path, name: str, net: FlatMlp, losses_fn: Any, data: SmallData
) -> tuple[State, dict[str, np.ndarray]]:
    """The last state of an arm, and its records, (seeds, steps) and more axes each."""
    batch = (jnp.asarray(data.inputs), jnp.asarray(data.targets))
    params = net.init_seeds(config.seed_range())
    gradient = jax.vmap(jax.grad(lambda p, b: losses_fn(p, b).mean()))(params, batch)
    zeros = jnp.zeros_like(params)
    keys = jax.random.key_data(jax.random.split(jax.random.key(1), config.seeds))
    batch_size, rate = config.batch_size, config.learning_rate
    if name == "gd":
        batch_size, rate = None, config.slow_rate
    state, records = run_chunks(
        out / name,
        State(params, gradient, zeros, zeros, keys),
        lambda state, steps: _advance(net, losses_fn, batch_size, rate, batch, state, steps),
        config.steps,
        config.chunk,
        axis=1,
        quiet=config.quiet,
    )
    first = jax.vmap(lambda p, b: losses_fn(p, b).mean())(params, batch)
    return state, records | {"first_loss": np.asarray(first)}


_claim = claims_of("Lan et al. 2019", "set on seeds 0-4")

CLAIMS = by_name(
    _claim(
        "allocations-sum-to-the-change",
        "Sum of all allocations of SGD minus the change of the loss, over that change.",
        None,
        1e-3,
    ),
    _claim("nearly-half-hurt", "Share of the parameters that hurt, mean over SGD.", 0.3, 0.5),
    _claim(
        "few-hurt-in-slow-descent",
        "The same for slow full-batch gradient descent.",
        None,
        0.05,
    ),
    _claim(
        "harm-is-a-large-part",
        "Sum of the positive allocations of SGD over that of the negative ones.",
        0.1,
        1.0,
    ),
    _claim(
        "updates-oscillate",
        "Share of the parameters whose update turns its sign from step to step of SGD.",
        0.35,
        0.65,
    ),
    _claim(
        "all-layers-help",
        "Smallest share of a layer in the fall of the loss.",
        0.0,
        None,
    ),
)


def measure(config: Config, runs: dict[str, tuple[State, dict[str, np.ndarray]]]) -> dict:
    """The number of every claim for every seed."""
    found: dict[str, dict[int, float | None]] = {name: {} for name in CLAIMS}
    r, slow = runs["sgd"][1], runs["gd"][1]
    for i, seed in enumerate(config.seed_range()):
        change = float(r["loss"][i, -1] - r["first_loss"][i])
        total = float(r["total"][i].sum(dtype=np.float64))
        found["allocations-sum-to-the-change"][seed] = abs((total - change) / change)
        found["nearly-half-hurt"][seed] = float(r["hurting"][i].mean())
        found["few-hurt-in-slow-descent"][seed] = float(slow["hurting"][i].mean())
        found["harm-is-a-large-part"][seed] = float(-r["harm"][i].sum() / r["help"][i].sum())
        found["updates-oscillate"][seed] = float(r["turned"][i, 1:].mean())
        found["all-layers-help"][seed] = float((r["layers"][i].sum(0) / change).min())
    return found


def draw(path: Path, runs: dict[str, tuple[State, dict[str, np.ndarray]]]) -> None:
    """Harm and help along training, the share that hurts, and the layers' totals."""
    with figure(path, 1, 3, panel=(4.0, 3.2)) as (left, middle, right):
        for number, name in enumerate(ARMS):
            r = runs[name][1]
            label = {"sgd": "SGD", "gd": "slow full batch"}[name]
            middle.plot(r["hurting"].mean(0), **style(number, markers=False), label=label)
            total = (r["layers"].sum(1)).mean(0)
            position = np.arange(len(total)) + 0.4 * number
            right.bar(position, total, 0.4, color=style(number)["color"], label=label)
        r = runs["sgd"][1]
        left.plot(r["harm"].mean(0), **style(1, markers=False), label="harm")
        left.plot(-r["help"].mean(0), **style(0, markers=False), label="help")
        left.set(xlabel="step of SGD", ylabel="loss change allocated", yscale="log")
        middle.set(xlabel="step", ylabel="parameters that hurt", ylim=(0, 0.6))
        right.set(xlabel="layer", ylabel="allocated over training")
        for axes in (left, middle, right):
            axes.legend()


def main(config: Config) -> None:
    """Runs the experiment, or shows the finished run."""
    with run_folder(config) as out:
        data = stack_seeds(
            [
                small_data(config.data, seed=seed, train_size=config.train_size)
                for seed in config.seed_range()
            ]
        )
        net = FlatMlp((data.inputs.shape[-1], config.width, config.width, 10))
        losses_fn = net.losses("cross_entropy")
        runs = {name: run_arm(config, out, name, net, losses_fn, data) for name in ARMS}
        allocation = np.asarray(runs["sgd"][0].allocation)
        draw(out / "allocation.png", runs)
        write_summary(
            out,
            config,
            judge_all(CLAIMS, measure(config, runs), config.seed_range()),
            [Figure("allocation.png", "Loss change allocation, means over seeds.")],
            {"parameters_that_hurt_over_training": (allocation > 0).mean(1)},
        )


EXPERIMENT = Experiment(main=main, presets=PRESETS)
