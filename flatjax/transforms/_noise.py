"""Noise on the gradient, with a chosen covariance, at the head of a chain."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _trees as trees
from flatjax import losses
from flatjax._trees import Tree
from flatjax.losses._own import as_loss
from flatjax.operators import _terms as terms
from flatjax.operators import _weights as weighting
from flatjax.operators._per_example import per_example_gradients
from flatjax.transforms import _base as base
from flatjax.transforms import _callables as callables
from flatjax.transforms import _prng as prng
from flatjax.transforms._incoming import check_trees
from flatjax.transforms._model_penalty import OutputLoss


class NoiseState(NamedTuple):
    """State of the transforms that draw noise.

    Attributes:
      count: the number of updates.
      key: the key, folded with ``count`` for each draw, as integers (``jax.random.key_data``).
    """

    count: jax.Array
    key: Any


def normal_like(key: jax.Array, tree: Tree) -> Tree:
    """Standard normal entries of the shapes of ``tree``, in at least float32."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    draws = [
        jax.random.normal(k, a.shape, trees.compute_dtype(a.dtype))
        for k, a in zip(keys[: len(leaves)], leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, draws)


def gradient_noise(
    scale: base.Scalar,
    *,
    covariance: Any = "isotropic",
    loss_fn: Callable[..., jax.Array] | None = None,
    chunk_size: int | None = None,
    seed: Any = 0,
    axis_name: collectives.AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Add Gaussian noise of a chosen covariance to the gradient, at the head of a chain.

    The update is $g + s\,\zeta$ with $\mathbb E\,\zeta \zeta^\top = C$:

    - ``"isotropic"``: $C = I$ (Neelakantan et al. 2015 with a decaying schedule for ``scale``).
    - ``"gradient"``: $C = K = \frac1n \sum_i (g_i - g)(g_i - g)^\top$, the covariance of the
      per-example gradients of the batch, drawn as $J^\top (z - \bar z) / \sqrt n$ with $z \sim
      \mathcal N(0, I_n)$: one more gradient, no per-example gradient is formed. $s = 1 / \sqrt B$
      imitates the noise of mini-batches of B in full-batch training (Wu et al. 2020, "On the Noisy
      Gradient Descent that Generalizes as SGD").
    - ``"diagonal"``: the diagonal of K; it needs per-example gradients (``chunk_size`` bounds their
      memory).
    - a pytree of variances: a diagonal of your own (a prefix of the params, scalars or arrays).

    Args:
      scale: $s$, a number or a schedule.
      covariance: as above.
      loss_fn: ``loss_fn(params, batch, *args)``, for ``"gradient"`` and ``"diagonal"``: per-example
        losses, or a mean loss, then called on batches of one; or a [`Mean`][], with weighted means
        in place of those over i. ``update`` takes ``batch`` (and ``args``).
      chunk_size: per-example gradients at once, for ``"diagonal"``.
      seed: of the noise; the key lives in the state.
      axis_name: inside ``shard_map`` or ``pmap``, the axes of the batch.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`NoiseState`][].

    Raises:
      ValueError: for ``scale`` < 0, an unknown covariance, or one that needs ``loss_fn``.

    Example:
      >>> import flatjax, jax.numpy as jnp
      >>> tx = flatjax.gradient_noise(0.1)
      >>> g = jnp.zeros(10_000)
      >>> noisy, _ = tx.update(g, tx.init(g), g)
      >>> round(float(jnp.std(noisy)), 2)
      0.1
    """
    checks.check_scalar("scale", scale, minimum=0.0, schedule=True)
    if isinstance(covariance, str):
        if covariance not in ("isotropic", "gradient", "diagonal"):
            raise ValueError(
                'covariance must be "isotropic", "gradient", "diagonal" or a pytree of variances, '
                f"got {covariance!r}."
            )
        if covariance != "isotropic" and loss_fn is None:
            raise ValueError(
                f'gradient_noise(covariance="{covariance}") needs loss_fn=, and batch= in update.'
            )

    each = None if loss_fn is None else prng.cloning(loss_fn)

    def init(params):
        del params
        return NoiseState(base.start(), prng.initial(seed))

    def update(updates, state, params=None, *, batch=None, args=(), **extra):
        del extra
        incoming = base.average(updates, axis_name)
        key = prng.of_step(state.key, state.count)
        if isinstance(covariance, str) and covariance != "isotropic":
            check_trees("gradient_noise", updates, params)
            base.require_batch("gradient_noise", batch)
            draw = _from_gradients if covariance == "gradient" else _from_diagonal
            noise = draw(key, each, params, batch, args, chunk_size, axis_name)
        else:
            noise = normal_like(key, incoming)
            if not isinstance(covariance, str):
                noise = jax.tree.map(
                    lambda c, sub: jax.tree.map(
                        lambda z: jnp.sqrt(jnp.asarray(c)).astype(z.dtype) * z, sub
                    ),
                    covariance, noise,
                )  # fmt: skip
        size = base.at(scale, state.count, trees.dtype(incoming))
        out = base.combine(1.0, incoming, size, trees.cast(noise, incoming))
        return out, NoiseState(base.advance(state.count), state.key)

    return base.head_of_chain(init, update)


def _from_gradients(key, loss_fn, params, batch, args, chunk_size, axis_name):
    r"""A draw of covariance K: a normal weight an example, pulled back through the losses.

    The noise $\sum_i \sqrt{p_i} z_i (g_i - \bar g)$ with the shares $p_i$ of the examples' weights.
    """
    del chunk_size
    n = jax.tree.leaves(batch)[0].shape[0]
    z = jax.vmap(jax.random.normal)(base.keys_of_examples(key, n, axis_name))
    here = collectives.varying(params, axis_name)
    given, batch = _counted(loss_fn, here, batch, args)
    weights = jnp.ones((n,), z.dtype) if given is None else given.astype(z.dtype)
    root, total = jnp.sqrt(weights), collectives.total(weights.sum(), axis_name)
    z = root * (z - root * (collectives.total((root * z).sum(), axis_name) / total))
    values, pull = jax.vjp(lambda w: _terms(loss_fn, w, batch, args)[0], here)
    (noise,) = pull((z / jnp.sqrt(total)).astype(values.dtype))
    if given is not None:  # a device without an example that counts adds nothing
        noise = weighting.where_any(given, noise)
    return collectives.total(noise, axis_name)


def _terms(loss_fn, params, batch, args):
    """The per-example losses and their weights, of a mean loss by batches of one."""

    def out_of(b):
        out = loss_fn(params, b, *args)
        callables.loss_and_weight("loss_fn", out)
        return out

    out = jax.eval_shape(out_of, batch)
    if (out.total if isinstance(out, losses.Mean) else out).ndim == 1:
        found = terms.as_terms(out_of(batch))
    else:
        found = jax.vmap(lambda b: terms.of_one(loss_fn, params, b, args))(batch)
    return (*found, isinstance(out, losses.Mean))


def _counted(loss_fn, params, batch, args):
    """The weights of the examples, ``None`` if equal, and the batch without those of zero."""
    _, weights, weighted = _terms(loss_fn, params, batch, args)
    if not weighted:
        return None, batch
    # Copies in the places of rows that do not count, whose derivative may be no number.
    return weights, weighting.replaced(batch, weights != 0)


def _from_diagonal(key, loss_fn, params, batch, args, chunk_size, axis_name):
    """A draw of covariance diag(K)."""
    here = collectives.varying(params, axis_name)
    weights, batch = _counted(loss_fn, here, batch, args)
    total = None if weights is None else weights.sum()
    each = per_example_gradients(loss_fn, here, batch, *args, chunk_size=chunk_size)
    mean = base.average(base.mean_of_stacked(each, weights), axis_name, total)
    square = jax.tree.map(lambda a, m: jnp.square(a - m), each, mean)
    variance = base.average(base.mean_of_stacked(square, weights), axis_name, total)
    noise = normal_like(key, params)
    return jax.tree.map(lambda v, z: jnp.sqrt(v).astype(z.dtype) * z, variance, noise)


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
      matrix at a fit (Blanc et al. 2020, "Implicit Regularization for Deep Neural Networks Driven
      by an Ornstein-Uhlenbeck Like Process"; Damian et al. 2021).
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
    """
    if (scale is None) == (flip_probability is None):
        raise ValueError(
            "label_noise needs one of scale= (floating targets) and flip_probability= (class ids)."
        )
    checks.check_scalar("scale", 0.0 if scale is None else scale, minimum=0.0, schedule=True)
    checks.check_scalar(
        "flip_probability", flip_probability if flip_probability is not None else 0.0,
        minimum=0.0, maximum=1.0, schedule=True,
    )  # fmt: skip
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
            size = base.at(scale, count, trees.compute_dtype(targets.dtype))
            draw = jax.vmap(lambda k, t: jax.random.normal(k, t.shape, size.dtype))(keys, targets)
            return (targets.astype(size.dtype) + size * draw).astype(targets.dtype)
        chance = base.at(0.0 if flip_probability is None else flip_probability, count, jnp.float32)
        classes = outputs.shape[-1]

        def flip(k, t):
            which, what = jax.random.split(k)
            drawn = jax.random.randint(what, t.shape, 0, classes, t.dtype)
            return jnp.where(jax.random.bernoulli(which, chance, t.shape) & (t >= 0), drawn, t)

        return jax.vmap(flip)(keys, targets)

    def init(params):
        del params
        return NoiseState(base.start(), prng.initial(seed))

    def update(updates, state, params=None, *, batch: Any = None, args=(), **extra):
        del extra
        check_trees("label_noise", updates, params)
        n = base.require_pair("label_noise", batch)
        inputs, targets = batch
        incoming = base.average(updates, axis_name)
        key = prng.of_step(state.key, state.count)
        keys = base.keys_of_examples(key, n, axis_name)
        here = collectives.varying(params, axis_name)
        outputs, pull = jax.vjp(lambda w: model_fn(w, inputs, *args), here)
        other = jax.lax.stop_gradient(noised(keys, outputs, targets, state.count))

        def change(z):
            return (output_loss(z, other) - output_loss(z, targets)).mean()

        (noise,) = pull(jax.grad(change)(outputs))
        noise = trees.cast(base.average(noise, axis_name), incoming)
        out = base.combine(1.0, incoming, 1.0, noise)
        return out, NoiseState(base.advance(state.count), state.key)

    return base.head_of_chain(init, update)
