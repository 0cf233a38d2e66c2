"""Penalties on the gradient at labels the model did not choose to fit: sampled, or random."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flatjax import _collectives as collectives
from flatjax import losses
from flatjax._trees import Tree
from flatjax.losses._own import FunctionLoss, as_loss
from flatjax.transforms import _base as base
from flatjax.transforms import _callables as callables
from flatjax.transforms import _penalties as penalties
from flatjax.transforms._ascent import Mask
from flatjax.transforms._penalty import Mode, check_mode, hessian_product

OutputLoss = losses.OutputLoss | Callable[[Any, Any], jax.Array]


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
    $\mathrm{tr}(F) / B'$ with $F$ the Fisher information (Jastrzebski et al. 2021, "Catastrophic
    Fisher Explosion: Early Phase Fisher Matrix Impacts Generalization"). No true label is looked
    at.

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
    """
    output_loss = as_loss(loss)
    given = loss if isinstance(output_loss, FunctionLoss) else output_loss
    if getattr(type(given), "sample", losses.OutputLoss.sample) is losses.OutputLoss.sample:
        raise TypeError(
            "fisher_penalty draws labels from the model, but this loss cannot sample: use one of "
            "flatjax's losses, or an object with `sample(key, outputs)` beside `__call__`."
        )
    return _label_penalty(
        "fisher_penalty", model_fn, loss, _sampled_labels, coef, every, sub_batch, mode, seed,
        step, mask, axis_name, diagnostics,
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

    [`fisher_penalty`][] with labels drawn uniformly over the classes instead of from the model
    (Jastrzebski et al. 2021, "Catastrophic Fisher Explosion", where it is GP_r): a control that
    separates the Fisher information from the smoothness it is a proxy of. Classification only.

    Args:
      model_fn: ``model_fn(params, inputs, *args)``: logits, the classes on the last axis.
      loss: an output loss that takes integer class ids.
      coef: the coefficient of the squared norm; see [`fisher_penalty`][] for the rest.
      every: steps between evaluations.
      sub_batch: examples of the global batch.
      mode: ``"linearize"``, ``"forward"`` or ``"central"``.
      seed: of the labels.
      step: the length of a finite-difference step.
      mask: the leaves that count in the norm.
      axis_name: inside ``shard_map`` or ``pmap``, the axes of the batch.
      diagnostics: keep the last squared norm in the state.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`PenaltyState`][].

    Raises:
      ValueError: as in [`fisher_penalty`][].

    Example:
      >>> import flatjax, jax.numpy as jnp
      >>> from flatjax.losses import softmax_cross_entropy as xent
      >>> tx = flatjax.random_label_gradient_penalty(lambda w, x: x @ w, xent, coef=0.1)
      >>> w, batch = jnp.ones((3, 2)), (jnp.eye(3), jnp.array([0, 1, 1]))
      >>> tx.update(jnp.zeros((3, 2)), tx.init(w), w, batch=batch)[0].shape
      (3, 2)
    """
    return _label_penalty(
        "random_label_gradient_penalty", model_fn, loss, _uniform_labels, coef, every, sub_batch,
        mode, seed, step, mask, axis_name, diagnostics,
    )  # fmt: skip


def _sampled_labels(loss, keys, outputs, targets):
    """One draw an example, by a key an example: the same on every number of devices."""
    return jax.vmap(lambda k, z, t: loss.resample(k, z[None], t[None])[0])(keys, outputs, targets)


def _uniform_labels(loss, keys, outputs, targets):
    classes = outputs.shape[-1]
    drawn = jax.vmap(lambda k, z: jax.random.randint(k, z.shape[:-1], 0, classes))(keys, outputs)
    return jnp.where(loss.mask(outputs, targets) == 0, -1, drawn)


def _label_penalty(
    name, model_fn, loss, draw, coef, every, sub_batch, mode, seed, step, mask, axis_name,
    diagnostics,
):  # fmt: skip
    check_mode(mode, step)
    output_loss = as_loss(loss)
    model_fn = callables.model_function(name, model_fn, output_loss)
    size = None if sub_batch is None else base.static_int("sub_batch", sub_batch, 1)

    def evaluate(params, updates, incoming, key, count, extra):
        del updates, incoming, count
        batch, args = extra.get("batch"), extra.get("args", ())
        base.require_pair(name, batch)
        offset_key, label_key = jax.random.split(key)
        inputs, targets = sub_sample(batch, size, offset_key, axis_name)
        n = jax.tree.leaves(inputs)[0].shape[0]
        index = collectives.example_index(n, axis_name)
        keys = jax.vmap(lambda i: jax.random.fold_in(label_key, i))(index)
        here = collectives.varying(params, axis_name)
        labels = draw(output_loss, keys, model_fn(here, inputs, *args), targets)
        labels = jax.lax.stop_gradient(labels)

        def mean(w):
            return output_loss(model_fn(w, inputs, *args), labels).mean()

        gradient = base.averaged(jax.grad(mean), axis_name)
        found = hessian_product(
            lambda w: (gradient(w), None), params, mode=mode, step=step, mask=mask
        )
        return found.product, found.value

    return penalties.penalty_transform(
        name, evaluate, coef=coef, every=every, seed=seed, axis_name=axis_name,
        diagnostics=diagnostics,
    )  # fmt: skip


def sub_sample(
    batch: Tree, size: int | None, key: jax.Array, axis_name: collectives.AxisName
) -> Tree:
    """``size`` evenly spaced examples of the global batch, from a random offset.

    Evenly spaced, so that a batch sharded over devices stays so; the offset varies, so that a fixed
    batch (full-batch training) is seen in all its parts.

    Args:
      batch: this device's examples, a pytree with a shared leading axis.
      size: how many of the global batch, or ``None`` for all.
      key: of the offset.
      axis_name: the axes of the batch.

    Returns:
      The sub-batch.

    Raises:
      ValueError: if the batch is smaller than ``size``, or the devices do not divide it.
    """
    if size is None:
        return batch
    n = jax.tree.leaves(batch)[0].shape[0]
    devices = collectives.axis_size(axis_name)
    if n * devices < size:
        raise ValueError(
            f"the batch of {n * devices} examples is smaller than sub_batch={size}: pass a larger "
            "batch, or sub_batch=None for all of it."
        )
    if size % devices:
        raise ValueError(f"sub_batch={size} is not divisible by the {devices} devices.")
    local = size // devices
    stride = n // local
    offset = jax.random.randint(key, (), 0, stride)

    def leaf(a):
        rows = a[: local * stride].reshape(local, stride, *a.shape[1:])
        return jax.lax.dynamic_index_in_dim(rows, offset, axis=1, keepdims=False)

    return jax.tree.map(leaf, batch)
