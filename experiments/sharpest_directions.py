"""Along the sharpest directions SGD's step is too long, and training steers by them.

Jastrzebski et al. 2019, "On the Relation Between the Sharpest Directions of DNN Loss and the SGD
Step Length". A tanh network learns the digits with squared error by full-batch gradient descent.
While the sharpness lambda_1 grows towards 2/eta the step along the top eigenvector e_1 becomes too
long: the best multiple of it, measured by a line search on the loss along -<g, e_1> e_1 from the
present point, falls below one, and with a small learning rate stays far above. "Nudged" descent
multiplies the step's component in the span of the top K eigenvectors by gamma: a small gamma
takes the brake off, and training runs into much sharper regions at the same loss.

    python -m experiments sharpest_directions        # three seeds, 92 seconds

Found: at the edge the best multiple is 0.49, so that the step lands on the other wall, as high as
it started; with the small rate 6, the inverse of rate x sharpness. With gamma 0.01 the sharpness at
equal loss is 1.5 times that with gamma 1. Far from the edge full-batch descent has hardly a
gradient left along e_1; once there 99 % of it lies in the top 5 directions.
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
from experiments.lib.lab import Lab, Options, Runs
from experiments.lib.nets.mlp import FlatMlp
from experiments.lib.runs.trajectory import run_chunks
from experiments.lib.training import minibatch
from experiments.lib.verdicts.figures import reference, style
from flatjax import loops

ARMS = {"large": 1.0, "small": 1.0, "gamma_0.1": 0.1, "gamma_0.01": 0.01}
"""gamma of each arm; all but `small` take the large learning rate."""


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options."""

    train_size: int = 300  # examples, all of them in every batch
    label_noise: float = 0.2  # share of wrong labels
    width: int = 64  # units of each of the two hidden layers
    large_rate: float = 0.2  # meets the sharpness; also the rate of nudged descent ...
    small_rate: float = 0.02  # ... and one that does not meet it
    top: int = 5  # K, the sharpest directions
    steps: int = 1000  # updates
    every: int = 5  # steps between two measurements; nudged descent keeps the directions as long
    chunk: int = 500  # steps between two saves


# fmt: off
lab = Lab(
    Config, "Jastrzebski et al. 2019", shares=False,
    smoke={"seeds": 1, "train_size": 40, "width": 8, "steps": 40, "chunk": 20, "top": 2},
    paper={"data": "cifar10", "train_size": 45_000, "width": 512, "large_rate": 0.01,
           "steps": 100_000},
)
# fmt: on
EXPERIMENT = lab.experiment

MULTIPLES = np.geomspace(0.05, 50, 32).astype("float32")
"""Of the step along the top eigenvector, tried by the line search."""


class State(NamedTuple):
    """A state of training; with a leading axis of seeds."""

    params: jax.Array
    track: Any


def first_root(x: jax.Array, values: jax.Array) -> jax.Array:
    """Where linear interpolation of the values first falls to zero; an end of x if it does not."""
    below = values <= 0
    i = jnp.clip(below.argmax(), 1, len(x) - 1)
    share = values[i - 1] / (values[i - 1] - values[i])
    root = x[i - 1] + share * (x[i] - x[i - 1])
    return jnp.where(below[0], x[0], jnp.where(below.any(), root, x[-1]))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 6))
