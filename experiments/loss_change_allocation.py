"""Loss change allocation: nearly half of the parameters hurt at every step of SGD.

Lan, Liu, Zhou & Yosinski 2019, "LCA: Loss Change Allocation for Neural Network Training". A
parameter's share of the change of the training loss in a step is the integral of its gradient along
the step, here by Simpson's rule on the whole training set: the shares sum to the change of the
loss. A tanh network learns the digits with cross-entropy, by SGD with three learning rates and by
slow full-batch descent. A parameter hurts at a step if its share is positive, and oscillates if its
update turns its sign. The paper, with convolutional networks, finds that barely more than half of
the parameters help, that whole layers hurt on average, and that layers learn at the same moments.

    python -m experiments loss_change_allocation

Found: 41 % of the parameters hurt at a step of SGD, fewer than the paper's "barely more than half
help", and 0.02 % in slow descent; no layer hurts on average. Harm over help grows 1.34 times from
the smallest rate to the largest. Layers learn at the same moments to a correlation of 0.33; those
of runs with other orders of the batches to 0.02.

A layer is a top-level module of the network. real: a small convolutional network on Fashion-MNIST.
paper: ResNet-20 on CIFAR-10, by SGD with momentum.
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
from experiments.lib.lab import Lab, Options, Runs
from experiments.lib.nets.architecture import Architecture, network
from experiments.lib.nets.flat import FlatNetwork, flat_network
from experiments.lib.runs.trajectory import run_chunks
from experiments.lib.training import minibatch
from experiments.lib.verdicts.figures import style
from experiments.lib.verdicts.statistics import rank_correlation
from flatjax import loops


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 300  # training examples: all of them in every allocation
    parts: int = 1  # in so many equal parts, one after the other, if memory is short
    architecture: Architecture = Architecture(hidden=(64, 64))  # the network
    learning_rate: float = 0.1  # of SGD ...
    small_rate: float = 0.02  # ... a smaller ...
    large_rate: float = 0.5  # ... and a larger one
    momentum: float = 0.0  # of SGD
    batch_size: int = 25  # of SGD
    slow_rate: float = 0.05  # of full-batch gradient descent
    steps: int = 600  # updates
    first_steps: int = 100  # left out of the parameters that hurt
    chunk: int = 300  # updates between two saves

    def __post_init__(self):
        if self.train_size % self.parts:
            raise ValueError(f"{self.train_size} examples are not {self.parts} equal parts")
        if self.batch_size > self.train_size:
            raise ValueError(f"batch_size {self.batch_size} is above train_size {self.train_size}")


# fmt: off
lab = Lab(
    Config, "Lan et al. 2019", shares=False,
    smoke={"seeds": 1, "train_size": 50, "architecture": {"hidden": (8, 8)}, "steps": 20,
           "chunk": 10, "first_steps": 2},
    real={"data": "fashion_mnist", "seeds": 3, "train_size": 500, "batch_size": 50,
          "architecture": {"network": "s2cnn-8"}, "small_rate": 0.02, "large_rate": 0.2,
          "slow_rate": 0.005, "steps": 300, "chunk": 150},
    # From the authors' code, github.com/uber-research/loss-change-allocation, but for the last.
    paper={
        "data": "cifar10",  # the command in README.md
        "train_size": 45_000,  # data/download_cifar10.py holds back 5,000
        "architecture": {"network": "resnet-20"},  # README.md; without batch norm in its shortcuts
        "parts": 9,  # of 5,000: --large_batch_size in README.md
        "learning_rate": 0.1,  # README.md
        "momentum": 0.9,  # the default of train.py
        "batch_size": 250,  # the default of train.py
        "steps": 4500,  # 25 epochs (README.md) of 180
        "small_rate": 0.02, "large_rate": 0.2, "slow_rate": 0.005,  # ours: it has no such arms
    },
)
# fmt: on
EXPERIMENT = lab.experiment

ARMS = ("sgd", "small", "large", "gd")
"""SGD with three learning rates, and slow full-batch descent."""


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


def loss_and_gradient(net: FlatNetwork, parts: int, params: jax.Array, batch: Any) -> Any:
    """Of the whole batch, in equal parts one after the other."""
    of = jax.value_and_grad(lambda p, part: net.losses_fn(p, part).mean())
    if parts == 1:
        return of(params, batch)
    split = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), batch)
    _, found = loops.scan(lambda _, part: (None, of(params, part)), None, split)
    return jax.tree.map(lambda a: a.mean(0), found)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 7))
def _advance(net, parts, batch_size, momentum, rate, batch, state, steps):
    layers, count = layers_of(net, batch[0].shape[2:])

    def step(batch, state, _):
        key, draw = jax.random.split(jax.random.wrap_key_data(state.key))
        gradient = state.gradient
        if batch_size is not None:
            index = jax.random.choice(draw, batch[1].shape[0], (batch_size,), replace=False)
            part = jax.tree.map(lambda a: a[index], batch)
            gradient = jax.grad(lambda p: net.losses_fn(p, part).mean())(state.params)
        change = -rate * gradient
        if momentum:
            change += momentum * state.before
        _, middle = loss_and_gradient(net, parts, state.params + change / 2, batch)
        params = state.params + change
        loss, last = loss_and_gradient(net, parts, params, batch)
        share = change * (state.gradient + 4 * middle + last) / 6
        found = {
            "loss": loss,
            "total": share.sum(),
            "linear": jnp.vdot(change, state.gradient),
            "hurting": (share > 0).mean(),
            "harm": jnp.maximum(share, 0).sum(),
            "help": jnp.minimum(share, 0).sum(),
            "layers": jax.ops.segment_sum(share, layers, num_segments=count),
            "turned": (change * state.before < 0).mean(),
        }
        key = jax.random.key_data(key)
        return State(params, last, change, state.allocation + share, key), found

    def one(batch, state):
        return loops.scan(functools.partial(step, batch), state, length=steps)

    return net.over_seeds(one)(batch, state)


def layers_of(net: FlatNetwork, shape: tuple[int, ...]) -> tuple[jax.Array, int]:
    """(size,) the layer of every parameter, and how many there are.

    A layer is a top-level module. A network makes them as it uses them: in order of depth, but for
    branches.
    """
    names: list[str] = []

    def init(key):
        params, _ = network(net.architecture).init(key, jnp.zeros((1, *shape)))
        names.extend(params)  # those of a tree that has left a trace are sorted
        return params

    tree = jax.eval_shape(init, jax.random.key(0))
    numbered = {
        name: jax.tree.map(lambda a, i=i: jnp.full(a.shape, i), tree[name])
        for i, name in enumerate(names)
    }
    return jax.flatten_util.ravel_pytree(numbered)[0], len(names)


def run_arm(
    config: Config, out: Path, name: str, net: FlatNetwork, data: SmallData
) -> dict[str, np.ndarray]:
    """The records of an arm, (seeds, steps) and more axes each; and its allocation at the end."""
    batch = (jnp.asarray(data.inputs), jnp.asarray(data.targets))
    params = net.init_seeds(config.seed_range())
    whole = functools.partial(loss_and_gradient, net, config.parts)
    first, gradient = net.over_seeds(whole)(params, batch)
    zeros = jnp.zeros_like(params)
    keys = jax.random.key_data(jax.random.split(jax.random.key(1), config.seeds))
    slow = name == "gd"
    fixed = (net, config.parts, *((None, 0.0) if slow else (config.batch_size, config.momentum)))
    rate = learning_rate(config, name)
    state, records = run_chunks(
        out / name,
        State(params, gradient, zeros, zeros, keys),
        lambda state, steps: _advance(*fixed, rate, batch, state, steps),
        config.steps,
        config.chunk,
        axis=1,
        quiet=config.quiet,
    )
    ends = {"first_loss": np.asarray(first), "allocation": np.asarray(state.allocation)}
    return records | ends


def learning_rate(config: Config, arm: str) -> float:
    """The learning rate of an arm."""
    rates = {
        "sgd": config.learning_rate,
        "small": config.small_rate,
        "large": config.large_rate,
        "gd": config.slow_rate,
    }
    return rates[arm]


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The records of all arms."""
    data = minibatch.load_seeds(
        config.data,
        config.seed_range(),
        train_size=config.train_size,
        num_classes=config.architecture.classes,
        flat=config.architecture.flat,
    )
    net = flat_network(config.architecture, data.inputs.shape[2:])
    return {name: run_arm(config, out, name, net, data) for name in ARMS}


