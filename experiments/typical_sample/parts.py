"""What is run: samples of least squares, modes of many data sets, and SGLD of a network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import flatjax
from experiments.lib.runs.progress import say
from experiments.lib.training import minibatch
from experiments.lib.training.settings import train_settings
from experiments.typical_sample import gaussian

if TYPE_CHECKING:
    from experiments.typical_sample import Config


class Arm(NamedTuple):
    """What is sampled: the number of weights, the temperature and the precision of the prior."""

    weights: int
    heat: float
    precision: float = 0.0


def arms(config: Config) -> dict[str, Arm]:
    """The arms of least squares by name."""
    one = temperature(config)
    flat = {f"flat {d} at {h:g}": Arm(d, h * one) for d in config.flat for h in config.heats}
    return flat | {f"posterior {d}": Arm(d, one, one) for d in config.posterior}


def temperature(config: Config) -> float:
    """That of the posterior: N L / sigma^2 is the negative log-likelihood."""
    return config.sigma**2 / config.examples


def samples(config: Config, name: str) -> dict[str, np.ndarray]:
    """Losses of samples and of the mode on the same data sets, means by seed.

    `train`, `test` and `norm`, half the squared weights, each also with `mode_`; `over_minimum`,
    the logarithm of the test loss over that of the minimum; `gaussian.traces`.
    """
    say(name, enabled=not config.quiet)
    number = list(arms(config)).index(name)
    weights, heat, precision = arms(config)[name]
    sets = config.posterior_sets if precision else config.flat_sets
    shape = sets, config.examples, weights, config.sigma
    data = gaussian.joined(
        [gaussian.draw(np.random.default_rng([s, number]), *shape) for s in config.seed_range()]
    )
    values = np.linalg.eigvalsh(data.hessian) + precision
    rate = config.step / float(values.max())
    steps = config.posterior_steps if precision else config.flat_steps
    # Four times the slowest decay of a weight, from the mode; of the losses it is twice as fast.
    warm_up = min(steps, round(4 / (rate * max(float(values.min()), precision))))
    means = gaussian.sample(
        data, config.first_seed + 1000 * number, rate=rate, temperature=heat, precision=precision,
        warm_up=warm_up, steps=steps,
    )  # fmt: skip
    measured = ("train", "test", "norm")
    found = dict(zip(measured, means, strict=True))
    modes = gaussian.measured(data, gaussian.mode(data, precision))
    found |= dict(zip((f"mode_{key}" for key in measured), modes, strict=True))
    minimum = gaussian.measured(data, gaussian.mode(data, 0.0))[1]
    found["over_minimum"] = np.log(found["test"] / minimum)
    found["effective"], found["inverse"] = gaussian.traces(data, precision)
    return {key: np.reshape(a, (config.seeds, sets)).mean(1) for key, a in found.items()}


def minima(config: Config) -> dict[str, np.ndarray]:
    """The mean `gap` of the minimum of the training loss, by seed and number of weights."""

    def one(seed: int, weights: int) -> float:
        rng = np.random.default_rng([seed, weights, 1])
        data = gaussian.draw(rng, config.mode_sets, config.examples, weights, config.sigma)
        train, test, _ = gaussian.measured(data, gaussian.mode(data, 0.0))
        return float(np.mean(test - train))

    return {"gap": np.array([[one(s, d) for d in config.flat] for s in config.seed_range()])}


def along_widths(config: Config) -> dict[str, np.ndarray]:
    """Mean gaps of `minimum`, `mode` and `typical` sample of the posterior in closed form.

    By seed and number of weights, on some data sets; for the figure.
    """

    def one(seed: int, weights: int) -> list[float]:
        rng, heat = np.random.default_rng([seed, weights, 2]), temperature(config)
        data = gaussian.draw(rng, config.posterior_sets, config.examples, weights, config.sigma)
        gaps = []
        for precision in (0.0, heat):
            train, test, _ = gaussian.measured(data, gaussian.mode(data, precision))
            gaps.append(float(np.mean(test - train)))
        effective, inverse = gaussian.traces(data, heat)
        return [*gaps, gaps[1] + heat / 2 * float(np.mean(inverse - effective))]

    rows = np.array([[one(seed, d) for d in config.curve] for seed in config.seed_range()])
    return dict(zip(("minimum", "mode", "typical"), np.moveaxis(rows, -1, 0), strict=True))


def network(config: Config, out: Path, width: int) -> dict[str, np.ndarray]:
    """Training and test loss of an MLP, means over the second half of SGLD, by temperature."""
    seeds = list(config.seed_range())
    recipe = dataclasses.replace(config.recipe, hidden=(width,))
    size, labels = config.train_size, recipe.classes
    data = minibatch.load_seeds(config.data, seeds, train_size=size, num_classes=labels)

    def sgld(seed: Any, heat: Any) -> Any:
        rate = config.rate / size  # of N times the mean loss
        return flatjax.langevin(
            rate, num_data=size, temperature=heat, prior_precision=1.0, seed=seed
        )

    heats = {heat: heat for heat in config.temperatures}
    trained = train_settings(
        out / f"mlp_{width}", recipe, data, seeds, sgld, heats, quiet=config.quiet
    )
    records = [trained[heat].records for heat in heats]
    half = records[0]["epoch"].shape[1] // 2
    return {
        name: np.stack([each[name][:, half:].mean(1) for each in records], axis=1)
        for name in ("train_loss", "test_loss")
    }
