"""Stiffness: gradients agree within a class, not between; and SGD settles where they are uniform.

Fort, Nowak, Jastrzebski & Narayanan (2019, "Stiffness: A New Perspective on Generalization in
Neural Networks"): the gradients of two examples of one class have a positive cosine, all through
training, those of different classes none; so for pairs of training examples and for a training
with a test example. Wu, Ma & E (NeurIPS 2018, "How SGD Selects the Global Minima"): SGD with step
eta and batches of B can stay at a minimum only if (1 - eta a)^2 + eta^2 (n - B) / (B (n - 1)) s^2
is at most 1, with a the sharpness and s the non-uniformity of the examples' Hessians, so that small
batches select uniform minima. Three parts: stiffness along training, with two learning rates; the
bound where SGD of three batch sizes and two learning rates ends; and the paper's example in one
dimension, where the bound is exact.

    python -m experiments stiffness                                # three seeds, 2 minutes

Found on seeds 0-4: within a class a cosine of 0.40 to 0.46, between -0.03, the same between
training and test; 0.35 with a learning rate of 0.3. At eta = 0.2 the minima of batches of 4, 20 and
200 have a sharpness of 4.2, 7.1 and 9.2 and a non-uniformity of 9, 16 and 21, each close below its
own bound: small batches are held at uniform minima, which are flat ones, for the two go together.

The clustering of logits (Fort & Ganguli 2019), the mean squared distance to the class mean over the
total variance, is in the summary, without a claim: it hardly moves at this size.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatjax
from experiments.lib import endpoint, losses, minibatch
from experiments.lib.claims import Claim, Figure, judge, run_folder, write_summary
from experiments.lib.curves import by_seed, curve, rank_correlation
from experiments.lib.figures import figure, style
from experiments.lib.minibatch import Recipe
from experiments.lib.progress import say
from experiments.lib.seeds import kept_arrays
from experiments.lib.sharing import shared
from experiments.registry import Experiment, ExperimentConfig

Found = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Config(ExperimentConfig):
    """The options."""

    data: str = "digits"
    """The data set."""

    train_size: int = 500
    """Training examples of the first part."""

    pairs: int = 200
    """Stiffness is measured over all pairs of so many examples."""

    rates: tuple[float, float] = (0.03, 0.3)
    """Learning rates of the first part; the claims are about the first."""

    recipe: Recipe = field(default_factory=lambda: Recipe(batch_size=50, epochs=60, record_every=5))
    """Network and training of the first part."""

    stable_size: int = 200
    """Training examples of the second part."""

    stable_rates: tuple[float, float] = (0.05, 0.2)
    """Learning rates of the second part."""

    batch_sizes: tuple[int, int, int] = (4, 20, 200)
    """Batch sizes of the second part, from the smallest; the last is the full batch."""

    stable_steps: int = 16_000
    """Updates in the second part, at most."""

    stable: Recipe = field(
        default_factory=lambda: Recipe(hidden=(32, 32), loss="squared_error", stop_loss=0.005)
    )
    """Network and loss of the second part; its epochs follow from the number of updates."""

    walkers: int = 500
    """Runs of SGD in one dimension."""


PRESETS = {
    "smoke": Config(
        preset="smoke", train_size=40, pairs=20, walkers=20, stable_size=20,
        batch_sizes=(4, 10, 20),
        recipe=Recipe(hidden=(6,), batch_size=20, epochs=4, record_every=2),
        stable=Recipe(hidden=(6,), loss="squared_error", stop_loss=0.45), stable_steps=20,
    ),
    "cpu": Config(preset="cpu", seeds=3, first_seed=100),
    "gpu": Config(
        preset="gpu", seeds=3, first_seed=100, data="cifar10", train_size=5000, pairs=500,
        recipe=Recipe(hidden=(512, 512), batch_size=100, epochs=100, record_every=5),
    ),
    "paper": Config(
        preset="paper", seeds=3, first_seed=100, data="mnist", train_size=10_000, pairs=500,
        recipe=Recipe(hidden=(500, 300, 100), activation="relu", batch_size=32, epochs=50),
    ),
}  # fmt: skip

_FORT = "Fort et al. 2019"
_WU = "Wu, Ma & E 2018"
_SOON = 1  # the first record after the start

CLAIMS = {
    c.name: c
    for c in (
        Claim(
            name="within",
            statement="Cosine of two gradients of one class, the least of all records.",
            paper=_FORT, low=0.25, reason="0.375 to 0.419 on seeds 0-4",
        ),
        Claim(
            name="between",
            statement="Cosine of two gradients of different classes, the largest of all records.",
            paper=_FORT, high=0.05, reason="-0.00747 to -0.000953 on seeds 0-4",
        ),
        Claim(
            name="sign-within",
            statement="Sign stiffness within a class, the least after the first record.",
            paper=_FORT, low=0.75, reason="0.859 to 0.928 on seeds 0-4",
        ),
        Claim(
            name="sign-between",
            statement="Sign stiffness between classes, the largest after the first record.",
            paper=_FORT, high=0.05, reason="-0.331 to -0.3 on seeds 0-4",
        ),
        Claim(
            name="test-within",
            statement="Cosine of a training and a test gradient of one class, the least.",
            paper=_FORT, low=0.2, reason="0.381 to 0.405 on seeds 0-4",
        ),
        Claim(
            name="test-like-train",
            statement="Cosine within a class at the end: training and test over training only.",
            paper=_FORT, low=0.8, high=1.1, reason="0.931 to 1.04 on seeds 0-4",
        ),
        Claim(
            name="stable",
            statement="The stability condition's left side where SGD ends, the largest of all.",
            paper=_WU, high=1.0, reason="0.848 to 0.995 on seeds 0-4",
        ),
        Claim(
            name="small-batches-uniform",
            statement="Non-uniformity with the smallest batches over the full batch, at large eta.",
            paper=_WU, high=0.95, reason="0.373 to 0.454 on seeds 0-4",
        ),
        Claim(
            name="small-batches-flat",
            statement="Sharpness with the smallest batches over the full batch, at large eta.",
            paper=_WU, high=0.95, reason="0.402 to 0.52 on seeds 0-4",
        ),
        Claim(
            name="flat-is-uniform",
            statement="Rank correlation of sharpness and non-uniformity over all minima.",
            paper=_WU, low=0.8, reason="0.943 to 1 on seeds 0-4",
        ),
        Claim(
            name="one-dimension-stays",
            statement="SGD that stays at the non-uniform minimum at eta = 0.5, left side 0.81.",
            paper=_WU, low=0.99, reason="exact: every factor is 0.9 in magnitude",
        ),
        Claim(
            name="one-dimension-leaves",
            statement="SGD that leaves it for the uniform minimum at eta = 0.7, left side 1.75.",
            paper=_WU, low=0.99, reason="exact: the mean logarithm of the factors is 0.18",
        ),
        Claim(
            name="one-dimension-descent-stays",
            statement="Gradient descent that stays there at eta = 0.7.",
            paper=_WU, low=0.99, reason="exact: the factor is -0.4",
        ),
    )
}  # fmt: skip


def measure(recipe: Recipe, count: int, params: Any, data: Any, key: Any) -> dict[str, jax.Array]:
    """Stiffness of pairs of training examples, and of a training with a test example."""
    del key
    losses_fn = minibatch.losses_fn(recipe.activation, recipe.loss)
    batch = minibatch.training_batch(recipe, data, count)
    labels, other_labels = data.targets[:count], data.test_targets[:count]
    other = (data.test_inputs[:count], losses.encode(recipe.loss, other_labels, 10))
    train = flatjax.stiffness(losses_fn, params, batch, labels=labels, num_classes=10)
    test = flatjax.stiffness(
        losses_fn, params, batch,
        labels=labels, other=other, other_labels=other_labels, num_classes=10,
    )  # fmt: skip
    logits = minibatch.model_of(recipe)(params, batch[0])
    members = jax.nn.one_hot(labels, 10)
    means = (members.T @ logits) / jnp.maximum(members.sum(0), 1)[:, None]
    spread = jnp.square(logits - members @ means).sum() / jnp.square(logits - logits.mean(0)).sum()
    return {
        "cos_within": train.cosine.within,
        "cos_between": train.cosine.between,
        "sign_within": train.sign.within,
        "sign_between": train.sign.between,
        "classes": train.cosine.classes,
        "test_cos_within": test.cosine.within,
        "test_cos_between": test.cosine.between,
        "logit_spread": spread,
    }


def run_training(config: Config, out: Path) -> list[dict[str, np.ndarray]]:
    """The records of both learning rates, by seed and point."""
    seeds, count = list(config.seed_range()), len(config.rates)
    data = minibatch.load_seeds(config.data, seeds, train_size=config.train_size)
    found = minibatch.train_arm(
        out / "stiffness",
        config.recipe,
        minibatch.repeat(data, count),
        np.repeat(seeds, count),
        lambda seed, rate: optax.sgd(rate),
        hyper=np.tile(np.array(config.rates, np.float32), len(seeds)),
        measure=functools.partial(measure, config.recipe, config.pairs),
        quiet=config.quiet,
    )
    return [{k: v[i::count] for k, v in found.records.items()} for i in range(count)]


def run_minima(config: Config, out: Path) -> Found:
    """Where SGD ends, by batch size: arrays (seeds, learning rates)."""
    seeds, count = list(config.seed_range()), len(config.stable_rates)
    data = minibatch.load_seeds(config.data, seeds, train_size=config.stable_size)
    many = minibatch.repeat(data, count)

    def ends(size: int) -> dict[str, np.ndarray]:
        say(f"minima of SGD with batches of {size}", enabled=not config.quiet)
        epochs = max(1, config.stable_steps * size // config.stable_size)
        recipe = dataclasses.replace(
            config.stable, batch_size=size, epochs=epochs, record_every=max(1, epochs // 12)
        )
        folder = out / f"batch_{size}"
        trained = minibatch.train_arm(
            folder,
            recipe,
            many,
            np.repeat(seeds, count),
            lambda seed, rate: optax.sgd(rate),
            hyper=np.tile(np.array(config.stable_rates, np.float32), len(seeds)),
            chunk=3,
            quiet=config.quiet,
        )
        end = kept_arrays(
            folder / "stability.npz",
            lambda: stability(config, recipe, trained.params, many, size),
        )
        end |= {"reached": trained.reached}
        end |= {k: trained.records[k][:, -1] for k in ("test_accuracy", "train_loss", "epoch")}
        return {k: v.reshape(len(seeds), count) for k, v in end.items()}

    return shared({str(size): functools.partial(ends, size) for size in config.batch_sizes})


def stability(config: Config, recipe: Recipe, params: Any, data: Any, size: int):
    """Sharpness, non-uniformity and the stability condition of all runs."""
    losses_fn = minibatch.losses_fn(recipe.activation, recipe.loss)
    results = [
        flatjax.linear_stability(
            losses_fn,
            endpoint.run_of(params, index),
            minibatch.training_batch(recipe, endpoint.run_of(data, index)),
            learning_rate=config.stable_rates[index % len(config.stable_rates)],
            batch_size=size,
            key=jax.random.key(0),
            tol=1e-2,
            max_products=60,
        )
        for index in range(len(data.targets))
    ]
    names = ("value", "sharpness", "non_uniformity", "bound")
    return {name: np.array([float(getattr(r, name)) for r in results]) for name in names}


def one_dimension(seed: int, walkers: int, steps: int = 500) -> dict[str, float]:
    """The fractions that stay at x = 1, or leave it for 0, in the paper's example."""

    def example_loss(x, curvature):
        return jnp.minimum(x**2, curvature * (x - 1) ** 2)

    curvatures = jnp.array([0.1, 1.9])
    slope = jax.vmap(jax.grad(example_loss), in_axes=(None, 0))
    start, draw = jax.random.split(jax.random.key(seed))
    x0 = 1 + 1e-3 * jax.random.normal(start, (walkers,))

    @jax.jit
    def ends(eta, stochastic):
        def step(x, key):
            slopes = jax.vmap(lambda x: slope(x, curvatures))(x)
            which = jax.random.randint(key, (walkers, 1), 0, 2)
            one = jnp.take_along_axis(slopes, which, axis=1)[:, 0]
            return x - eta * jnp.where(stochastic, one, slopes.mean(1)), None

        return jax.lax.scan(step, x0, jax.random.split(draw, steps))[0]

    near = lambda x, y: float((jnp.abs(x - y) < 0.05).mean())  # noqa: E731
    return {
        "one-dimension-stays": near(ends(0.5, True), 1),
        "one-dimension-leaves": near(ends(0.7, True), 0),
        "one-dimension-descent-stays": near(ends(0.7, False), 1),
    }


