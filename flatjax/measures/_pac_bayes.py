"""PAC-Bayes flatness: the largest noise that the params bear, and the bound it gives."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax.measures import _objective as objective
from flatjax.measures import _search as search
from flatjax.measures._average_sharpness import mean_and_error, perturbed_losses


@reading.readable
class PacBayesFlatness(NamedTuple):
    r"""The noise level at which the expected loss has risen by a given amount.

    Attributes:
      sigma: the standard deviation of that noise, the middle of the bracket.
      standard_error: of ``sigma``, from the spread of the samples (by the delta method, with a rise
        quadratic in sigma).
      flatness: $1 / \sigma^2$: large for a sharp minimum.
      increase: the expected rise of the loss at ``sigma``, from the same samples.
      loss: $L(w)$.
      kl: $\lVert w - w_0 \rVert^2 / (2 \sigma^2)$, the divergence of the posterior from the prior.
      bound: $L + \text{increase} + \sqrt{(\mathrm{kl} + \ln(2 \sqrt{n} / \delta)) / (2 n)}$; NaN
        without ``num_examples``.
      converged: whether the bracket of ``sigma`` is closed to ``tol``.
      num_evaluations: forward passes spent.
    """

    sigma: jax.Array
    standard_error: jax.Array
    flatness: jax.Array
    increase: jax.Array
    loss: jax.Array
    kl: jax.Array
    bound: jax.Array
    converged: jax.Array
    num_evaluations: jax.Array


def pac_bayes_flatness(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batch: Any,
    *args: Any,
    increase: ArrayLike = 0.1,
    key: jax.Array,
    prior: Any = None,
    num_examples: int | None = None,
    delta: float = 0.05,
    num_samples: int = 16,
    initial_sigma: ArrayLike = 0.05,
    tol: float = 1e-2,
    max_trials: int = 24,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    precision: str | None = "highest",
) -> PacBayesFlatness:
    r"""The largest Gaussian noise that raises the expected loss by no more than a given amount.

    $$\sigma = \max \{ s : \mathbb{E}_{\epsilon \sim N(0, s^2 I)} L(w + \epsilon) - L(w)
    \le \text{increase} \}, \qquad \text{flatness} = 1 / \sigma^2$$

    (the PAC-Bayes flatness of Jiang et al. 2020; Neyshabur et al. 2017). With a Gaussian prior of
    the same width around $w_0$ the McAllester bound, in Maurer's form (2004), holds with
    probability $1 - \delta$ over $n$ examples:

    $$\mathbb{E}\,L_{\text{true}} \le \mathbb{E}\,L + \sqrt{
    \frac{\lVert w - w_0 \rVert^2 / 2\sigma^2 + \ln(2 \sqrt n / \delta)}{2 n}}$$

    for a loss in [0, 1] and $w_0$ chosen before the data. ``bound`` is this quantity for the one
    ``sigma`` found: a complexity measure, not a certificate, for the loss need not lie in [0, 1]
    and no union over the values of ``sigma`` is taken.

    The same antithetic samples serve every ``sigma``, so that the search follows one smooth curve;
    ``standard_error`` says what other samples would give. Near a minimum
    $\sigma^2 \approx 2\,\text{increase} / \mathrm{tr}(H)$.

    Invariances: to rotations of the params; not to rescaling of weights.

    Cost: ``2 num_samples`` forward passes for each of about 9 values of ``sigma`` from a start
    within a factor of two. No gradient.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the mean loss (a scalar) or the per-example
        losses, shape ``(n,)``; often the zero-one loss in this measure.
      params: a pytree of floating arrays; in low precision, taken in float32.
      batch: a pytree whose leaves share a leading axis of ``n`` examples.
      *args: anything else the loss takes.
      increase: the rise of the expected loss that is allowed, in units of the loss.
      key: a PRNG key.
      prior: the centre $w_0$ of the prior, a pytree like ``params`` (the initialisation); ``None``
        for the origin.
      num_examples: $n$ in the bound; ``None`` gives no bound.
      delta: the probability with which the bound may fail.
      num_samples: antithetic pairs per value of ``sigma``.
      initial_sigma: the first value tried.
      tol: the width of the bracket of ``sigma``, relative to its upper end, at which the search
        stops.
      max_trials: the most values of ``sigma`` tried.
      weights: per-example weights or a padding mask, shape ``(n,)``; needs per-example losses.
      axis_name: the mesh axis over which the batch is split, inside ``shard_map`` or ``pmap``.
      precision: matmul precision; ``None`` leaves the caller's default.

    Returns:
      A [`PacBayesFlatness`][] of scalars.

    Raises:
      TypeError: if ``params`` holds anything but real floating arrays, or ``prior`` another tree.
      ValueError: for an ``increase``, ``initial_sigma`` or ``tol`` that is not positive, a
        ``delta`` outside (0, 1), no sample, or data that do not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> def loss_fn(w, _):
      ...     return 0.5 * (w**2).sum()  # sigma^2 = 2 * 0.5 / tr(H) = 0.01
      >>> result = flatjax.pac_bayes_flatness(
      ...     loss_fn, jnp.zeros(100), None, increase=0.5, key=jax.random.key(0)
      ... )
      >>> abs(float(result.sigma) - 0.1) < 3 * float(result.standard_error)
      True

    References:
      Jiang et al., "Fantastic generalization measures and where to find them", ICLR 2020,
      arXiv:1912.02178; Neyshabur, Bhojanapalli, McAllester and Srebro, "Exploring generalization in
      deep learning", NeurIPS 2017, arXiv:1706.08947; Maurer, "A note on the PAC Bayesian theorem",
      2004, arXiv:cs/0411099.
    """
    checks.check_scalar("increase", increase, above=0.0)
    checks.check_scalar("initial_sigma", initial_sigma, above=0.0)
    checks.check_scalar("tol", tol, above=0.0)
    checks.check_count("num_samples", num_samples)
    checks.check_count("max_trials", max_trials)
    checks.check_scalar("delta", delta, above=0.0, below=1.0)
    if num_examples is not None:
        checks.check_count("num_examples", num_examples)
    op = objective.mean_loss(
        loss_fn, params, batch, args, weights=weights, axis_name=axis_name, precision=precision
    )
    if prior is not None:
        trees.check(prior, op.structure, "prior")
    loss = objective.loss_at(op, op.params)
    rises = lambda s: perturbed_losses(op, s, None, key, num_samples, True) - loss  # noqa: E731
    allowed = jnp.asarray(increase).astype(loss.dtype)
    found = search.crossing(
        # A loss that is no number counts as risen.
        lambda s: ~(rises(s).mean() <= allowed),
        initial_sigma,
        tol=tol,
        max_trials=max_trials,
        dtype=loss.dtype,
    )
    sigma = (found.lower + found.upper) / 2
    rise, error = mean_and_error(rises(sigma))
    kl = _squared_distance(op.params, prior).astype(loss.dtype) / (2 * sigma**2)
    bound = jnp.full_like(loss, jnp.nan)
    if num_examples is not None:
        confidence = math.log(2 * math.sqrt(num_examples) / delta)
        bound = loss + rise + jnp.sqrt((kl + confidence) / (2 * num_examples))
    return PacBayesFlatness(
        sigma=sigma,
        standard_error=sigma * error / (2 * jnp.abs(rise)),
        flatness=1 / sigma**2,
        increase=rise,
        loss=loss,
        kl=kl,
        bound=bound,
        converged=found.converged(tol),
        num_evaluations=1 + 2 * num_samples * (found.num_evaluations + 1),
    )


def _squared_distance(params: Any, prior: Any) -> jax.Array:
    distance = params if prior is None else trees.axpy(-1.0, prior, params)
    return trees.vdot(distance, distance)
