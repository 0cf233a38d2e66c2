r"""Langevin chains about a point, side by side, for means over the tempered posterior near it.

With the displacement $\delta$ from the point, the potential $U = n \beta L(w + \delta) + \gamma
\lVert \delta \rVert^2 / 2$ and a positive diagonal G,

$$\delta_{t+1} = \delta_t - \eta\, G\, \nabla U(\delta_t) + \sqrt{2 \eta\, G}\; \frac{\xi_t +
\xi_{t+1}}{2}, \qquad \xi_t \sim \mathcal N(0, I).$$

The noise of two neighbouring steps is shared (Leimkuhler and Matthews 2013): means over $e^{-U}$
are then right to second order in $\eta$ where fresh noise is right to first, and on a quadratic
exactly, at the same cost. G is found during burn-in and constant from then on: a chain whose
preconditioner goes on adapting samples from another distribution.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatjax import _convolutions as convolutions
from flatjax import _trees as trees
from flatjax._balls import moved
from flatjax._trees import Tree
from flatjax.linalg.vectors import _probes as probes
from flatjax.measures import _objective as objective

_DECAY = 0.99  # of the moving average of squared gradients
_FLOOR = 0.1  # beside the typical root mean square, so that no gain exceeds (1 + 0.1) / 0.1 = 11


class Setting(NamedTuple):
    r"""What the chains do, in scalars; new values compile nothing.

    Attributes:
      data_weight: $n \beta$.
      mean_weight: the mean weight of a batch.
      localization: $\gamma$.
      step_size: $\eta$.
      num_burnin: the steps in which the preconditioner is found.
    """

    data_weight: jax.Array
    mean_weight: jax.Array
    localization: jax.Array
    step_size: jax.Array
    num_burnin: jax.Array


class Chains(NamedTuple):
    """Where the chains stand.

    Attributes:
      displacement: from the point, a tree with a leading axis of chains.
      noise: the normal draw that the next step shares with the last, likewise.
      second_moment: the moving average over steps and chains of squared gradients, a tree like the
        params; ``None`` without a preconditioner.
      count: the steps taken.
    """

    displacement: Tree
    noise: Tree
    second_moment: Tree
    count: jax.Array


def started(keys: jax.Array, structure: Tree, *, adapt: bool) -> Chains:
    """Chains that start at the point, one for each key."""
    count = jnp.zeros((), jnp.int32)
    return Chains(
        trees.zeros(structure, (keys.shape[0],)),
        _normal(keys, count, probes.static(structure)),
        trees.zeros(structure) if adapt else None,
        count,
    )


@partial(convolutions.compiled, donate_argnums=1)
def stepped(op: Any, chains: Chains, keys: jax.Array, setting: Setting) -> tuple[Chains, jax.Array]:
    """One step of all chains on one batch, and by how much their losses exceeded the point's.

    The point's loss is that of the same batch, so that what a batch adds to both is gone. Batches
    count by their weights.
    """

    def loss_and_gradient(displacement):
        return objective.value_and_gradient(op, moved(op.params, displacement))

    losses, gradients = jax.vmap(loss_and_gradient)(chains.displacement)
    share = (op.example_weights.sum() / setting.mean_weight).astype(losses.dtype)
    data_force = trees.scale(share * setting.data_weight.astype(share.dtype), gradients)
    force = trees.axpy(setting.localization, chains.displacement, data_force)
    moment = _averaged(chains, gradients, setting)
    noise = _normal(keys, chains.count + 1, probes.static(op.structure))
    advance = jax.vmap(_advanced, (0, 0, None, 0, 0, None))
    displacement = advance(
        chains.displacement, force, _gain(moment, op.structure), chains.noise, noise,
        setting.step_size,
    )  # fmt: skip
    excess = share * (losses - objective.value(op, op.params))
    return Chains(displacement, noise, moment, chains.count + 1), excess


@partial(jax.jit, static_argnums=2)
def _normal(keys, number, static):
    structure = jax.tree.unflatten(static[1], static[0])
    return jax.vmap(lambda key: probes.probe(key, structure, "normal", number=number))(keys)


def _advanced(displacement, force, gain, noise, new_noise, step_size):
    def leaf(x, f, g, old, new):
        eta = step_size.astype(x.dtype)
        return x - eta * g * f + jnp.sqrt(2 * eta * g) * (old + new) / 2

    return jax.tree.map(leaf, displacement, force, gain, noise, new_noise)


def _averaged(chains, gradients, setting):
    """The moving average of squared gradients, which stands still after burn-in."""
    if chains.second_moment is None:
        return None
    rate = jnp.where(chains.count < setting.num_burnin, 1 - _DECAY, 0.0)

    def leaf(v, g):
        return v + rate.astype(v.dtype) * (jnp.square(g).mean(axis=0) - v)

    return jax.tree.map(leaf, chains.second_moment, gradients)


def _gain(moment, structure):
    """The diagonal G: inverse to the root mean square gradients, in units of a typical one.

    That is their mean, weighted by themselves. So the scale of the loss is nothing to it, a step
    that plain dynamics bears is borne in the stiffest directions, where the gain is at most one,
    and directions without any gradient have the largest, 11.
    """
    ones = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), structure)
    if moment is None:
        return ones
    roots = jax.tree.map(jnp.sqrt, moment)
    of_roots = trees.vdot(roots, ones)
    typical = trees.vdot(roots, roots) / jnp.where(of_roots > 0, of_roots, 1)

    def leaf(one, root):
        level = typical.astype(root.dtype)
        gain = (1 + _FLOOR) * level / jnp.where(level > 0, root + _FLOOR * level, 1)
        return jnp.where(level > 0, gain, one)  # before the first gradient

    return jax.tree.map(leaf, ones, roots)
