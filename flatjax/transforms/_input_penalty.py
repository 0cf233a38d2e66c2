"""A penalty on the gradient with respect to the inputs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flatjax import _balls as balls
from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax.losses._own import as_loss
from flatjax.transforms import _base as base
from flatjax.transforms import _callables as callables
from flatjax.transforms import _penalties as penalties
from flatjax.transforms._label_penalties import OutputLoss, sub_sample
from flatjax.transforms._penalty import Mode, check_mode


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

    Double backpropagation (Drucker & LeCun 1992; GP_x in Jastrzebski et al. 2021). The mean is over
    examples, each with the gradient of its own loss, so that $\lambda$ does not depend on the batch
    size. With $v_i = \nabla_x \ell_i$ the added gradient is $2 \lambda$ times the derivative of
    $\nabla_w L$ along $v$ in the inputs. Where a model mixes the examples (batch normalisation) the
    penalty is $\lambda n \lVert \nabla_x L \rVert^2$ of the mean loss.

    Cost: an input gradient and a mixed derivative, 3 gradients in all with training's
    (``"linearize"``); an input gradient and 2 (``"forward"``), or 3 (``"central"``).

    Args:
      model_fn: ``model_fn(params, inputs, *args)``: the outputs, leading axis n.
      loss: an output loss.
      coef: $\lambda$, the coefficient of the mean squared norm; a number or a schedule.
      every: evaluate every so many steps, as of [`fisher_penalty`][].
      sub_batch: examples of the global batch.
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
      ValueError: as in [`fisher_penalty`][].

    Example:
      >>> import flatjax, jax.numpy as jnp
      >>> from flatjax.losses import squared_error
      >>> tx = flatjax.input_gradient_penalty(lambda w, x: x @ w, squared_error, coef=0.5)
      >>> w, batch = jnp.array([[2.0]]), (jnp.ones((1, 1)), jnp.zeros((1, 1)))
      >>> tx.update(jnp.zeros((1, 1)), tx.init(w), w, batch=batch)[0].tolist()
      [[16.0]]
    """
    name = "input_gradient_penalty"
    check_mode(mode, step)
    output_loss = as_loss(loss)
    model_fn = callables.model_function(name, model_fn, output_loss)
    size = None if sub_batch is None else base.static_int("sub_batch", sub_batch, 1)

    def evaluate(params, updates, incoming, key, count, extra):
        del updates, incoming, count
        batch, args = extra.get("batch"), extra.get("args", ())
        base.require_pair(name, batch)
        inputs, targets = sub_sample(batch, size, key, axis_name)
        for leaf in jax.tree.leaves(inputs):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise TypeError(f"{name} needs floating inputs, got dtype {leaf.dtype}.")
        n = jax.tree.leaves(inputs)[0].shape[0]
        here = collectives.varying(params, axis_name)
        inputs = collectives.varying(inputs, axis_name)

        def mean(w, x):
            return output_loss(model_fn(w, x, *args), targets).mean()

        input_gradient = base.scaled(float(n), jax.grad(mean, argnums=1)(here, inputs))
        squared = base.average(trees.vdot(input_gradient, input_gradient), axis_name) / n

        def params_gradient(x):
            return jax.grad(mean)(here, x)

        if mode == "linearize":
            _, linear = jax.linearize(params_gradient, inputs)
            product = linear(input_gradient)
        else:
            norm = trees.norm(input_gradient)
            direction = balls.dual_direction(trees.cast(input_gradient, trees.structure_of(inputs)))
            length = jnp.asarray(step).astype(norm.dtype)

            def shifted(by):
                return params_gradient(balls.moved(inputs, base.scaled(by, direction)))

            other = params_gradient(inputs) if mode == "forward" else shifted(-length)
            width = length if mode == "forward" else 2 * length
            difference = base.combine(1.0, shifted(length), -1.0, other)
            product = base.scaled(norm / width, difference)
        return base.average(product, axis_name), squared

    return penalties.penalty_transform(
        name, evaluate, coef=coef, every=every, seed=seed, axis_name=axis_name,
        diagnostics=diagnostics,
    )  # fmt: skip
