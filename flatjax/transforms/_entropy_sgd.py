"""Entropy-SGD: descend the local entropy, estimated by Langevin dynamics in an inner loop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.transforms import _base as base
from flatjax.transforms import _means as means
from flatjax.transforms import _prng as prng


@reading.readable
class EntropySGDState(NamedTuple):
    """State of [`entropy_sgd`][].

    Attributes:
      count: the number of updates (inner steps).
      key: the key, folded with ``count`` for each draw, as integers (``jax.random.key_data``).
      anchor: the outer params $w$, in at least float32.
      mean: the running average of the inner params.
    """

    count: jax.Array
    key: Any
    anchor: Tree
    mean: Tree


def entropy_sgd(
    learning_rate: base.Scalar = 1.0,
    *,
    inner_steps: base.Number = 20,
    inner_learning_rate: base.Scalar = 0.1,
    gamma: base.Number = 1e-4,
    scoping: base.Number = 1e-3,
    averaging: base.Number = 0.75,
    noise: base.Scalar = 1e-4,
    seed: Any = 0,
    axis_name: collectives.AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Entropy-SGD: a whole optimiser with an inner loop across updates.

    Descends $-\log \int \exp(-L(w') - \frac\gamma2 \lVert w - w' \rVert^2)\,dw'$, whose gradient is
    $\gamma (w - \langle w' \rangle)$ (algorithm 1 of the paper). The params in the caller's hands
    are the inner $w'$, which see one mini-batch an update:

    $$w' \leftarrow w' - \eta' (g(w') - \gamma (w - w')) + \sqrt{\eta'}\,\epsilon\,\xi, \qquad
    \mu \leftarrow \alpha \mu + (1 - \alpha) w'$$

    and after L = ``inner_steps`` of them $w \leftarrow w - \eta (w - \mu)$ and $w', \mu \leftarrow
    w$. Scoping: in outer step t, $\gamma = \gamma_0 (1 + \gamma_1)^t$. The factor $\gamma$ of the
    outer step is in ``learning_rate``, as in the authors' code ($\eta = 1$ moves to the mean).

    Evaluate at [`entropy_sgd_eval_params`][]. Cost: 1 gradient an update, L an outer step; two more
    copies of the params.

    Args:
      learning_rate: $\eta$, a number or a schedule of the *outer* step.
      inner_steps: L; 20 in the authors' code, 5 to 20 in the paper.
      inner_learning_rate: $\eta'$, a number or a schedule of the update.
      gamma: $\gamma_0$; 1e-4 in the authors' code.
      scoping: $\gamma_1$; 1e-3.
      averaging: $\alpha$; 0.75.
      noise: $\epsilon$; 1e-4.
      seed: of the noise; the key lives in the state.
      axis_name: inside ``shard_map`` or ``pmap``, the axes of the batch; the noise is shared.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`EntropySGDState`][].

    Raises:
      ValueError: for negative rates, ``inner_steps`` < 1, ``averaging`` outside [0, 1), or an
        update without params.

    Example:
      >>> import flatjax, jax.numpy as jnp, optax
      >>> tx = flatjax.entropy_sgd(
      ...     inner_steps=1, inner_learning_rate=0.1, averaging=0.0, noise=0.0
      ... )  # plain SGD
      >>> w = jnp.array([1.0])
      >>> updates, state = tx.update(jnp.array([1.0]), tx.init(w), w)
      >>> updates.round(3).tolist()
      [-0.100]

    References:
      Chaudhari et al., "Entropy-SGD: Biasing Gradient Descent Into Wide Valleys", ICLR 2017.
    """
    checks.check_scalar("learning_rate", learning_rate, minimum=0.0, schedule=True)
    checks.check_scalar("inner_learning_rate", inner_learning_rate, minimum=0.0, schedule=True)
    checks.check_scalar("gamma", gamma, minimum=0.0, schedule=True)
    checks.check_scalar("scoping", scoping, minimum=0.0, schedule=True)
    checks.check_scalar("averaging", averaging, minimum=0.0, below=1.0, schedule=True)
    checks.check_scalar("noise", noise, minimum=0.0, schedule=True)
    if not isinstance(inner_steps, jax.core.Tracer):
        base.static_int("inner_steps", inner_steps)

    def init(params):
        def leaf(a, wide):
            if isinstance(a, jax.ShapeDtypeStruct):
                return trees.zeros(wide)
            # A buffer of its own: shared with the params it could not be donated beside them.
            return jnp.array(a, dtype=wide.dtype, copy=True)

        copies = (jax.tree.map(leaf, params, trees.structure_of(params)) for _ in range(2))
        return EntropySGDState(base.start(), prng.initial(seed), *copies)

    def update(updates, state, params=None, **extra):
        del extra
        base.require_params("entropy_sgd", params)
        scalar, wide = trees.dtype(params), trees.structure_of(params)
        point = trees.cast(params, wide)
        # An abstract init has no values; the first params are here in any case.
        old = (state.anchor, state.mean)
        anchor, mean = base.where(state.count == 0, (point, point), old)
        length = jnp.asarray(inner_steps, state.count.dtype)
        outer = state.count // length
        rate = base.at(inner_learning_rate, state.count, scalar)
        scope = base.at(gamma, outer, scalar) * (
            1 + base.at(scoping, outer, scalar)
        ) ** outer.astype(scalar)
        alpha = base.at(averaging, outer, scalar)

        g = trees.cast(means.average(updates, axis_name), wide)
        xi = prng.normal_like(prng.of_step(state.key, state.count), params)
        pull = base.combine(1.0, anchor, -1.0, point)
        inner = base.combine(1.0, point, -rate, base.combine(1.0, g, -scope, pull))
        size = jnp.sqrt(rate) * base.at(noise, state.count, scalar)
        inner = base.combine(1.0, inner, size, xi)
        new_mean = base.combine(alpha, mean, 1 - alpha, inner)

        eta = base.at(learning_rate, outer, scalar)
        moved = base.combine(1 - eta, anchor, eta, new_mean)
        count = base.advance(state.count)
        last = count % length == 0

        step = base.combine(1.0, base.where(last, moved, inner), -1.0, point)
        new = base.where(last, (moved, moved), (anchor, new_mean))
        new = base.if_finite(inner, new, (anchor, mean))
        return trees.cast(step, params), EntropySGDState(count, state.key, *new)

    return optax.GradientTransformationExtraArgs(init, update)


def entropy_sgd_eval_params(state: Any, params: Tree) -> Tree:
    """The outer params at which to evaluate a model trained with [`entropy_sgd`][].

    Args:
      state: the state of [`entropy_sgd`][], or of a chain that holds it.
      params: the inner params, for their dtypes.

    Returns:
      The outer params.

    Raises:
      ValueError: if the state does not hold exactly one [`EntropySGDState`][].

    Example:
      >>> import flatjax, jax.numpy as jnp
      >>> w, tx = jnp.ones(2), flatjax.entropy_sgd(inner_steps=5)
      >>> _, state = tx.update(jnp.ones(2), tx.init(w), w)
      >>> flatjax.entropy_sgd_eval_params(state, w).tolist()  # no outer step yet
      [1.0, 1.0]
    """
    return trees.cast(base.find_state(state, EntropySGDState).anchor, params)