def change(records: dict[str, np.ndarray]) -> np.ndarray:
    """The change of the loss over all of training, for every seed."""
    return records["loss"][:, -1] - records["first_loss"]


def missing(name: str) -> Any:
    """The measure of a claim on what is missing in the sum of all allocations of SGD."""

    def measure(runs: Runs, config: Config) -> np.ndarray:
        fall = change(runs["sgd"]).astype(float)
        return abs((runs["sgd"][name].sum(1, dtype=np.float64) - fall) / fall)

    return measure


def hurting(arm: str) -> Any:
    """The measure of a claim on the parameters that hurt after the first steps."""
    return lambda runs, config: runs[arm]["hurting"][:, config.first_steps :].mean(1)


def harm(runs: Runs, arm: str) -> np.ndarray:
    """All positive allocations over the negative ones, for every seed."""
    return -runs[arm]["harm"].sum(1) / runs[arm]["help"].sum(1)


def rise(runs: Runs, config: Config) -> np.ndarray:
    """The least ratio of the harm with a learning rate to that with the next smaller one."""
    of = {arm: harm(runs, arm) for arm in ARMS}
    return np.minimum(of["sgd"] / of["small"], of["large"] / of["sgd"])


def rise_of_another(runs: Runs, config: Config) -> np.ndarray:
    """The same of two runs that only differ by their seed."""
    return np.roll(harm(runs, "sgd"), 1) / harm(runs, "sgd")