def numbers(training: list[dict[str, np.ndarray]], minima: Found) -> dict[str, np.ndarray]:
    """The measured number of every claim of the first two parts, one a seed."""
    records = training[0]
    small, full = (list(minima.values())[i] for i in (0, -1))
    reached = np.array([m["reached"] for m in minima.values()]).all((0, 2))
    tops = np.concatenate([m["sharpness"] for m in minima.values()], axis=1)
    spreads = np.concatenate([m["non_uniformity"] for m in minima.values()], axis=1)

    def ratio(name):
        return np.where(reached, small[name][:, -1] / full[name][:, -1], np.nan)

    def correlation(a, b):
        return np.array([rank_correlation(x, y) for x, y in zip(a, b, strict=True)])

    return {
        "within": records["cos_within"].min(1),
        "between": records["cos_between"].max(1),
        "sign-within": records["sign_within"][:, _SOON:].min(1),
        "sign-between": records["sign_between"][:, _SOON:].max(1),
        "test-within": records["test_cos_within"].min(1),
        "test-like-train": records["test_cos_within"][:, -1] / records["cos_within"][:, -1],
        "stable": np.array([m["value"].max(1) for m in minima.values()]).max(0),
        "small-batches-uniform": ratio("non_uniformity"),
        "small-batches-flat": ratio("sharpness"),
        "flat-is-uniform": correlation(tops, spreads),
    }


