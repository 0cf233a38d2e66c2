"""Learning rates that go up and down, for members collected along one run."""

import jax.numpy as jnp
import optax

from flatjax import _checks as checks


def cyclic_schedule(low: float, high: float, period: int) -> optax.Schedule:
    r"""The triangle of fast geometric ensembling: from ``high`` down to ``low`` and up again.

    $$\eta(t) = \text{low} + (\text{high} - \text{low})\,\Big|1 - 2 \frac{t \bmod P}{P}\Big|$$

    A member is collected where the rate is lowest, at the step counts $P/2, 3P/2, \dots$

    Args:
      low: the rate in the middle of a cycle.
      high: the rate at its ends.
      period: $P$, the steps of a cycle; an even number, so that the lowest rate is met.

    Returns:
      A function of the step count, for any ``learning_rate`` of optax.

    Raises:
      TypeError: if ``period`` is no integer.
      ValueError: unless ``0 <= low <= high`` and the period is even and positive.

    Example:
      >>> import flatjax
      >>> schedule = flatjax.cyclic_schedule(0.1, 0.5, 4)
      >>> [round(float(schedule(t)), 2) for t in range(6)]
      [0.5, 0.3, 0.1, 0.3, 0.5, 0.3]

    References:
      Garipov, Izmailov, Podoprikhin, Vetrov and Wilson, "Loss surfaces, mode connectivity, and fast
      ensembling of DNNs", NeurIPS 2018, arXiv:1802.10026.
    """
    checks.check_scalar("low", low, minimum=0.0)
    checks.check_scalar("high", high, minimum=float(low))
    checks.check_count("period", period, 2)
    if period % 2:
        raise ValueError(f"period must be even, so that the lowest rate is met, got {period}.")

    def schedule(count):
        position = jnp.asarray(count % period, float) / period
        return low + (high - low) * jnp.abs(1 - 2 * position)

    return schedule
