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

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.transforms import _base as base
from flatjax.transforms import _prng as prng
from flatjax.transforms._ascent import Mask
from flatjax.transforms._incoming import check_is_gradient, check_points_uphill
from flatjax.transforms._penalty import Mode, check_mode, hessian_product
from flatjax.transforms._perturbed import check_trees, head

# (half the gradient of the penalty, the penalty before the coefficient)
Evaluate = Callable[..., tuple[Tree, jax.Array]]


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


def penalty_transform(
    name: str,
    evaluate: Evaluate,
    *,
    coef: base.Scalar,
    every: base.Number,
    seed: Any,
    axis_name: collectives.AxisName,
    diagnostics: bool,
) -> optax.GradientTransformationExtraArgs:
    """A transform that adds ``2 coef product``.

    Args:
      name: for messages.
      evaluate: ``(params, incoming, key, **extra) -> (product, squared norm)``, global.
      coef: the coefficient of the squared norm.
      every: steps between evaluations; the product is kept between.
      seed: ``None`` where nothing is drawn.
      axis_name: the axes of the batch.
      diagnostics: keep the squared norm in the state.

    Returns:
      The transform.
    """
    checks.check_scalar("coef", coef, schedule=True)
    base.check_every(every)

    def init(params):
        key = () if seed is None else prng.initial(seed)
        product = () if base.always(every) else base.zeros_like(params)
        penalty = jnp.zeros((), trees.dtype(params)) if diagnostics else ()
        return PenaltyState(base.start(), key, product, penalty)

    def update(updates, state, params=None, **extra):
        check_trees(name, updates, params)
        incoming = base.average(updates, axis_name)

        def refresh():
            key = () if seed is None else prng.of_step(state.key, state.count)
            product, squared = evaluate(params, updates, incoming, key, state.count, extra)
            squared = squared.astype(state.penalty.dtype) if diagnostics else ()
            return trees.cast(product, params), squared

        if base.always(every):
            product, squared = refresh()
            kept = ()
        else:
            due = state.count % jnp.asarray(every, state.count.dtype) == 0
            product, squared = loops.cond(due, refresh, lambda: (state.product, state.penalty))
            kept = base.where(base.all_finite(product), product, state.product)
        factor = 2 * base.at(coef, state.count, trees.dtype(params))
        out = base.combine(1.0, incoming, factor, trees.cast(product, incoming))
        return out, PenaltyState(base.advance(state.count), state.key, kept, squared)

    return base.head_of_chain(init, update)


def gradient_penalty(
    coef: base.Scalar,
    *,
    every: base.Number = 1,
    mode: Mode = "linearize",
    step: base.Number = 1e-2,
    mask: Mask | None = None,
    axis_name: collectives.AxisName = None,
    diagnostics: bool = False,
    check: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient penalty (GP): minimise $L + \lambda \lVert \nabla L \rVert^2$.

    The update is $g + 2 \lambda H g$ with $g$ the gradient of the batch's mean loss on its true
    labels (Jastrzebski et al. 2021, "Catastrophic Fisher Explosion", where it is GP).

    Cost: 3 gradients and the memory of the residuals (``"linearize"``, exact), 2 (``"forward"``), 3
    (``"central"``); with ``every=k`` only on each k-th step, and one more copy of the params.

    Args:
      coef: $\lambda$, the coefficient of the *squared* norm; a number or a schedule.
      every: steps between evaluations of the penalty's gradient, which is added on every step.
      mode: ``"linearize"``, ``"forward"`` or ``"central"``.
      step: the Euclidean length of a finite-difference step in parameter space.
      mask: the leaves that count in the norm: a prefix of booleans, or a function of the params.
      axis_name: inside ``shard_map`` or ``pmap``, the axes of the batch: the incoming gradient and
        ``grad_fn`` are local, the norm is that of the global gradient.
      diagnostics: keep $\lVert g \rVert^2$ in the state.
      check: look at the incoming updates at the first eager call. What stands before is in effect
        with ``"linearize"``, so only a descent step is an error; the finite differences are taken
        from the incoming gradient, which must then be ``grad_fn(params)``, see [`sam`][].

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`PenaltyState`][]; ``update`` takes
      ``grad_fn(params)`` or ``value_fn(params)``.

    Raises:
      ValueError: for a ``coef`` that is not finite, an unknown ``mode``, ``every`` < 1; in
        ``update`` without params, ``grad_fn`` and ``value_fn``.

    Example:
      >>> import flatjax, jax, jax.numpy as jnp
      >>> loss = lambda w: jnp.sum(jnp.array([1.0, 2.0]) * w**2) / 2
      >>> w = jnp.array([1.0, 1.0])
      >>> tx = flatjax.gradient_penalty(0.5)
      >>> out, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, grad_fn=jax.grad(loss))
      >>> out.tolist()
      [2.0, 6.0]
    """
    return training_penalty(
        "gradient_penalty", coef, every, mode, step, mask, axis_name, diagnostics, check
    )


def training_penalty(
    name: str,
    coef: base.Scalar,
    every: Any,
    mode: Mode,
    step: Any,
    mask: Mask | None,
    axis_name: collectives.AxisName,
    diagnostics: bool,
    check: bool,
) -> optax.GradientTransformationExtraArgs:
    """The penalty on the gradient of the training loss, for GP and IGR."""
    check_mode(mode, step)

    def evaluate(params, updates, incoming, key, count, extra):
        del key
        gradient, _ = head(
            name, updates, params, extra.get("grad_fn"), extra.get("value_fn"), axis_name
        )
        found = hessian_product(
            lambda w: (gradient(w), None), params, mode=mode, step=step, mask=mask,
            gradient=incoming,
        )  # fmt: skip
        if check:
            # The linearised product is that of a gradient of its own; a difference is not.
            look = check_points_uphill if mode == "linearize" else check_is_gradient
            other = found.gradient if mode == "linearize" else found.product
            look(name, incoming, other, gradient, params, count)
        return found.product, found.value

    return penalty_transform(
        name, evaluate, coef=coef, every=every, seed=None, axis_name=axis_name,
        diagnostics=diagnostics,
    )  # fmt: skip
