"""Gaussian noise on the gradient, with a chosen covariance."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax import losses
from flatjax._trees import Tree
from flatjax.operators import _terms as terms
from flatjax.operators import _weighting as weighting
from flatjax.operators._per_example import per_example_gradients
from flatjax.transforms import _base as base
from flatjax.transforms import _callables as callables
from flatjax.transforms import _means as means
from flatjax.transforms import _prng as prng
from flatjax.transforms._incoming import check_trees


@reading.readable
class NoiseState(NamedTuple):
    """State of the transforms that draw noise.

    Attributes:
      count: the number of updates.
      key: the key, folded with ``count`` for each draw, as integers (``jax.random.key_data``).
    """

    count: jax.Array
    key: Any


def noise_transform(
    draw: Callable[..., Tree], seed: Any, axis_name: collectives.AxisName
) -> optax.GradientTransformationExtraArgs:
    """A transform that adds ``draw(key, updates, params, count, batch, args)``, in float32."""

    def init(params):
        del params
        return NoiseState(base.start(), prng.initial(seed))

    def update(updates, state, params=None, *, batch=None, args=(), **extra):
        del extra
        incoming = means.average(updates, axis_name)
        key = prng.of_step(state.key, state.count)
        noise = draw(key, updates, params, state.count, batch, args)
        out = base.combine(1.0, incoming, 1.0, noise)
        return out, NoiseState(base.advance(state.count), state.key)

    return base.head_of_chain(init, update)


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

    - ``"isotropic"``: $C = I$ (in the paper with a decaying schedule for ``scale``).
    - ``"gradient"``: $C = K = \frac1n \sum_i (g_i - g)(g_i - g)^\top$, the covariance of the
      per-example gradients of the batch, drawn as $J^\top (z - \bar z) / \sqrt n$ with $z \sim
      \mathcal N(0, I_n)$: one more gradient, no per-example gradient is formed. $s = 1 / \sqrt B$
      imitates the noise of mini-batches of B in full-batch training.
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

    References:
      Neelakantan et al., "Adding Gradient Noise Improves Learning for Very Deep Networks", 2015
      (isotropic); Wu et al., "On the Noisy Gradient Descent that Generalizes as SGD", ICML 2020.
    """
    checks.check_scalar("scale", scale, minimum=0.0, schedule=True)
    kind = covariance if isinstance(covariance, str) else "given"
    if kind != "given":
        checks.check_choice("covariance", kind, ("isotropic", "gradient", "diagonal"))
    needs_loss = kind in ("gradient", "diagonal")
    if needs_loss and loss_fn is None:
        raise ValueError(
            f'gradient_noise(covariance="{kind}") needs loss_fn=, and batch= in update.'
        )
    each = None if loss_fn is None else prng.cloning(loss_fn)

    def draw(key, updates, params, count, batch, args):
        if needs_loss:
            check_trees("gradient_noise", updates, params)
            base.require_batch("gradient_noise", batch, params, args, axis_name)
        if kind == "gradient":
            noise = _from_gradients(key, each, params, batch, args, axis_name)
        else:
            variances = 1.0 if kind == "isotropic" else covariance
            if kind == "diagonal":
                variances = _variances(each, params, batch, args, chunk_size, axis_name)
            noise = jax.tree.map(_scaled_by_root, variances, prng.normal_like(key, updates))
        return base.scaled(base.at(scale, count, trees.dtype(updates)), noise)

    return noise_transform(draw, seed, axis_name)


def _scaled_by_root(variance, draws):
    """The draws of a subtree, of one variance."""
    return jax.tree.map(lambda z: jnp.sqrt(jnp.asarray(variance)).astype(z.dtype) * z, draws)


def _from_gradients(key, loss_fn, params, batch, args, axis_name):
    r"""A draw of covariance K: a normal weight an example, pulled back through the losses.

    The noise $\sum_i \sqrt{p_i} z_i (g_i - \bar g)$ with the shares $p_i$ of the examples' weights.
    """
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


def _variances(loss_fn, params, batch, args, chunk_size, axis_name):
    """The diagonal of K."""
    here = collectives.varying(params, axis_name)
    weights, batch = _counted(loss_fn, here, batch, args)
    total = None if weights is None else weights.sum()

    def mean(stacked):
        return means.average(means.mean_of_stacked(stacked, weights), axis_name, total)

    each = per_example_gradients(loss_fn, here, batch, *args, chunk_size=chunk_size)
    return mean(jax.tree.map(lambda a, m: jnp.square(a - m), each, mean(each)))
