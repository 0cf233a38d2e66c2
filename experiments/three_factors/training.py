"""SGD at one learning rate and batch size: until a loss is reached, or on wrong labels."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

import flatjax
from experiments.lib.data.small import shuffled_batches
from experiments.lib.nets.flat import FlatNetwork, flat_network
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.runs.progress import say
from experiments.lib.training import minibatch
from experiments.lib.training.recipes import Recipe
from experiments.lib.training.settings import train_settings
from experiments.three_factors.pairs import Pairs
from flatjax import loops

if TYPE_CHECKING:
    from experiments.three_factors import Config

RECORDS = 100


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _train(net, batch_size, noise, momentum, rate, max_epochs, stop_loss, params, data, keys):
    """Until the loss is low enough: the parameters, the epochs, the loss and the test accuracy.

    With `noise` the covariance of the gradient noise is so many times that of a batch: the scaled
    difference of two more batches is added, which has mean zero and the covariance of the noise.
    Momentum is the heavy ball's: v <- momentum v + gradient, w <- w - rate v.
    """

    def one(params, data, key):
        batch = (data.inputs, data.targets)

        def gradient(params, index):
            part = jax.tree.map(lambda a: a[index], batch)
            return jax.grad(lambda p: net.losses_fn(p, part).mean())(params)

        def noisy_gradient(params, index):
            if noise == 1:
                return gradient(params, index)
            first, second, third = (gradient(params, i) for i in index)
            return first + ((noise - 1) / 2) ** 0.5 * (second - third)

        def step(carry, index):
            params, velocity = carry
            velocity = momentum * velocity + noisy_gradient(params, index)
            return (params - rate * velocity, velocity), None

        def epoch(carry):
            params, velocity, _, count = carry
            key_now = jax.random.fold_in(key, count)

            def drawn(key):
                return shuffled_batches(key, len(batch[1]), batch_size)

            if noise == 1:
                order = drawn(key_now)
            else:
                order = jnp.stack([drawn(k) for k in jax.random.split(key_now, 3)], axis=1)
            (params, velocity), _ = loops.scan(step, (params, velocity), order)
            return params, velocity, net.losses_fn(params, batch).mean(), count + 1

        def done(carry):
            *_, loss, count = carry
            goes_on = (loss > stop_loss) & (count < max_epochs)
            return ~goes_on  # also with a loss that is not a number

        start = (params, jnp.zeros_like(params), jnp.float32(jnp.inf), jnp.int32(0))
        params, _, loss, count = loops.until(done, epoch, start)
        accuracy = net.accuracy(params, data.test_inputs, data.test_targets)
        return {"params": params, "loss": loss, "epochs": count, "test_accuracy": accuracy}

    return net.over_seeds(one)(params, data, keys)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _curvature(net, size, probes, params, data):
    """Largest eigenvalue, trace and Frobenius norm of the Hessian of every seed.

    All pairs have the same probes: what is compared are networks from one initialisation, whose
    Hessians resemble each other, so that most of the error of the estimates cancels.
    """
    tracker = flatjax.track(1, num_blocks=2)

    def one(params, data):
        batch = data.inputs[:size], data.targets[:size]
        hessian = flatjax.hessian(net.losses_fn, params, batch)
        start = tracker.init(params, key=jax.random.key(0))
        top = loops.fori(60, lambda _, t: tracker.update(hessian, t), start)
        trace = flatjax.trace(hessian, key=jax.random.key(1), num_products=probes)

        def square(total, key):
            # E |H v|^2 = |H|_F^2 where the signs are independent.
            product = hessian.mv(jax.random.rademacher(key, params.shape, params.dtype))
            return total + product @ product, None

        keys = jax.random.split(jax.random.key(2), probes)
        total, _ = loops.scan(square, jnp.zeros((), params.dtype), keys)
        norm = jnp.sqrt(total / probes)
        return {"sharpness": top.values[0], "trace": trace.value, "frobenius": norm}

    return net.over_seeds(one)(params, data)


def until_loss(
    config: Config,
    out: Path,
    rate: float,
    size: int,
    net: FlatNetwork,
    data: Any,
    *,
    noise: float = 1,
    momentum: float = 0.0,
) -> Pairs:
    """What was measured at the end of one pair, (seeds,) each; kept in a file."""
    name = f"rate_{rate:g}_batch_{size}"
    name += "" if noise == 1 else f"_noise_{noise:g}"
    name += f"_momentum_{momentum:g}" if momentum else ""

    def made() -> dict[str, Any]:
        say(name.replace("_", " "), enabled=not config.quiet)
        params = net.init_seeds(config.seed_range())
        keys = jax.random.split(jax.random.key(1), config.seeds)
        max_epochs = round(config.max_time / rate * size / config.train_size)
        options = jnp.float32(rate), max_epochs, config.stop_loss
        found = _train(net, size, noise, momentum, *options, params, data, keys)
        measured = config.curvature_size, config.probes
        return found | _curvature(net, *measured, found.pop("params"), data)

    return {(rate, size): kept_arrays(out / f"{name}.npz", made)}


def memorising(config: Config, out: Path, batch_size: int, data: Any) -> Pairs:
    """The records of the extreme learning rates on wrong labels, (seeds, points) each."""
    rates = (config.rates[0], config.rates[-1])
    epochs = max(round(config.memorising_time / rates[0] * batch_size / config.train_size), 1)
    found = train_settings(
        out / f"wrong_labels_{batch_size}",
        Recipe(
            **vars(config.architecture),
            batch_size=batch_size,
            epochs=epochs,
            record_every=max(epochs // RECORDS, 1),
        ),
        data,
        config.seed_range(),
        lambda seed, rate: optax.sgd(rate),
        {rate: rate for rate in rates},
        quiet=config.quiet,
    )
    return {(rate, batch_size): runs.records for rate, runs in found.items()}


def all_pairs(config: Config, out: Path) -> dict[tuple[str, float, int], Any]:
    """All pieces of work by kind, learning rate and batch size; those of wrong labels have two."""
    architecture = config.architecture
    load = functools.partial(
        minibatch.load_seeds,
        config.data,
        config.seed_range(),
        train_size=config.train_size,
        test_size=config.test_size,
        num_classes=architecture.classes,
        flat=architecture.flat,
    )
    data, wrong = load(), load(label_noise=config.wrong_labels)
    own = flat_network(architecture, data.inputs.shape[2:]), data
    for field in ("batch_sizes", "rates"):
        if len(getattr(config, field)) < 2:
            raise ValueError(f"{field} has one value: give two at least, they are compared")
    small, large = config.batch_sizes[:2]
    *_, slower, rate = config.rates
    if not slower < rate:
        raise ValueError(f"rates {config.rates} do not rise: give the largest one last")
    return (
        {
            ("clean", rate, size): functools.partial(until_loss, config, out, rate, size, *own)
            for size in config.batch_sizes
            for rate in config.rates
        }
        | {
            # The noise of the small batch by other means.
            ("noisier", rate, large): functools.partial(
                until_loss, config, out, rate, large, *own, noise=large / small
            ),
            # The largest rate by momentum: eta / (1 - momentum) is what SGD without it has.
            ("momentum", slower, small): functools.partial(
                until_loss, config, out, slower, small, *own, momentum=1 - slower / rate
            ),
        }
        | {
            ("wrong", 0.0, size): functools.partial(memorising, config, out, size, wrong)
            for size in config.memorising_batch_sizes
        }
    )
