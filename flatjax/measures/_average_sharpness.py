"""Average-case sharpness: the expected rise of the loss under Gaussian perturbations."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax._balls import moved
from flatjax.linalg.vectors import _probes as probes
from flatjax.measures import _objective as objective
from flatjax.operators._hessian import Hessian


@reading.readable
class AverageSharpness(NamedTuple):
    r"""The expected rise of the loss under random perturbations.

    Attributes:
      value: the estimate of $\mathbb{E}\,L(w + \epsilon) - L(w)$.
      standard_error: of the estimate, from the spread of the samples; NaN with one sample.
      loss: $L(w)$.
      samples: the rise of every sample (the mean over every antithetic pair), shape
        ``(num_samples,)``.
      num_evaluations: forward passes spent.
    """

    value: jax.Array
    standard_error: jax.Array
    loss: jax.Array
    samples: jax.Array
    num_evaluations: int

    __float__ = reading.as_float


def average_sharpness(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batch: Any,
    *args: Any,
    sigma: ArrayLike,
    key: jax.Array,
    num_samples: int = 32,
    adaptive: bool = False,
    offset: ArrayLike = 0.0,
    antithetic: bool = True,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    precision: str | None = "highest",
) -> AverageSharpness:
    r"""The expected rise of the mean loss under Gaussian perturbations of the params.

    $$\mathbb{E}_{\epsilon \sim N(0, \sigma^2 T^2)} L(w + \epsilon) - L(w)
    = \tfrac{\sigma^2}{2} \mathrm{tr}(T H T) + O(\sigma^4),$$

    with $T = 1$ (the average-case sharpness of Foret et al. 2021 and of PAC-Bayes bounds), or
    $T = |w| + o$ entry by entry, $o$ the ``offset``, with ``adaptive=True`` (Andriushchenko et al.
    2023). Antithetic
    pairs $\pm \epsilon$ cancel the gradient's part of every sample, which dominates the variance
    away from a minimum.

    Invariances: with ``adaptive=True`` and ``offset=0`` to any rescaling of single weights that
    leaves the function as it is; plain, to rotations of the params.

    Cost: ``num_samples`` forward passes, twice that with antithetic pairs, and one more; no
    gradient. Memory of a forward pass and two vectors.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the mean loss (a scalar) or the per-example
        losses, shape ``(n,)``.
      params: a pytree of floating arrays; in low precision, taken in float32.
      batch: a pytree whose leaves share a leading axis of ``n`` examples.
      *args: anything else the loss takes.
      sigma: the standard deviation of the perturbation (of its ratio to T).
      key: a PRNG key.
      num_samples: perturbations, or antithetic pairs of them.
      adaptive: scale the perturbation by ``|w| + offset``.
      offset: what is added to the magnitudes.
      antithetic: evaluate every perturbation with both signs.
      weights: per-example weights or a padding mask, shape ``(n,)``; needs per-example losses.
      axis_name: the mesh axis over which the batch is split, inside ``shard_map`` or ``pmap``;
        every device perturbs alike.
      precision: matmul precision; ``None`` leaves the caller's default.

    Returns:
      An [`AverageSharpness`][] of scalars, in the params' precision or float32 at least.

    Raises:
      TypeError: if ``params`` holds anything but real floating arrays.
      ValueError: for ``sigma <= 0``, a negative ``offset``, no sample, or data that do not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> def loss_fn(w, _):
      ...     return 0.5 * (w**2).sum()  # sigma^2 / 2 * tr(H) = 0.5
      >>> key = jax.random.key(0)
      >>> result = flatjax.average_sharpness(loss_fn, jnp.ones(100), None, sigma=0.1, key=key)
      >>> abs(float(result.value) - 0.5) < 3 * float(result.standard_error)
      True

    References:
      Foret, Kleiner, Mobahi and Neyshabur, "Sharpness-aware minimization for efficiently improving
      generalization", ICLR 2021, arXiv:2010.01412; Andriushchenko, Croce, Müller, Hein and
      Flammarion, "A modern look at the relationship between sharpness and generalization", ICML
      2023, arXiv:2302.07011.
    """
    checks.check_scalar("sigma", sigma, above=0.0)
    checks.check_scalar("offset", offset, minimum=0.0)
    checks.check_count("num_samples", num_samples)
    op = objective.mean_loss(
        loss_fn, params, batch, args, weights=weights, axis_name=axis_name, precision=precision
    )
    scale = objective.magnitudes(op.params, offset) if adaptive else None
    loss = objective.loss_at(op, op.params)
    samples = perturbed_losses(op, sigma, scale, key, num_samples, antithetic) - loss
    value, error = mean_and_error(samples)
    return AverageSharpness(value, error, loss, samples, 1 + num_samples * (1 + bool(antithetic)))


def perturbed_losses(
    op: Hessian,
    sigma: ArrayLike,
    scale: Any,
    key: jax.Array,
    num_samples: int,
    antithetic: bool,
) -> jax.Array:
    """The loss under every perturbation (the mean over a pair), shape ``(num_samples,)``."""
    dtype = trees.dtype(op.params)
    sigma = jnp.asarray(sigma).astype(dtype)

    def body(i, losses):
        noise = probes.probe(key, op.structure, "normal", number=i)
        return _sample(op, sigma, scale, noise, jnp.asarray(i), losses, antithetic)

    return objective.repeat(num_samples, body, jnp.zeros((num_samples,), dtype))


@partial(jax.jit, static_argnums=6)
def _sample(op, sigma, scale, noise, i, losses, antithetic):
    if scale is not None:
        noise = jax.tree.map(jnp.multiply, scale, noise)
    loss = objective.value(op, moved(op.params, trees.scale(sigma, noise)))
    if antithetic:
        loss = (loss + objective.value(op, moved(op.params, trees.scale(-sigma, noise)))) / 2
    return losses.at[i].set(loss)


def mean_and_error(samples: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean of independent samples and its standard error; NaN for a single one."""
    return samples.mean(), samples.std(ddof=1) / samples.shape[0] ** 0.5
