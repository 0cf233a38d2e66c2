"""The local learning coefficient: how degenerate a minimum is, from Langevin chains about it."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax import _watching as watching
from flatjax.linalg.probing._estimate import student
from flatjax.measures import _langevin_chains as langevin_chains
from flatjax.measures import _objective as objective
from flatjax.measures._batches import Objectives
from flatjax.measures._chains import diagnosed
from flatjax.operators._normalisers import check_operators

_R_HAT = 1.05  # above, the chains do not agree
_SAMPLES = 10  # effective samples per chain that make a standard error
_FEWEST = 4  # steps of each that there must be
_PASSES = 20  # over all batches that make their means a series
_AHEAD = 32  # steps that the host may run ahead of the device, and batches held for them


@reading.readable
class LearningCoefficient(NamedTuple):
    r"""The local learning coefficient and what its chains are worth.

    Attributes:
      value: $\hat\lambda$, the mean over all chains after burn-in.
      standard_error: of ``value``, with the correlation along the chains and the disagreement
        between them. The step's own error is not in it.
      interval: a 95 % confidence interval, ``(2,)``.
      per_chain: every chain's own mean, ``(num_chains,)``.
      r_hat: the split potential scale reduction of the losses; 1 where the chains agree.
      effective_samples: the independent draws that all chains together are worth.
      losses: the losses along the chains after burn-in, ``(num_chains, num_steps)``: that of the
        point and by how much the chain's exceeds it, on the same batch.
      initial_loss: the mean loss over all batches at the point.
      converged: whether ``r_hat`` is at most 1.05, every chain is worth 10 samples, all is finite
        and the value not negative: the chains of a point that is no minimum find lower losses.
      stopped: why it was stopped early, ``"callback"``, ``"max_seconds"`` or ``"interrupt"``: then
        it has not converged, and the losses are fewer. ``None`` otherwise.
    """

    value: jax.Array
    standard_error: jax.Array
    interval: jax.Array
    per_chain: jax.Array
    r_hat: jax.Array
    effective_samples: jax.Array
    losses: jax.Array
    initial_loss: jax.Array
    converged: jax.Array
    stopped: str | None = None

    __float__ = reading.as_float


def local_learning_coefficient(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batches: Iterable[Any],
    *args: Any,
    key: jax.Array,
    num_data: float,
    localization: float,
    step_size: float,
    inverse_temperature: float | None = None,
    num_chains: int = 4,
    num_steps: int = 1000,
    num_burnin: int = 500,
    preconditioner: str | None = "rmsprop",
    mask: Any = None,
    precision: str | None = "highest",
    progress: bool = False,
    callback: watching.Callback | None = None,
    max_seconds: float | None = None,
    on_interrupt: str = "raise",
) -> LearningCoefficient:
    r"""The local learning coefficient of a minimum.

    $$\hat\lambda = n \beta \left( \mathbb E\, L(w) - L(w^*) \right), \qquad
    p(w) \propto \exp\left( -n \beta L(w) - \frac\gamma2 \lVert w - w^* \rVert^2 \right)$$

    with the mean negative log-likelihood $L$ over $n$ examples and $\beta = 1 / \log n$ (Lau et al.
    2023). Half the number of directions that matter where the minimum is regular, less where it is
    degenerate: the volume of $L < L(w^*) + \epsilon$ shrinks as $\epsilon^\lambda$. For any $n$ and
    $\gamma$ it is the tempered expectation that it says; of a quadratic with the curvatures $h_i$,
    $\frac12 \sum_i n \beta h_i / (n \beta h_i + \gamma)$.

    The chains start at the params and run side by side. Their noise is shared between neighbouring
    steps, which makes the expectation exact on a quadratic at every stable step and second order
    in the step elsewhere. With ``"rmsprop"`` the steps of all weights are scaled by the gradients
    met during burn-in, and the scales kept: what is sampled does not depend on them, only how fast.
    Losses are compared with that of the point on the same batch, so that the noise of a batch, and
    of an initial loss measured on other batches, is not in the answer.

    Choose the step as large as the answer stays the same at half of it (a value that is not finite
    says that it is too large: $\eta\,(n \beta \lambda_{\max} + \gamma)$ must be below 2), and the
    localization so that the chains stay in the basin; then look at ``r_hat``.

    Invariances: in the limit of large n, to every smooth reparametrisation, as no measure by the
    Hessian is.

    Cost: per step ``num_chains`` gradients and one forward pass of a batch, and before that a
    forward pass of all batches; memory of three copies of the params per chain.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the mean loss (a scalar), the per-example losses,
        shape ``(n,)``, or a [`Mean`][]; a negative log-likelihood.
      params: the minimum, a pytree of floating arrays; in low precision, taken in float32.
      batches: a re-iterable of batches (a list, a dataset object), one per step for all chains,
        over and over, best in random order; ``[None]`` for a loss without data.
      *args: anything else the loss takes.
      key: a PRNG key.
      num_data: $n$, the examples of the whole data set.
      localization: $\gamma$, the precision of the normal distribution about the params.
      step_size: $\eta$ of $w - \eta \nabla U + \sqrt{2 \eta}\,\xi$, as in [`langevin`][]; the
        $\epsilon$ of Lau et al. is $2 \eta$.
      inverse_temperature: $\beta$; ``None`` for $1 / \log n$.
      num_chains: how many chains.
      num_steps: the steps of each that count.
      num_burnin: the steps before them that do not.
      preconditioner: ``"rmsprop"`` or ``None``. Without burn-in there is nothing to find it from.
      mask: the leaves that are sampled, the others staying as they are: what [`restrict`][] takes
        (a path, a predicate, a tree of booleans that is a prefix of the params).
      precision: matmul precision; ``None`` leaves the caller's default.
      progress: whether to show a bar on standard error (by rich, if it is installed; lines where
        that is no terminal): steps and time left.
      callback: ``callback(step, value, standard_error)`` after every few steps, of slow ones after
        each: the steps so far, burn-in included, and two NumPy numbers, the mean over all chains
        and its error by their disagreement alone (NaN during burn-in; infinite for one chain). If
        it returns ``True``, it stops.
      max_seconds: stop after so many seconds.
      on_interrupt: ``"return"``: the first Ctrl-C stops after the steps in progress, the second
        raises; ``"raise"``: the first raises. A stop, of whatever kind, waits for four steps after
        burn-in (interrupted before, it raises); `LearningCoefficient.stopped` has the reason.

    Returns:
      A [`LearningCoefficient`][].

    Raises:
      TypeError: for one batch, a one-shot iterator, or inside ``jit``.
      ValueError: for numbers out of range, no batch, another preconditioner, or a scalar loss that
        is no mean over its examples.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> def loss_fn(w, _):
      ...     return (w**2).sum()  # four regular directions: 4 / 2
      >>> found = flatjax.local_learning_coefficient(
      ...     loss_fn,
      ...     jnp.zeros(4),
      ...     [None],
      ...     key=jax.random.key(0),
      ...     num_data=1000,
      ...     localization=1.0,
      ...     step_size=2e-3,
      ...     num_steps=400,
      ...     num_burnin=100,
      ... )
      >>> bool(found.interval[0] < 2.0 < found.interval[1]), bool(found.converged)
      (True, True)

    References:
      Lau, Furman, Wang, Murfet and Wei, "The local learning coefficient: a singularity-aware
      complexity measure", 2023, arXiv:2308.12108; Hitchcock and Hoogland, 2025, arXiv:2507.21449
      (samplers compared); Leimkuhler and Matthews, "Rational construction of stochastic numerical
      methods for molecular sampling", Applied Mathematics Research eXpress 2013.
    """
    key = checks.check_key(key)
    checks.check_scalar("num_data", num_data, above=1.0)
    checks.check_scalar("localization", localization, minimum=0.0)
    checks.check_scalar("step_size", step_size, above=0.0)
    beta = 1 / math.log(num_data) if inverse_temperature is None else inverse_temperature
    checks.check_scalar("inverse_temperature", beta, above=0.0)
    checks.check_count("num_chains", num_chains)
    checks.check_count("num_steps", num_steps, _FEWEST)
    checks.check_count("num_burnin", num_burnin, 0)
    checks.check_choice("preconditioner", preconditioner, ("rmsprop", None))
    ops = Objectives(
        "local_learning_coefficient", loss_fn, params, batches, args, precision=precision, mask=mask
    )
    structure, initial_loss, mean_weight, num_batches = _initial(ops)
    data_weight, dtype = num_data * beta, trees.dtype(structure)
    setting = langevin_chains.Setting(
        data_weight=jnp.asarray(data_weight, dtype),
        mean_weight=jnp.asarray(mean_weight, dtype),
        localization=jnp.asarray(localization, dtype),
        step_size=jnp.asarray(step_size, dtype),
        num_burnin=jnp.asarray(num_burnin, jnp.int32),
    )
    keys = jax.random.split(key, num_chains)
    chains = langevin_chains.started(keys, structure, adapt=preconditioner is not None)
    stream, kept = ops.endless(), []

    def step(i, chains):
        chains, excess = langevin_chains.stepped(next(stream), chains, keys, setting)
        if i >= num_burnin:
            kept.append(excess)
        if i % _AHEAD == 0:
            jax.block_until_ready(excess)
        return chains

    total = num_burnin + num_steps

    def report(done):
        value, error = np.float64(np.nan), np.float64(np.nan)
        if kept:
            kept[:] = jax.device_get(kept)
            means = data_weight * np.mean(kept, axis=0, dtype=np.float64)
            some = num_chains > 1
            value = means.mean()
            error = means.std(ddof=1) / math.sqrt(num_chains) if some else np.float64(np.inf)
        watch.report(done, value, error, left=total - done, ready=len(kept) >= _FEWEST)

    watch = watching.watch(
        "local_learning_coefficient", progress, callback, max_seconds, on_interrupt,
        unit="steps", label="disagreement", traced=(params, args, key),
    )  # fmt: skip
    with watch, loops.device(False):  # the batches are the host's
        for first, after in watch.chunks(total):
            chains = loops.fori(after - first, lambda i, c, f=first: step(f + i, c), chains)
            if watch.wants():
                jax.block_until_ready(chains)
                report(after)
    excess = np.stack(jax.device_get(kept), axis=1).astype(np.float64)
    # What a batch has of its own cancels over a pass.
    period = num_batches if len(kept) >= _PASSES * num_batches else 1
    found = diagnosed(data_weight * excess, period)
    samples = found.effective_samples
    half = student(max(1, int(samples) - 1)) * found.standard_error if samples > 0 else math.nan
    converged = (
        math.isfinite(found.standard_error)
        and found.r_hat <= _R_HAT
        and samples >= _SAMPLES * num_chains
        and found.mean >= 0
    )
    results = (
        found.mean,
        found.standard_error,
        (found.mean - half, found.mean + half),
        data_weight * excess.mean(axis=1),
        found.r_hat,
        samples,
        initial_loss + excess,
        initial_loss,
    )
    coefficient = LearningCoefficient(
        *(jnp.asarray(a, dtype) for a in results), converged=jnp.asarray(converged)
    )
    return watching.marked(coefficient, watch)


def _initial(ops: Objectives) -> tuple[Any, float, float, int]:
    """The structure of what is sampled, the loss there, the mean weight and number of batches."""
    first: Any = None
    op: Any = None
    found = []
    for op in ops:
        first = op if first is None else first
        found.append(_loss_and_weight(op))
    check_operators(first, op)
    losses, weights = np.asarray(jax.device_get(found), np.float64).T
    loss = (weights * losses).sum() / weights.sum()
    return op.structure, float(loss), float(weights.mean()), len(weights)


@jax.jit
def _loss_and_weight(op):
    return objective.value(op, op.params), op.example_weights.sum()
