r"""Penalties on squared gradient norms, at the head of a chain.

Each adds $\lambda \cdot 2 H g$ to the incoming gradient, $\lambda$ = ``coef`` multiplying the
*squared* norm of a *mean* gradient, and differs in the loss whose gradient is penalised:

- [`gradient_penalty`][] (GP): the training loss.
- [`fisher_penalty`][] (FP): labels sampled from the model, hence a sub-batch's $\mathrm{tr} F$.
- [`random_label_gradient_penalty`][] (GP_r): labels drawn uniformly.
- [`input_gradient_penalty`][] (GP_x): the gradient with respect to the inputs.
- [`implicit_gradient_regularization`][] (IGR) and its stochastic form (ISGR): GP with the
  coefficients of backward error analysis.
"""

import functools
from collections.abc import Callable
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
from flatjax.transforms._incoming import check_no_descent, check_trees


@reading.readable
class PenaltyState(NamedTuple):
    """State of the penalties.

    Attributes:
      count: the number of updates.
      key: the key, folded with ``count`` for each draw, as integers (``jax.random.key_data``);
        ``()`` for a penalty that draws nothing.
      product: half the gradient of the penalty, as last computed and finite; ``()`` with
        ``every=1``.
      penalty: the last squared norm, before the coefficient; ``()`` without ``diagnostics``.
    """

    count: jax.Array
    key: Any
    product: Any
    penalty: Any


class Point(NamedTuple):
    """What a term is evaluated at: the arguments of ``update`` and what the state says."""

    params: Tree
    incoming: Tree  # the updates, averaged over devices
    key: Any  # of the step; ``()`` for a penalty that draws nothing
    count: jax.Array
    batch: Any = None
    args: tuple = ()
    grad_fn: Any = None
    value_fn: Any = None


def penalty(
    name: str,
    term: Callable[[Point], tuple[Tree, jax.Array]],
    *,
    coef: base.Scalar,
    every: base.Number,
    axis_name: collectives.AxisName,
    diagnostics: bool,
    seed: Any = None,
    gradient: Callable[[Point, Tree], Tree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A transform that adds ``2 coef product`` for a term ``point -> (product, squared norm)``.

    Both are those of the global batch. ``seed`` is ``None`` where nothing is drawn; ``gradient`` is
    that of the loss at a point and params, against which no update may point; the other arguments
    are those of [`gradient_penalty`][].
    """
    checks.check_scalar("coef", coef, schedule=True)
    base.check_every(every)

    def init(params):
        key = () if seed is None else prng.initial(seed)
        product = () if base.always(every) else base.zeros_like(params)
        squared = jnp.zeros((), trees.dtype(params)) if diagnostics else ()
        return PenaltyState(base.start(), key, product, squared)

    def update(updates, state, params=None, **extra):
        known = {k: v for k, v in extra.items() if k in Point._field_defaults}
        check_trees(name, updates, params)
        incoming = means.average(updates, axis_name)
        at = Point(params, incoming, (), state.count, **known)
        if gradient is not None:
            here = functools.partial(gradient, at)
            check_no_descent(name, incoming, here, params, state.count)

        def refresh():
            key = () if seed is None else prng.of_step(state.key, state.count)
            product, squared = term(at._replace(key=key))
            squared = squared.astype(state.penalty.dtype) if diagnostics else ()
            return trees.cast(product, params), squared

        product, squared = base.on_every(
            every, state.count, refresh, lambda: (state.product, state.penalty)
        )
        new = state.product
        if not base.always(every):
            new = base.if_finite(product, product, new)
        factor = 2 * base.at(coef, state.count, trees.dtype(params))
        out = base.combine(1.0, incoming, factor, trees.cast(product, incoming))
        return out, PenaltyState(base.advance(state.count), state.key, new, squared)

    return base.head_of_chain(init, update)
