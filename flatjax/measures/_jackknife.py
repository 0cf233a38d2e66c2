"""Standard errors by leaving out one example, probe or measurement after the other."""

import jax
import jax.numpy as jnp

from flatjax import _collectives as collectives


def jackknife_variance(
    left_out: jax.Array,
    counted: jax.Array | None = None,
    axis_name: collectives.AxisName = None,
) -> jax.Array:
    r"""The variance $\frac{n - 1}{n} \sum_i (x_i - \bar x)^2$ of a statistic.

    Args:
      left_out: $x_i$, the statistic of all but the i-th, shape ``(n,)``.
      counted: which of them there are, booleans; ``None`` for all. The others may be anything.
      axis_name: the mesh axis over which they are split.

    Returns:
      A scalar.
    """

    def add(a):
        kept = a if counted is None else jnp.where(counted, a, jnp.zeros_like(a))
        return collectives.total(kept.sum(), axis_name)

    count = add(jnp.ones_like(left_out))
    return (count - 1) / count * add(jnp.square(left_out - add(left_out) / count))
