"""The penalty on the squared norm of the training gradient."""

import optax

from flatjax import _collectives as collectives
from flatjax.transforms import _base as base
from flatjax.transforms._ascent import Mask
from flatjax.transforms._hessian_product import HessianProduct, Mode
from flatjax.transforms._incoming import check_incoming, global_gradient
from flatjax.transforms._penalty_transform import penalty


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
    labels.

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
      diagnostics: keep the last squared norm in the state.
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

    References:
      Jastrzebski et al., "Catastrophic Fisher Explosion: Early Phase Fisher Matrix Impacts
      Generalization", ICML 2021.
    """
    return training_penalty(
        "gradient_penalty", HessianProduct(mode, step, mask), axis_name, check,
        coef=coef, every=every, diagnostics=diagnostics,
    )  # fmt: skip


def training_penalty(
    name: str, product: HessianProduct, axis_name: collectives.AxisName, check: bool, **options
) -> optax.GradientTransformationExtraArgs:
    """The penalty on the gradient of the training loss, for GP and IGR."""

    def term(at):
        gradient = global_gradient(name, at.grad_fn, at.value_fn, axis_name)
        found = product.of_squared_norm(lambda w: (gradient(w), None), at.params, at.incoming)
        if check:
            # The linearised product is that of a gradient of its own; a difference is not.
            adds = product.mode == "linearize"
            other = found.gradient if adds else found.product
            check_incoming(name, at.incoming, other, gradient, at.params, at.count, adds)
        return found.product, found.value

    return penalty(name, term, axis_name=axis_name, **options)