def least_layer(arm: str) -> Any:
    """The measure of a claim on the smallest share of a layer in the fall of the loss."""
    return lambda runs, config: (runs[arm]["layers"].sum(1) / change(runs[arm])[:, None]).min(1)


def together(shift: int) -> Any:
    """The measure of a claim on the rank correlation of two layers' changes, the least of all.

    Args:
      shift: the steps by which a layer lags.
    """

    def measure(runs: Runs, config: Config) -> list[float]:
        records, found = runs["sgd"], []
        scale = (records["harm"] - records["help"])[..., None]  # falls along training
        for layers in (records["layers"] / scale)[:, config.first_steps :]:
            count = layers.shape[1]
            pairs = [(i, j) for i in range(count) for j in range(i)]
            rows = [(layers[:, i], np.roll(layers[:, j], shift)) for i, j in pairs]
            found.append(min(rank_correlation(a, b) for a, b in rows))
        return found

    return measure


# fmt: off
lab.claim("allocations-sum-to-the-change",
          "Sum of all allocations of SGD minus the change of the loss, over that change.",
          missing("total"), high=1e-4, source="theory",
          reason="Simpson's rule and rounding; null: the gradient at the start of the step",
          null=missing("linear"))
lab.claim("nearly-half-hurt", "Share of the parameters that hurt, mean over SGD after its start.",
          hurting("sgd"), low=0.45, high=0.5, source="paper",
          reason="barely over 50 % help; null: slow descent", null=hurting("gd"))
lab.claim("few-hurt-in-slow-descent", "The same for slow full-batch gradient descent.",
          hurting("gd"), high=0.02, source="theory",
          reason="no parameter hurts in gradient flow; null: SGD", null=hurting("sgd"))
lab.claim("harm-grows-with-the-rate",
          "Positive over negative allocations of SGD, with one of three learning rates over the "
          "next smaller; the least.", rise, low=1.0, source="sign", reason="null: another seed",
          null=rise_of_another)
lab.claim("updates-oscillate",
          "Share of the parameters whose update turns its sign from step to step of SGD.",
          lambda runs, config: runs["sgd"]["turned"][:, 1:].mean(1), low=0.4, high=0.6,
          source="paper", reason="about one half; null: slow descent",
          null=lambda runs, config: runs["gd"]["turned"][:, 1:].mean(1))
lab.claim("a-layer-hurts", "Smallest share of a layer in the fall of the loss by SGD.",
          least_layer("sgd"), high=0.0, source="paper",
          reason="whole layers move against training; null: slow descent",
          null=least_layer("gd"))
lab.claim("layers-learn-together",
          "Rank correlation of two layers' changes of the loss over the steps of SGD, the least.",
          together(0), low=0.0, source="sign", reason="null: a step later", null=together(1))
# fmt: on


@lab.figure("Loss change allocation, means over seeds.", columns=3, panel=(4.0, 3.2))
def allocation(axes: Any, runs: Runs, config: Config) -> None:
    """Harm and help along training, the share that hurts, and the layers' totals."""
    left, middle, right = axes
    for number, (name, records) in enumerate(runs.items()):
        kind = "full batch" if name == "gd" else "SGD"
        label = rf"{kind}, $\eta$ = {learning_rate(config, name):g}"
        middle.plot(records["hurting"].mean(0), **style(number, markers=False), label=label)
        total = (records["layers"].sum(1) / change(records)[:, None]).mean(0)
        position = np.arange(len(total)) + 0.2 * (number - 1.5)
        right.bar(position, total, 0.2, color=style(number)["color"], label=label)
    left.plot(runs["sgd"]["harm"].mean(0), **style(1, markers=False), label="harm")
    left.plot(-runs["sgd"]["help"].mean(0), **style(0, markers=False), label="help")
    left.set(xlabel="step of SGD", ylabel="loss change allocated", yscale="log")
    middle.set(xlabel="step", ylabel="fraction of parameters that hurt", ylim=(0, 0.6))
    middle.axhline(0.5, color="#555555", linewidth=1, linestyle=":")
    right.set(xlabel="layer", ylabel="share of the fall", xticks=range(len(total)))
    left.legend()
    middle.legend(fontsize=7)


@lab.extra
def over_training(runs: Runs, config: Config) -> dict[str, Any]:
    """The share of the parameters whose allocation over all of training is positive."""
    return {"parameters_that_hurt_over_training": (runs["sgd"]["allocation"] > 0).mean(1)}
