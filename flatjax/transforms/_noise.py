"""What the transforms share that add noise to the gradient, at the head of a chain."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from flatjax import _collectives as collectives
from flatjax._trees import Tree
from flatjax.transforms import _base as base
from flatjax.transforms import _means as means
from flatjax.transforms import _prng as prng


class NoiseState(NamedTuple):
    """State of the transforms that draw noise.

    Attributes:
      count: the number of updates.
      key: the key, folded with ``count`` for each draw, as integers (``jax.random.key_data``).
    """

    count: jax.Array
    key: Any


def noise_transform(
    draw: Callable[..., Tree], seed: Any, axis_name: collectives.AxisName
) -> optax.GradientTransformationExtraArgs:
    """A transform that adds ``draw(key, updates, params, count, batch, args)``, in float32."""

    def init(params):
        del params
        return NoiseState(base.start(), prng.initial(seed))

    def update(updates, state, params=None, *, batch=None, args=(), **extra):
        del extra
        incoming = means.average(updates, axis_name)
        key = prng.of_step(state.key, state.count)
        noise = draw(key, updates, params, state.count, batch, args)
        out = base.combine(1.0, incoming, 1.0, noise)
        return out, NoiseState(base.advance(state.count), state.key)

    return base.head_of_chain(init, update)
