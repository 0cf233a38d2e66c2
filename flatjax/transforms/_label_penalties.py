"""Penalties on the gradient at labels the model did not choose to fit: sampled, or random."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flatjax import _collectives as collectives
from flatjax import losses
from flatjax.losses._own import FunctionLoss, as_loss
from flatjax.transforms import _base as base
from flatjax.transforms import _means as means
from flatjax.transforms._ascent import Mask
from flatjax.transforms._hessian_product import HessianProduct, Mode
from flatjax.transforms._model_penalty import OutputLoss, model_penalty


def fisher_penalty(
    model_fn: Callable[..., Any],
    loss: OutputLoss,
    *,
    coef: base.Scalar,
    every: base.Number = 10,
    sub_batch: int | None = None,
    mode: Mode = "linearize",
    seed: Any = 0,
    step: base.Number = 1e-2,
    mask: Mask | None = None,
    axis_name: collectives.AxisName = None,
    diagnostics: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Fisher penalty (FP): penalise the gradient on labels sampled from the model.

    Adds the gradient of $\lambda \lVert \frac1{B'} \sum_n \nabla \ell(x_n, \hat y_n) \rVert^2$ with
    $\hat y_n \sim p_w(\cdot \mid x_n)$ held fixed, over a sub-batch of $B'$ inputs: $2 \lambda H_F
    g_F$. As $\mathbb E\, \nabla \ell(x, \hat y) = 0$, the expected squared norm is
    $\mathrm{tr}(F) / B'$ with $F$ the Fisher information. No true label is looked at.

    Cost: on each k-th step (``every``) a forward pass and 3 gradients (``"linearize"``) or 2
    (``"forward"``) on the sub-batch; with every=10 on a quarter of the batch 1.08 gradients a step.
    One more copy of the params. The gradient cannot be shared with training: the labels differ.

    Args:
      model_fn: ``model_fn(params, inputs, *args)``: the outputs, leading axis n.
      loss: an output loss with ``sample(key, outputs)``, such as ``flatjax.softmax_cross_entropy``.
      coef: $\lambda$, the coefficient of the *squared* norm; a number or a schedule.
      every: steps between evaluations; between, the last gradient is added again.
      sub_batch: $B'$, examples of the *global* batch (evenly spaced, with a random offset);
        ``None`` takes all.
      mode: ``"linearize"``, ``"forward"`` or ``"central"``.
      seed: of the labels and the offset; the key lives in the state.
      step: the length of a finite-difference step.
      mask: the leaves that count in the norm.
      axis_name: inside ``shard_map`` or ``pmap``, the axes of the batch. Every example's label has
        a key of its own, so that the number of devices does not matter.
      diagnostics: keep the last squared norm in the state.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`PenaltyState`][]; ``update`` takes
      ``batch=(inputs, targets)`` (the targets only lend their padding) and ``args``.

    Raises:
      TypeError: if ``loss`` cannot sample.
      ValueError: for a ``coef`` that is not finite, an unknown ``mode``, ``every`` < 1; in
        ``update`` without ``batch``, or with one smaller than ``sub_batch``.

    Example:
      >>> import flatjax, jax, jax.numpy as jnp, optax
      >>> from flatjax.losses import softmax_cross_entropy as xent
      >>> model = lambda w, x: x @ w
      >>> tx = optax.chain(
      ...     flatjax.fisher_penalty(model, xent, coef=0.1, every=10, sub_batch=2),
      ...     optax.sgd(0.1),
      ... )
      >>> w, batch = jnp.ones((3, 2)), (jnp.eye(3)[:2], jnp.array([0, 1]))
      >>> state = tx.init(w)
      >>> g = jax.grad(lambda w: xent(model(w, batch[0]), batch[1]).mean())(w)
      >>> updates, state = tx.update(g, state, w, batch=batch)
      >>> updates.shape
      (3, 2)

    References:
      Jastrzebski et al., "Catastrophic Fisher Explosion: Early Phase Fisher Matrix Impacts
      Generalization", ICML 2021.
    """
    output_loss = as_loss(loss)
    given = loss if isinstance(output_loss, FunctionLoss) else output_loss
    if getattr(type(given), "sample", losses.OutputLoss.sample) is losses.OutputLoss.sample:
        raise TypeError(
            "fisher_penalty draws labels from the model, but this loss cannot sample: use one of "
            "flatjax's losses, or an object with `sample(key, outputs)` beside `__call__`."
        )

    def draw(loss, keys, outputs, targets):
        # One draw an example, by a key an example: the same on every number of devices.
        one = lambda k, z, t: loss.resample(k, z[None], t[None])[0]  # noqa: E731
        return jax.vmap(one)(keys, outputs, targets)

    return model_penalty(
        "fisher_penalty", _on_labels(draw, HessianProduct(mode, step, mask), axis_name), model_fn,
        loss, coef=coef, every=every, sub_batch=sub_batch, seed=seed, axis_name=axis_name,
        diagnostics=diagnostics,
    )  # fmt: skip


