"""Single steps, in double precision: the mean change of the loss, and the walls of a valley."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import flatjax
from experiments.lib.data import small
from experiments.lib.nets.architecture import Architecture
from experiments.lib.nets.flat import FlatNetwork, flat_network
from experiments.lib.training import recipes
from experiments.noise_shape.noise import CLASSES, covariance, draw
from flatjax import loops

if TYPE_CHECKING:
    from experiments.noise_shape import Config


def single_steps(config: Config, seed: int) -> dict[str, Any]:
    """What single steps do, of one seed; see `one_step` and `_curves`."""
    with jax.enable_x64(True):
        found: dict[str, Any] = {}
        for name, hidden, size in (
            ("one", config.step_hidden, config.step_size),
            ("walk", config.recipe.hidden, config.train_size),
        ):
            architecture = Architecture(hidden=hidden, loss="squared_error")
            data = small.small_data("digits", seed=seed, train_size=size, test_size=1)
            batch = jax.tree.map(jnp.asarray, recipes.training_batch(config.recipe, data))
            batch = jax.tree.map(lambda a: a.astype(jnp.float64), batch)
            net = flat_network(architecture, data.inputs.shape[1:])
            start = net.init(jax.random.key(seed)).astype(jnp.float64)
            if name == "one":
                point, _ = _walk(net, start, batch, config.step_warm_up, config.small_rate)
                found |= one_step(config, net, point, batch, seed)
            else:
                for arm in ("small", "large"):
                    rate = getattr(config, f"{arm}_rate")
                    end, seen = _walk(net, start, batch, config.walk_steps, rate)
                    found |= {f"{arm} {k}": np.asarray(v) for k, v in seen.items()}
                found |= _probed(net, end, batch, config.probed, rate)
        return {name: np.asarray(values).tolist() for name, values in found.items()}


def one_step(
    config: Config, net: FlatNetwork, point: jax.Array, batch: Any, seed: int
) -> dict[str, Any]:
    """The mean change of the loss in a step, over theory, for every class of noise.

    To second order E dL = -eta |g|^2 + eta^2 (g' H g + tr(H Sigma)) / 2. `descent` is the change
    without noise over its two terms; a class of noise what it adds to that over eta^2 tr(H Sigma)
    / 2. `A as B` takes the measured change of A, and the covariance of B.
    """
    eta, size = config.step_rate, config.step_batch
    gradients = np.asarray(flatjax.per_example_gradients(net.losses_fn, point, batch))
    hessian = np.asarray(flatjax.hessian(net.losses_fn, point, batch).to_dense())
    g = gradients.mean(0)
    plain = float(_changes(net, "descent", point, batch, jax.random.key(0)[None], eta, size)[0])
    first, second = -eta * g @ g, eta**2 * g @ hessian @ g / 2
    found = {"descent": plain / (first + second), "descent first order": plain / first}
    terms = {
        kind: eta**2 / 2 * float(np.sum(hessian * covariance(kind, gradients, size)))
        for kind in CLASSES[1:]
    }
    terms["with replacement"] = terms["gaussian"]
    for i, kind in enumerate(CLASSES[1:]):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), i), config.draws)
        added = float(_changes(net, kind, point, batch, keys, eta, size).mean()) - plain
        found[f"{kind} added"] = added
        found |= {f"{kind} as {other}": added / term for other, term in terms.items()}
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _changes(net, kind, point, batch, keys, eta, size):
    """The change of the loss in a step of every key, less its part linear in the noise.

    That part has mean zero and is by far the most of what fluctuates.
    """

    def mean_loss(p):
        return net.losses_fn(p, batch).mean()

    before, g = jax.value_and_grad(mean_loss)(point)

    def change(_, key):
        noisy = draw(kind, key, net.losses_fn, point, batch, size)
        return None, mean_loss(point - eta * noisy) - before + eta * g @ (noisy - g)

    return loops.scan(change, None, keys)[1]


@functools.partial(jax.jit, static_argnums=0)
def _curves(net, params, batch, rate):
    """A step of gradient descent: where it leads, and what the loss is like along it.

    `curvature` is eta g' H g / g' g; `midpoint` whether the middle is below both ends.
    """

    def mean_loss(p):
        return net.losses_fn(p, batch).mean()

    before, g = jax.value_and_grad(mean_loss)(params)
    bent = jax.jvp(jax.grad(mean_loss), (params,), (g,))[1]
    new = params - rate * g
    ends = jnp.minimum(before, mean_loss(new))
    return new, {
        "curvature": rate * (g @ bent) / (g @ g),
        "midpoint": mean_loss(params - rate * g / 2) < ends,
        "gradient": g,
    }


@functools.partial(jax.jit, static_argnums=(0, 3))
def _walk(net, start, batch, count, rate):
    """Gradient descent; of every step what `_curves` says, and the cosine with the next step."""
    return loops.scan(lambda p, _: _turned(net, p, batch, rate), start, length=count)


def _turned(net, params, batch, rate):
    """`_curves` with the cosine of the next step instead of the gradient."""
    new, seen = _curves(net, params, batch, rate)
    _, then = _curves(net, new, batch, rate)
    g, after = seen.pop("gradient"), then["gradient"]
    seen["cosine"] = g @ after / (jnp.linalg.norm(g) * jnp.linalg.norm(after))
    return new, seen


PROBES = (0.9, 1.1, 1.2, 1.45)
"""Values of eta g' H g / g' g, on both sides of 1 and 4/3."""


@functools.partial(jax.jit, static_argnums=(0, 3))
def _probed(net, start, batch, count, rate):
    """Steps of the rates that make eta g' H g / g' g each of `PROBES`, from points of a walk.

    `probed cosine` and `probed midpoint`, (count, probes).
    """

    def point(params, _):
        new, seen = _curves(net, params, batch, rate)

        def probe(_, a):
            return None, _turned(net, params, batch, a * rate / seen["curvature"])[1]

        _, found = loops.scan(probe, None, jnp.array(PROBES))
        return new, {f"probed {name}": found[name] for name in ("cosine", "midpoint")}

    return loops.scan(point, start, length=count)[1]
