"""Batch-norm statistics for params that no training step has seen."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _checks as checks
from flatjax import _functions as functions
from flatjax import _loops as loops
from flatjax._trees import Tree
from flatjax.transforms import _base as base


def reestimate_batch_statistics(
    update_fn: Callable[[Tree, Tree, Any], Tree],
    params: Tree,
    statistics: Tree,
    batches: Iterable[Any],
) -> Tree:
    r"""Batch-norm statistics for averaged params, from a pass over the data.

    The running statistics along a trajectory belong to other params. This averages the batches' own
    statistics, weighted by their numbers of examples; a running average of decay m answers
    $m s + (1 - m) b$, so its response to $s = 0$ and $s = 1$ gives m, and b follows whatever m is.

    It may be traced, with the batches in the program: called inside an ``args_fn`` it makes the
    statistics anew at every point of [`loss_along`][], [`loss_surface`][] and [`loss_on_curve`][].

    Args:
      update_fn: ``update_fn(params, statistics, batch)``: the statistics after one forward pass in
        training mode. It is compiled.
      params: the averaged params.
      statistics: the statistics, for their structure; integer leaves pass unchanged.
      batches: the batches, read once.

    Returns:
      The statistics: the weighted mean over batches of each batch's own.

    Raises:
      TypeError: for one batch in place of several.
      ValueError: without a batch, or if ``update_fn`` is no running average (traced, that is not
        looked at).

    Example:
      >>> import flatjax, jax.numpy as jnp
      >>> running = lambda params, s, x: 0.9 * s + 0.1 * jnp.mean(params * x)
      >>> batches = [jnp.array([1.0, 3.0]), jnp.array([8.0])]
      >>> found = flatjax.reestimate_batch_statistics(running, 1.0, jnp.zeros(()), batches)
      >>> round(float(found), 3)
      4.0
    """
    checks.check_batches(batches, "reestimate_batch_statistics", again=False)

    def forward(*args):
        return _call(functions.follow(update_fn, args), args)

    def filled(value):
        return jax.tree.map(lambda a: jnp.full_like(a, value) if _floating(a) else a, statistics)

    zeros, gain, total, examples = filled(0.0), None, None, 0
    for batch in batches:
        n = base.require_batch("reestimate_batch_statistics", batch)
        fresh = forward(params, zeros, batch)
        if gain is None:
            unit = forward(params, filled(1.0), batch)
            gain = jax.tree.map(lambda u, f: 1 - (u - f) if _floating(f) else f, unit, fresh)
            for leaf in jax.tree.leaves(gain):
                if not _floating(leaf) or loops.is_traced(leaf):
                    continue
                if not bool(jnp.all((leaf > 0) & (leaf <= 1.001))):
                    raise ValueError(
                        "update_fn is no running average of batch statistics: run the model in "
                        "training mode, and return the new statistics."
                    )
        weighted = jax.tree.map(lambda f, n=n: n * f if _floating(f) else f, fresh)
        total = weighted if total is None else jax.tree.map(
            lambda t, f: t + f if _floating(f) else t, total, weighted
        )  # fmt: skip
        examples += n
    if total is None:
        raise ValueError("reestimate_batch_statistics needs at least one batch.")
    return jax.tree.map(
        lambda t, g, s: (t / (examples * g)).astype(s.dtype) if _floating(s) else s,
        total, gain, statistics,
    )  # fmt: skip


@jax.jit
def _call(fn, args):
    return fn(*args)


def _floating(a):
    return jnp.issubdtype(jnp.result_type(a), jnp.floating)