def random_label_gradient_penalty(
    model_fn: Callable[..., Any],
    loss: OutputLoss,
    *,
    coef: base.Scalar,
    every: base.Number = 10,
    sub_batch: int | None = None,
    mode: Mode = "linearize",
    seed: Any = 0,
    step: base.Number = 1e-2,
    mask: Mask | None = None,
    axis_name: collectives.AxisName = None,
    diagnostics: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient penalty on uniformly random labels (GP_r).

    [`fisher_penalty`][] with labels drawn uniformly over the classes instead of from the model: a
    control that separates the Fisher information from the smoothness it is a proxy of.
    Classification only. The cost and the arguments that have one line here are those of
    [`fisher_penalty`][].

    Args:
      model_fn: ``model_fn(params, inputs, *args)``: logits, the classes on the last axis.
      loss: an output loss that takes integer class ids; it need not sample.
      coef: the coefficient of the squared norm.
      every: steps between evaluations.
      sub_batch: examples of the global batch.
      mode: ``"linearize"``, ``"forward"`` or ``"central"``.
      seed: of the labels.
      step: the length of a finite-difference step.
      mask: the leaves that count in the norm.
      axis_name: the axes of the batch.
      diagnostics: keep the last squared norm in the state.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`PenaltyState`][].

    Raises:
      ValueError: wherever [`fisher_penalty`][] raises it.

    Example:
      >>> import flatjax, jax.numpy as jnp
      >>> from flatjax.losses import softmax_cross_entropy as xent
      >>> tx = flatjax.random_label_gradient_penalty(lambda w, x: x @ w, xent, coef=0.1)
      >>> w, batch = jnp.ones((3, 2)), (jnp.eye(3), jnp.array([0, 1, 1]))
      >>> tx.update(jnp.zeros((3, 2)), tx.init(w), w, batch=batch)[0].shape
      (3, 2)

    References:
      Jastrzebski et al., "Catastrophic Fisher Explosion: Early Phase Fisher Matrix Impacts
      Generalization", ICML 2021.
    """

    def draw(loss, keys, outputs, targets):
        one = lambda k, z: jax.random.randint(k, z.shape[:-1], 0, z.shape[-1])  # noqa: E731
        return jnp.where(loss.mask(outputs, targets) == 0, -1, jax.vmap(one)(keys, outputs))

    return model_penalty(
        "random_label_gradient_penalty",
        _on_labels(draw, HessianProduct(mode, step, mask), axis_name), model_fn, loss, coef=coef,
        every=every, sub_batch=sub_batch, seed=seed, axis_name=axis_name, diagnostics=diagnostics,
    )  # fmt: skip


def _on_labels(draw, product, axis_name):
    """The term of a penalty on labels drawn anew, a key an example."""

    def term(params, outputs, loss, inputs, targets, key):
        n = jax.tree.leaves(inputs)[0].shape[0]
        keys = base.keys_of_examples(key, n, axis_name)
        here = collectives.varying(params, axis_name)
        labels = jax.lax.stop_gradient(draw(loss, keys, outputs(here, inputs), targets))

        def gradient(w):
            def mean(w):
                return means.of_outputs(loss, outputs(w, inputs), labels, axis_name)[0]

            return collectives.total(jax.grad(mean)(collectives.varying(w, axis_name)), axis_name)

        found = product.of_squared_norm(lambda w: (gradient(w), None), params)
        return found.product, found.value

    return term
