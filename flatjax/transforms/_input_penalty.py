"""A penalty on the gradient with respect to the inputs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax.transforms import _base as base
from flatjax.transforms import _means as means
from flatjax.transforms._hessian_product import HessianProduct, Mode
from flatjax.transforms._model_penalty import OutputLoss, model_penalty


def input_gradient_penalty(
    model_fn: Callable[..., Any],
    loss: OutputLoss,
    *,
    coef: base.Scalar,
    every: base.Number = 1,
    sub_batch: int | None = None,
    mode: Mode = "linearize",
    seed: Any = 0,
    step: base.Number = 1e-2,
    axis_name: collectives.AxisName = None,
    diagnostics: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Input-gradient penalty (GP_x): $L + \frac\lambda n \sum_i \lVert \nabla_x \ell_i \rVert^2$.

    Double backpropagation. The mean is over examples, each with the gradient of its own loss, so
    that $\lambda$ does not depend on the batch size. With $v_i = \nabla_x \ell_i$ the added
    gradient is $2 \lambda$ times the derivative of $\nabla_w L$ along $v$ in the inputs. Where a
    model mixes the examples (batch normalisation) the penalty is $\lambda n \lVert \nabla_x L
    \rVert^2$ of the mean loss.

    Cost: an input gradient and a mixed derivative, 3 gradients in all with training's
    (``"linearize"``); an input gradient and 2 (``"forward"``), or 3 (``"central"``).

    Args:
      model_fn: ``model_fn(params, inputs, *args)``: the outputs, leading axis n.
      loss: an output loss.
      coef: $\lambda$, the coefficient of the mean squared norm; a number or a schedule.
      every: steps between evaluations; between, the last gradient is added again.
      sub_batch: examples of the *global* batch; ``None`` takes all.
      mode: ``"linearize"``, ``"forward"`` or ``"central"``.
      seed: of the sub-batch's offset.
      step: the length of a finite-difference step, in input space for the whole (sub-)batch.
      axis_name: inside ``shard_map`` or ``pmap``, the axes of the batch.
      diagnostics: keep the last mean squared norm in the state.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`PenaltyState`][]; ``update`` takes
      ``batch=(inputs, targets)`` and ``args``.

    Raises:
      TypeError: for inputs that are not floating, which have no gradient.
      ValueError: for a ``coef`` that is not finite, an unknown ``mode``, ``every`` < 1; in
        ``update`` without ``batch``, or with one smaller than ``sub_batch``.

    Example:
      >>> import flatjax, jax.numpy as jnp
      >>> from flatjax.losses import squared_error
      >>> tx = flatjax.input_gradient_penalty(lambda w, x: x @ w, squared_error, coef=0.5)
      >>> w, batch = jnp.array([[2.0]]), (jnp.ones((1, 1)), jnp.zeros((1, 1)))
      >>> tx.update(jnp.zeros((1, 1)), tx.init(w), w, batch=batch)[0].tolist()
      [[16.0]]

    References:
      Drucker and LeCun, "Improving generalization performance using double backpropagation", 1992;
      Jastrzebski et al., "Catastrophic Fisher Explosion: Early Phase Fisher Matrix Impacts
      Generalization", ICML 2021 (GP_x).
    """
    product = HessianProduct(mode, step)

    def term(params, outputs, loss, inputs, targets, key):
        del key
        for leaf in jax.tree.leaves(inputs):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise TypeError(
                    f"input_gradient_penalty needs floating inputs, got dtype {leaf.dtype}."
                )
        here, inputs = collectives.varying((params, inputs), axis_name)

        def mean(w, x):
            return means.of_outputs(loss, outputs(w, x), targets, axis_name)

        # Every example's gradient of its own loss, of which the mean has a share.
        gradient, shares = jax.grad(mean, argnums=1, has_aux=True)(here, inputs)
        factors = jnp.where(shares > 0, 1 / jnp.where(shares > 0, shares, 1), 0)
        v = jax.tree.map(lambda g: g * trees.per_row(factors, g), gradient)
        squared = collectives.total(trees.vdot(v, gradient), axis_name)
        along = product.derivative(lambda x: jax.grad(mean, has_aux=True)(here, x)[0], inputs, v)
        return collectives.total(along, axis_name), squared

    return model_penalty(
        "input_gradient_penalty", term, model_fn, loss, coef=coef, every=every,
        sub_batch=sub_batch, seed=seed, axis_name=axis_name, diagnostics=diagnostics,
    )  # fmt: skip