def _advance(losses_fn, tracker, every, rate_and_gamma, batch, state, blocks):
    rate, gamma = rate_and_gamma

    def block(batch, state, _):
        def mean_loss(p):
            return losses_fn(p, batch).mean()

        operator = flatjax.hessian(losses_fn, state.params, batch)
        track = loops.fori(2, lambda _, t: tracker.update(operator, t), state.track)
        loss, gradient = jax.value_and_grad(mean_loss)(state.params)
        overlap = flatjax.subspace_overlap(gradient, track.vectors)
        along = jnp.vdot(gradient, track.vectors[0]) * track.vectors[0]

        def slope(multiple):
            point = state.params - rate * multiple * along
            return jax.jvp(mean_loss, (point,), (along,))[1]

        # The slope, not the loss: where the gradient hardly has a component along the vector,
        # the loss along it is flat to rounding.
        slopes = loops.scan(lambda _, m: (None, slope(m)), None, jnp.asarray(MULTIPLES))[1]
        found = {
            "loss": loss,
            "sharpness": track.values[0],
            "last": track.values[-1],
            "best_multiple": first_root(jnp.asarray(MULTIPLES), slopes),
            "overlap_top": jnp.square(overlap.components[0])
            / jnp.square(jnp.linalg.norm(gradient)),
            "share_of_first": jnp.square(overlap.components[0]),
            "overlap": overlap.value,
        }

        def update(_, p):
            g = jax.grad(mean_loss)(p)
            top = track.vectors.T @ (track.vectors @ g)
            return p - rate * (g + (gamma - 1) * top)

        return State(loops.fori(every, update, state.params), track), found

    def one(batch, state):
        return loops.scan(functools.partial(block, batch), state, length=blocks)

    return jax.vmap(one)(batch, state)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _settled(losses_fn, tracker, batch, params, keys):
    """Vectors that already are eigenvectors: those of a tracker start at random."""

    def one(batch, params, key):
        operator = flatjax.hessian(losses_fn, params, batch)
        start = tracker.init(params, key=key)
        return loops.fori(30, lambda _, t: tracker.update(operator, t), start)

    return jax.vmap(one)(batch, params, keys)