def draw_stiffness(path: Path, config: Config, training: list[dict[str, np.ndarray]]) -> None:
    """Stiffness along training, and the class blocks at the end."""
    with figure(path, 1, 3, panel=(3.8, 3.1), dpi=90) as (left, middle, right):
        for number, (rate, records) in enumerate(zip(config.rates, training, strict=True)):
            epochs = records["epoch"][0]
            for panel, prefix in ((left, "cos"), (middle, "sign")):
                curve(panel, epochs, records[f"{prefix}_within"], number, f"within, eta {rate:g}")
                curve(panel, epochs, records[f"{prefix}_between"], number + 2,
                      f"between, eta {rate:g}")  # fmt: skip
            if number == 0:
                curve(left, epochs, records["test_cos_within"], 4, "within, train and test")
        left.set(title="cosine of gradients", xlabel="epoch")
        middle.set(title="sign of inner products", xlabel="epoch")
        left.legend(fontsize=7)
        blocks = training[0]["classes"][:, -1].mean(0)
        image = right.imshow(blocks, cmap="cividis")
        right.grid(False)
        right.set(title="cosine by classes, at the end", xticks=range(0, 10, 3))
        right.figure.colorbar(image, ax=right)


def draw_minima(path: Path, config: Config, minima: Found) -> None:
    """Sharpness and non-uniformity of all minima, with the stability bounds."""
    with figure(path, 1, len(config.stable_rates), panel=(4.2, 3.2), dpi=90) as axes:
        for column, eta in enumerate(config.stable_rates):
            panel = axes[column]
            for number, (size, end) in enumerate(minima.items()):
                options = {**style(number), "linestyle": "none"}
                x, y = end["sharpness"][:, column], end["non_uniformity"][:, column]
                panel.plot(x, y, label=f"batches of {size}", **options)
                b, n = int(size), config.stable_size
                share = (n - b) / (b * (n - 1))
                if share > 0:
                    a = np.linspace(0, 2 / eta, 200)
                    room = np.sqrt(np.maximum(1 - (1 - eta * a) ** 2, 0) / share) / eta
                    panel.plot(a, room, **{**style(number, markers=False), "linewidth": 1})
            panel.axvline(2 / eta, color="#555555", linewidth=1, linestyle=":")
            values = np.concatenate([end["sharpness"][:, column] for end in minima.values()])
            heights = np.concatenate([end["non_uniformity"][:, column] for end in minima.values()])
            panel.set(
                xlabel="sharpness", ylabel="non-uniformity", title=f"eta = {eta:g}",
                xlim=(0, 1.3 * values.max()), ylim=(0, 1.5 * heights.max()),
            )  # fmt: skip
        axes[0].legend(fontsize=8)


def main(config: Config) -> None:
    """Runs the experiment, or shows the finished run."""
    with run_folder(config) as out:
        seeds = list(config.seed_range())
        say("stiffness along training", enabled=not config.quiet)
        training = run_training(config, out)
        minima = run_minima(config, out)
        lines = [one_dimension(seed, config.walkers) for seed in seeds]
        values = {k: v.tolist() for k, v in numbers(training, minima).items()}
        values |= {name: [line[name] for line in lines] for name in lines[0]}
        draw_stiffness(out / "stiffness.png", config, training)
        draw_minima(out / "minima.png", config, minima)
        write_summary(
            out,
            config,
            [judge(claim, by_seed(seeds, values[name])) for name, claim in CLAIMS.items()],
            [
                Figure("stiffness.png", "Along training; mean over seeds, two standard errors."),
                Figure(
                    "minima.png",
                    "Minima of SGD, every seed; below its line a batch size is stable.",
                ),
            ],
            {
                "minima": minima,
                "rates": {
                    f"{rate:g}": {k: v[:, -1] for k, v in records.items() if k != "classes"}
                    for rate, records in zip(config.rates, training, strict=True)
                },
            },
        )


EXPERIMENT = Experiment(main=main, presets=PRESETS)
