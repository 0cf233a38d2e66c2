"""The smallest step at which something happens: a bracket by doubling, then bisection."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flatjax import _loops as loops


class Crossing(NamedTuple):
    """The state of a search for the smallest ``t > 0`` at which a condition holds.

    Attributes:
      lower: the largest step known to be below; 0 if none was.
      upper: the smallest step known to be above; infinite if none was.
      num_evaluations: how often the condition was evaluated.
    """

    lower: jax.Array
    upper: jax.Array
    num_evaluations: jax.Array

    def converged(self, tol: ArrayLike) -> jax.Array:
        """Whether the bracket is closed to the relative width ``tol``."""
        closed = self.upper - self.lower <= jnp.asarray(tol, self.upper.dtype) * self.upper
        return closed & (self.lower > 0) & jnp.isfinite(self.upper)

    def trial(self, initial: ArrayLike) -> jax.Array:
        """The next step to look at: doubled, halved, or the middle of the bracket."""
        start = jnp.asarray(initial).astype(self.upper.dtype)
        outwards = jnp.where(self.lower > 0, 2 * self.lower, start)
        inwards = jnp.where(self.lower > 0, (self.lower + self.upper) / 2, self.upper / 2)
        return jnp.where(jnp.isinf(self.upper), outwards, inwards)

    def updated(self, step: jax.Array, above: jax.Array) -> "Crossing":
        """The bracket after the condition was found ``above`` (true) or not at ``step``."""
        return Crossing(
            jnp.where(above, self.lower, step),
            jnp.where(above, step, self.upper),
            self.num_evaluations + 1,
        )


def crossing(
    above: Callable[[jax.Array], jax.Array],
    initial: ArrayLike,
    *,
    tol: float,
    max_trials: int,
    dtype: Any,
) -> Crossing:
    """Search for the smallest ``t > 0`` with ``above(t)``, taken to be monotone near the crossing.

    It begins at ``initial`` and stops at the relative width ``tol`` of the bracket, or after
    ``max_trials`` evaluations of the condition, a compiled function of a scalar.
    """
    start = Crossing(jnp.zeros((), dtype), jnp.asarray(jnp.inf, dtype), jnp.zeros((), jnp.int32))

    def step(state):
        t = state.trial(initial)
        return state.updated(t, above(t))

    def done(state):
        return state.converged(tol) | (state.num_evaluations >= max_trials)

    # The first step is outside of the loop: its output tells whether we are traced.
    return loops.until(done, step, step(start))