def run_arm(config: Config, out: Path, name: str, net: FlatMlp, losses_fn, data) -> dict[str, Any]:
    """The records of one arm, (seeds, steps // every) each."""
    tracker = flatjax.track(config.top, num_blocks=2)
    params = net.init_seeds(config.seed_range())
    keys = jax.random.split(jax.random.key(1), config.seeds)
    batch = (jnp.asarray(data.inputs), jnp.asarray(data.targets))
    start = State(params, _settled(losses_fn, tracker, batch, params, keys))
    hyper = jnp.asarray([learning_rate(config, name), ARMS[name]], jnp.float32)
    _, records = run_chunks(
        out / name,
        start,
        lambda state, blocks: _advance(
            losses_fn, tracker, config.every, hyper, batch, state, blocks
        ),
        config.steps // config.every,
        max(config.chunk // config.every, 1),
        axis=1,
        quiet=config.quiet,
    )
    # What a random direction would have of the gradient, for the claims.
    return records | {"random_overlap": np.full(config.seeds, config.top / net.size)}


def learning_rate(config: Config, arm: str) -> float:
    """The learning rate of an arm."""
    return config.small_rate if arm == "small" else config.large_rate


@lab.run
def run(config: Config, out: Path) -> Runs:
    """The records of all arms."""
    data = minibatch.load_seeds(
        config.data,
        config.seed_range(),
        train_size=config.train_size,
        label_noise=config.label_noise,
    )
    net = FlatMlp((data.inputs.shape[-1], config.width, config.width, 10))
    losses_fn = net.losses("squared_error")
    return {name: run_arm(config, out, name, net, losses_fn, data) for name in ARMS}


def at_equal_loss(a: dict[str, Any], b: dict[str, Any], seed: int) -> tuple[float, float]:
    """Sharpness of two arms where each first has the larger of their last losses."""
    level = max(a["loss"][seed, -1], b["loss"][seed, -1])
    found = []
    for records in (a, b):
        reached = np.flatnonzero(records["loss"][seed] <= level)[0]
        found.append(float(records["sharpness"][seed, max(reached - 2, 0) : reached + 3].mean()))
    return found[0], found[1]


def sharper(arm: str) -> Any:
    """The measure of a claim on the sharpness of an arm at equal loss over that of `large`."""

    def measure(runs: Runs, config: Config) -> list[float]:
        pairs = (at_equal_loss(runs[arm], runs["large"], i) for i in range(config.seeds))
        return [a / b for a, b in pairs]

    return measure


def at_the_edge(runs: Runs, config: Config) -> list[float]:
    """The median best multiple at the edge, for every seed; NaN where none got there."""
    large = runs["large"]
    edge = config.large_rate * large["sharpness"] >= 1.7
    edge &= large["share_of_first"] >= 0.1  # elsewhere there is no step along the vector
    rows = zip(large["best_multiple"], edge, strict=True)
    return [np.median(row[there]) if there.any() else np.nan for row, there in rows]


# fmt: off
lab.claim("step-too-long-at-the-edge",
          "Median best multiple of the step along the top eigenvector where rate x sharpness is "
          "at least 1.7 and a tenth of the squared gradient is along it.",
          at_the_edge, high=0.65, source="seeds", reason="set on seeds 0-4")
lab.claim("step-too-short-at-a-small-rate",
          "The same over the first 10 measurements with the small rate.",
          lambda runs, config: np.median(runs["small"]["best_multiple"][:, :10], 1),
          low=3.0, source="seeds", reason="set on seeds 0-4")
lab.claim("gradient-along-the-sharpest",
          "Share of the gradient in the top directions over that of a random vector, mean over "
          "training.",
          lambda runs, config: [
              row.mean() / float(one) for row, one in zip(
                  runs["large"]["overlap"], runs["large"]["random_overlap"], strict=True)],
          low=20.0, source="seeds", reason="set on seeds 0-4")
lab.claim("nudged-goes-sharper",
          "Sharpness with gamma 0.01 over that with gamma 1 at equal loss.",
          sharper("gamma_0.01"), low=1.2, source="seeds", reason="set on seeds 0-4")
lab.claim("mildly-nudged-goes-sharper",
          "Sharpness with gamma 0.1 over that with gamma 1 at equal loss.",
          sharper("gamma_0.1"), low=1.1, source="seeds", reason="set on seeds 0-4")
# fmt: on


@lab.figure(
    "Best multiple of the step along the top eigenvector; sharpness of nudged descent, every seed "
    "a line; share of the gradient, mean over seeds.",
    columns=3,
    panel=(4.0, 3.3),
)
def directions(axes: Any, runs: Runs, config: Config) -> None:
    """The best multiple against the product of rate and sharpness; sharpness; gradients."""
    left, middle, right = axes
    steps = config.every * np.arange(runs["large"]["sharpness"].shape[1])
    for number, name in enumerate(("large", "small")):
        records = runs[name]
        product = learning_rate(config, name) * records["sharpness"][:, 5:]
        look = style(number) | {"linestyle": "none", "markersize": 2.5}
        left.plot(product.ravel(), records["best_multiple"][:, 5:].ravel(), **look, label=name)
        overlap = records["overlap"].mean(0)
        right.plot(steps, overlap, **style(number, markers=False), label=name)
    line = np.geomspace(0.1, 2.5, 50)
    left.plot(line, 1 / line, color="#555555", linewidth=1, label="$1 / x$ (quadratic)")
    left.set(xscale="log", yscale="log", xlabel=r"$\eta \lambda_1$", ylabel="best multiple")
    reference(left, 1.0, "the step itself", at="left")
    for number, name in enumerate(("large", "gamma_0.1", "gamma_0.01")):
        for seed, row in enumerate(runs[name]["sharpness"]):
            look = style(number, markers=False) | {"linewidth": 1.1}
            label = rf"$\gamma$ = {ARMS[name]:g}" if seed == 0 else None
            middle.plot(steps, row, **look, label=label)
    middle.set(xlabel="step", ylabel=r"$\lambda_1(H)$", ylim=(0, None))
    reference(middle, 2 / config.large_rate, r"$2 / \eta$")
    right.set(xlabel="step", ylabel=f"gradient in top {config.top} directions", ylim=(0, 1))
    for panel in axes:
        panel.legend()
