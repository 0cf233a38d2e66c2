"""What holds exactly where the loss ignores the length of the weights, in double precision."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

import flatjax
from experiments.lib.data import small
from experiments.lib.nets.flat import FlatNetwork, flat_network
from experiments.lib.training import recipes
from flatjax import loops

if TYPE_CHECKING:
    from experiments.scale_invariance import Config

SCALE = 3.0
"""Weights are multiplied by this where nothing, or a known power of it, must come out."""
SHORT = 50
"""Updates over which laws that hold at every single one are tested: rounding grows on the way."""


def laws(config: Config, seed: int) -> dict[str, float]:
    """How far each law is from holding, or a ratio to what it says; see `_programs`."""
    with jax.enable_x64(True):
        data = small.small_data(
            config.data, seed=seed, train_size=config.train_size, test_size=1,
            flat=False, num_classes=config.phases.classes,
        )  # fmt: skip
        batch = jax.tree.map(_double, recipes.training_batch(config.phases, data))
        net = flat_network(config.phases, data.inputs.shape[1:])
        start = _double(net.init(jax.random.key(seed)))
        size = min(config.batch_size, config.train_size)
        identities, path = _programs(net, size, config.law_rate, config.law_decay)
        key = jax.random.key(seed)
        found = identities(start, batch, key)
        free, _ = path(start, batch, key, SHORT, 1.0, 0.0)
        # The same path on another sphere: lengths by c, learning rate by c^2, decay by 1 / c^2.
        decayed, end = path(start, batch, key, SHORT, 1.0, 1.0)
        _, other = path(SCALE * start, batch, key, SHORT, SCALE**2, SCALE**-2)
        _, wrong = path(SCALE * start, batch, key, SHORT, SCALE**2, 1.0)
        _, settled = path(start, batch, key, config.law_burn_in, 1.0, 1.0)
        late, _ = path(settled, batch, jax.random.fold_in(key, 1), config.law_steps, 1.0, 1.0)
        turns = jnp.sqrt(2 * config.law_rate * config.law_decay)
        found |= {
            "norm_law": free["norm_law"],
            "norm_law_null": decayed["norm_law"],
            "same_path": _turned(end, other),
            "same_path_null": _turned(end, wrong),
            "angle": late["angle"] / turns,
            "angle_null": decayed["angle"] / turns,
        }
        return {name: float(value) for name, value in found.items()}


def _double(a: Any) -> jax.Array:
    a = jnp.asarray(a)
    return a if jnp.issubdtype(a.dtype, jnp.integer) else a.astype(jnp.float64)


def _turned(a: jax.Array, b: jax.Array) -> jax.Array:
    """The angle between two vectors."""
    return flatjax.angular_update(a, b, by="all")["all"]


@functools.cache
def _programs(net: FlatNetwork, batch_size: int, rate: float, decay: float) -> tuple[Any, Any]:
    """The identities at a point, and a path of SGD with what is seen at every update."""

    def mean_loss(w, batch):
        return net.losses_fn(w, batch).mean()

    gradient = jax.grad(mean_loss)

    @jax.jit
    def identities(w, batch, key):
        """Relative errors of L(cw) = L(w), grad L(cw) = grad L(w) / c, H(cw) = H(w) / c^2.

        `orthogonal` is the cosine of weights and gradient; the null scales weights differently.
        """
        v = jax.random.normal(key, w.shape, w.dtype)
        uneven = jnp.linspace(1.0, SCALE, w.size) * w

        def at(w):
            g, hv = jax.jvp(lambda w: gradient(w, batch), (w,), (v,))
            return mean_loss(w, batch), g, hv

        (a, b, c), (a2, b2, c2) = at(w), at(SCALE * w)
        return {
            "value": jnp.abs(a2 / a - 1),
            "gradient": jnp.linalg.norm(SCALE * b2 - b) / jnp.linalg.norm(b),
            "hessian": jnp.linalg.norm(SCALE**2 * c2 - c) / jnp.linalg.norm(c),
            "orthogonal": jnp.abs(b @ w) / (jnp.linalg.norm(b) * jnp.linalg.norm(w)),
            "identities_null": jnp.abs(mean_loss(uneven, batch) / a - 1),
        }

    @jax.jit
    def path(w, batch, key, steps, rates, decays):
        """SGD with rate and weight decay times the factors given; the end, and two statistics.

        `norm_law` is the largest error of |w'|^2 - |w|^2 = eta^2 |g|^2, relative to the right side;
        `angle` the root mean square of the angle per update.
        """
        eta, lam = rate * rates, decay * decays
        count = batch[1].shape[0]

        def step(i, carry):
            w, worst, square = carry
            draw = jax.random.permutation(jax.random.fold_in(key, i), count)[:batch_size]
            g = gradient(w, jax.tree.map(lambda a: a[draw], batch))
            new = w - eta * (g + lam * w)
            push = eta**2 * (g @ g)
            error = jnp.abs(new @ new - w @ w - push) / push
            return new, jnp.maximum(worst, error), square + _turned(w, new) ** 2

        zero = jnp.zeros((), w.dtype)
        end, worst, square = loops.fori(steps, step, (w, zero, zero))
        return {"norm_law": worst, "angle": jnp.sqrt(square / steps)}, end

    return identities, path
