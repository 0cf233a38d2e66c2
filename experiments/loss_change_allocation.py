"""Loss change allocation: nearly half of the parameters hurt at every step of SGD.

Lan, Liu, Zhou & Yosinski 2019, "LCA: Loss Change Allocation for Neural Network Training". A
parameter's share of the change of the training loss in a step is the integral of its gradient along
the step, here by Simpson's rule on the whole training set: the shares sum to the change of the
loss. A tanh network learns the digits with cross-entropy, by SGD and by slow full-batch descent.
A parameter hurts at a step if its share is positive, and oscillates if its update turns its sign.

The paper finds barely more than half of the parameters helping, as many updates turning their sign,
and whole layers that hurt, in a ResNet on CIFAR-10. The instability is compared over three learning
rates; the sum of the shares is compared with that of the gradients at the start of every step.

    python -m experiments loss_change_allocation        # five seeds, half a minute
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

from experiments.lib.data.small import SmallData
from experiments.lib.lab import Lab, Options, Runs, shared
from experiments.lib.nets.mlp import FlatMlp
from experiments.lib.runs.trajectory import run_chunks
from experiments.lib.training.minibatch import load_seeds
from experiments.lib.verdicts.figures import style
from flatjax import loops


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 300  # training examples: all of them in every allocation
    width: int = 64  # units of each of the two hidden layers
    learning_rate: float = 0.1  # of SGD ...
    other_rates: tuple[float, ...] = (0.02, 0.5)  # ... and more of it, for comparison
    batch_size: int = 25  # of SGD
    slow_rate: float = 0.05  # of full-batch gradient descent
    settled: int = 100  # steps of SGD that do not count in the shares of parameters
    steps: int = 600  # updates
    chunk: int = 300  # updates between two saves


# fmt: off
lab = Lab(
    Config, "Lan et al. 2019",
    smoke={"seeds": 1, "train_size": 50, "width": 8, "settled": 5, "steps": 20, "chunk": 10},
    paper={"data": "cifar10", "train_size": 45000, "width": 1024, "steps": 20000,
           "batch_size": 250},
)
# fmt: on
EXPERIMENT = lab.experiment


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
            "first_order": (change * state.gradient).sum(),
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
) -> dict[str, np.ndarray]:
    """The records of an arm, (seeds, steps) and more axes each, and its whole `allocation`."""
    batch = (jnp.asarray(data.inputs), jnp.asarray(data.targets))
    params = net.init_seeds(config.seed_range())
    gradient = jax.vmap(jax.grad(lambda p, b: losses_fn(p, b).mean()))(params, batch)
    zeros = jnp.zeros_like(params)
    keys = jax.random.key_data(jax.random.split(jax.random.key(1), config.seeds))
    batch_size = None if name == "gd" else config.batch_size
    rate = rates(config)[name]
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
    kept = {"first_loss": np.asarray(first), "allocation": np.asarray(state.allocation)}
    return records | kept


def rates(config: Config) -> dict[str, float]:
    """The learning rates of the arms."""
    other = {f"sgd_{rate:g}": rate for rate in config.other_rates}
    return {"sgd": config.learning_rate, "gd": config.slow_rate} | other


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The records of all arms."""
    seeds = list(config.seed_range())
    data = load_seeds(config.data, seeds, train_size=config.train_size)
    net = FlatMlp((data.inputs.shape[-1], config.width, config.width, 10))
    common = net, net.losses("cross_entropy"), data
    return shared(
        config, {n: functools.partial(run_arm, config, out, n, *common) for n in rates(config)}
    )


def change(own: dict[str, np.ndarray]) -> np.ndarray:
    """By how much the loss has changed, for every seed."""
    return own["loss"][:, -1] - own["first_loss"]


def mean(name: str, arm: str) -> Any:
    """The measure of a claim on the mean of a record over the settled steps."""
    return lambda runs, config: runs[arm][name][:, config.settled :].mean(1)


def left_over(total: str) -> Any:
    """The measure of a claim on what a sum misses of the change, over the change."""

    def measured(runs: Runs, config: Config) -> np.ndarray:
        found, fall = runs["sgd"][total].sum(1, dtype=float), change(runs["sgd"])
        return abs((found - fall) / fall)

    return measured


def harm_grows(runs: Runs, config: Config) -> np.ndarray:
    """The smallest increase of harm over help from one learning rate of SGD to the next."""
    arms = {rate: name for name, rate in rates(config).items() if name != "gd"}
    sums = [runs[arms[rate]] for rate in sorted(arms)]
    parts = [-own["harm"].sum(1) / own["help"].sum(1) for own in sums]
    return np.diff(parts, axis=0).min(0)


def smallest_layer(arm: str) -> Any:
    """The measure of a claim on the smallest share of a layer in the fall of the loss."""
    return lambda runs, config: (runs[arm]["layers"].sum(1).T / change(runs[arm])).min(0)


# fmt: off
lab.claim("allocations-sum-to-the-change",
          "Sum of all allocations of SGD minus the change of the loss, over that change.",
          left_over("total"), high=1e-4, source="theory", reason="0, up to Simpson's rule",
          null=left_over("first_order"))
lab.claim("nearly-half-hurt", "Share of the parameters that hurt, mean over settled SGD.",
          mean("hurting", "sgd"), low=0.45, high=0.5, source="paper",
          reason="barely more than half of them help", null=mean("hurting", "gd"))
lab.claim("few-hurt-in-slow-descent", "The same for slow full-batch gradient descent.",
          mean("hurting", "gd"), high=0.02, source="theory", reason="none on the gradient flow",
          null=mean("hurting", "sgd"))
lab.claim("updates-oscillate",
          "Share of the parameters whose update turns its sign from step to step of settled SGD.",
          mean("turned", "sgd"), low=0.45, high=0.55, source="paper", reason="close to a half",
          null=mean("turned", "gd"))
lab.claim("harm-grows-with-the-rate",
          "Smallest increase of harm over help of SGD from one learning rate to the next.",
          harm_grows, low=0.0, source="sign")
lab.claim("a-layer-hurts", "Smallest share of a layer in the fall of the loss of SGD.",
          smallest_layer("sgd"), high=0.0, source="paper", reason="whole layers hurt",
          null=smallest_layer("gd"))
# fmt: on


@lab.figure("Loss change allocation, means over seeds.", columns=3, panel=(4.0, 3.2))
def allocation(axes: Any, runs: Runs, config: Config) -> None:
    """Harm and help along training, the share that hurts, and the layers' totals."""
    left, middle, right = axes
    for number, (name, rate) in enumerate(rates(config).items()):
        own, look = runs[name], style(number, markers=False)
        label = rf"{'full batch' if name == 'gd' else 'SGD'}, $\eta$ = {rate:g}"
        left.plot(-(own["harm"] / own["help"]).mean(0), **look, label=label)
        middle.plot(own["hurting"].mean(0), **look)
        total = own["layers"].sum(1).mean(0)
        position = np.arange(len(total)) + 0.2 * number
        right.bar(position, total, 0.2, color=look["color"])
    left.set(xlabel="step", ylabel="harm / help", ylim=(0, 1))
    middle.set(xlabel="step", ylabel="parameters that hurt", ylim=(0, 0.6))
    right.set(xlabel="layer", ylabel="loss change allocated over training")
    left.legend(fontsize=7)


@lab.extra
def over_training(runs: Runs, config: Config) -> dict[str, Any]:
    """The share of the parameters that hurt in sum."""
    return {"parameters_that_hurt_over_training": (runs["sgd"]["allocation"] > 0).mean(1)}
