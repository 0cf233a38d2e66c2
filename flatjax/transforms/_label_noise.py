"""Training on freshly noised labels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax.losses._own import as_loss
from flatjax.transforms import _base as base
from flatjax.transforms import _callables as callables
from flatjax.transforms import _means as means
from flatjax.transforms._gradient_noise import noise_transform
from flatjax.transforms._incoming import check_trees
from flatjax.transforms._model_penalty import OutputLoss


def label_noise(
    model_fn: Callable[..., Any],
    loss: OutputLoss,
    *,
    scale: base.Scalar | None = None,
    flip_probability: base.Scalar | None = None,
    seed: Any = 0,
    axis_name: collectives.AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Train on freshly noised labels, at the head of a chain.

    Adds $\nabla L(w; \tilde y) - \nabla L(w; y)$ to the incoming gradient of the clean labels, with
    labels noised anew on every step:

    - ``scale``: $\tilde y = y + s\,\xi$, for floating targets; for ``squared_error`` the noise on
      the gradient is $-\frac sn J^\top \xi$, with a covariance proportional to the Gauss-Newton
      matrix at a fit.
    - ``flip_probability``: with this probability a class id is drawn again, uniformly.

    Cost: one forward and one backward pass more; both labels share them.

    Args:
      model_fn: ``model_fn(params, inputs, *args)``: the outputs, leading axis n.
      loss: an output loss.
      scale: $s$, a number or a schedule.
      flip_probability: a number in [0, 1] or a schedule.
      seed: of the noise; the key lives in the state.
      axis_name: inside ``shard_map`` or ``pmap``, the axes of the batch. Every example has a key of
        its own, so that the number of devices does not matter.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`NoiseState`][]; ``update`` takes
      ``batch=(inputs, targets)`` and ``args``.

    Raises:
      TypeError: if the targets do not suit the kind of noise.
      ValueError: unless exactly one of ``scale`` and ``flip_probability`` is given, in range.

    Example:
      >>> import flatjax, jax.numpy as jnp
      >>> from flatjax.losses import squared_error
      >>> tx = flatjax.label_noise(lambda w, x: x @ w, squared_error, scale=0.1)
      >>> w, batch = jnp.ones((2, 1)), (jnp.eye(2), jnp.ones((2, 1)))
      >>> tx.update(jnp.zeros((2, 1)), tx.init(w), w, batch=batch)[0].shape
      (2, 1)

    References:
      Blanc et al., "Implicit Regularization for Deep Neural Networks Driven by an
      Ornstein-Uhlenbeck Like Process", COLT 2020; Damian, Ma and Lee, "Label Noise SGD Provably
      Prefers Flat Global Minimizers", NeurIPS 2021.
    """
    if (scale is None) == (flip_probability is None):
        raise ValueError(
            "label_noise needs one of scale= (floating targets) and flip_probability= (class ids)."
        )
    if scale is None:
        amount = 0.0 if flip_probability is None else flip_probability
        checks.check_scalar("flip_probability", amount, minimum=0.0, maximum=1.0, schedule=True)
    else:
        amount = scale
        checks.check_scalar("scale", amount, minimum=0.0, schedule=True)
    output_loss = as_loss(loss)
    model_fn = callables.model_function("label_noise", model_fn, output_loss)

    def noised(keys, outputs, targets, count):
        integer = jnp.issubdtype(targets.dtype, jnp.integer)
        if integer != (scale is None):
            raise TypeError(
                f"targets of dtype {targets.dtype} need "
                f"{'flip_probability' if integer else 'scale'}= in label_noise."
            )
        if scale is not None:
            size = base.at(amount, count, trees.compute_dtype(targets.dtype))
            draw = jax.vmap(lambda k, t: jax.random.normal(k, t.shape, size.dtype))(keys, targets)
            return (targets.astype(size.dtype) + size * draw).astype(targets.dtype)
        chance = base.at(amount, count, jnp.float32)
        classes = outputs.shape[-1]

        def flip(k, t):
            which, what = jax.random.split(k)
            drawn = jax.random.randint(what, t.shape, 0, classes, t.dtype)
            return jnp.where(jax.random.bernoulli(which, chance, t.shape) & (t >= 0), drawn, t)

        return jax.vmap(flip)(keys, targets)

    def draw(key, updates, params, count, batch, args):
        check_trees("label_noise", updates, params)
        n = base.require_pair("label_noise", batch, params, args, axis_name)
        inputs, targets = batch
        keys = base.keys_of_examples(key, n, axis_name)
        here = collectives.varying(params, axis_name)
        outputs, pull = jax.vjp(lambda w: model_fn(w, inputs, *args), here)
        other = jax.lax.stop_gradient(noised(keys, outputs, targets, count))

        def change(z):
            noisy, clean = (
                means.of_outputs(output_loss, z, t, axis_name)[0] for t in (other, targets)
            )
            return noisy - clean

        (noise,) = pull(jax.grad(change)(outputs))
        return collectives.total(noise, axis_name)

    return noise_transform(draw, seed, axis_name)
