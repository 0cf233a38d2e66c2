r"""The largest loss in a ball around the params, by conditional gradients.

The maximisation is over $y$ in the unit p-ball, $\epsilon = s \odot y$ in the space of the params.
A step goes from $y$ towards the point $d$ of the ball at which the linear model is largest (the
conditional gradient of Frank & Wolfe 1956), $y \leftarrow y + t (d - y)$ with $t = 1$, halved when
the loss does not rise. For a convex loss $t = 1$ always rises (the generalised power method of
Journee et al. 2010, JMLR 11), which is why this beats projected gradient steps here: near a minimum
the maximum lies on the boundary. It serves every p without a projection, stays inside the ball and
never goes down. One gradient per step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax._balls import dual_direction, moved
from flatjax._trees import Tree
from flatjax.linalg.vectors import _basis as basis
from flatjax.linalg.vectors import _probes as probes
from flatjax.measures import _objective as objective
from flatjax.operators._base import operator
from flatjax.operators._hessian import Hessian

_SUFFICIENT = 1e-4  # the share of the predicted rise that a step must bring (Armijo)


@operator
class Scaling:
    """Perturbations ``scales * y`` of all params."""

    scales: Tree

    def perturb(self, y: Tree) -> Tree:
        """The perturbation of the params."""
        return jax.tree.map(jnp.multiply, self.scales, y)


@operator
class Subspace:
    """Perturbations ``A (scales * y)`` in the span of directions with a leading axis ``k``."""

    directions: Tree
    scales: jax.Array

    def perturb(self, y: jax.Array) -> Tree:
        """The perturbation of the params."""
        return basis.combine(self.directions, self.scales * y)


class Ascent(NamedTuple):
    """The state of the maximisation: where it stands, and where it looks next."""

    point: Tree
    value: jax.Array
    gradient: Tree
    trial: Tree
    step: jax.Array
    first_value: jax.Array


Ball = Scaling | Subspace
Evaluate = Callable[[Tree], tuple[jax.Array, Tree]]


def maximise(
    evaluate: Evaluate, start: Tree, first: tuple[jax.Array, Tree], p: float, ascent_steps: int
) -> Ascent:
    """Conditional-gradient ascent from a point of the unit p-ball, one evaluation per step.

    ``evaluate`` gives the loss and its gradient at a point ``y``; ``first`` are those at ``start``.
    """
    state = _started(start, *first, p)
    return loops.fori(
        ascent_steps, lambda _, state: _advanced(state, *evaluate(state.trial), p), state
    )


@partial(jax.jit, static_argnums=3)
def _started(point, value, gradient, p):
    trial = dual_direction(gradient, p)
    unknown = jnp.full_like(value, jnp.nan)
    return Ascent(point, value, gradient, trial, jnp.ones_like(value), unknown)


@partial(jax.jit, static_argnums=3)
def _advanced(state, value, gradient, p):
    move = jax.tree.map(jnp.subtract, state.trial, state.point)
    predicted = trees.vdot(state.gradient, move).astype(value.dtype)
    # Not of a loss that overflows: its gradient leads nowhere, a shorter step may.
    risen = jnp.isfinite(value) & (value >= state.value + _SUFFICIENT * predicted)
    point, kept_value, kept_gradient = jax.tree.map(
        lambda new, old: jnp.where(risen, new, old),
        (state.trial, value, gradient),
        (state.point, state.value, state.gradient),
    )
    step = jnp.where(risen, jnp.ones_like(state.step), state.step / 2)
    towards = jax.tree.map(jnp.subtract, dual_direction(kept_gradient, p), point)
    trial = trees.axpy(step, towards, point)
    first_value = jnp.where(jnp.isnan(state.first_value), value, state.first_value)
    return Ascent(point, kept_value, kept_gradient, trial, step, first_value)


@jax.jit
def scaled_ball(params: Tree, radius: Any, offset: Any) -> Scaling:
    """The ball of ``radius`` times ``|w| + offset``; the plain one without an offset."""
    if offset is None:
        scales = jax.tree.map(jnp.ones_like, params)
    else:
        scales = objective.magnitudes(params, offset)
    return Scaling(trees.scale(radius, scales))


@jax.jit
def loss_and_gradient(op: Hessian, ball: Ball, y: Tree) -> tuple[jax.Array, Tree]:
    """The mean loss at ``params + ball.perturb(y)`` and its gradient with respect to ``y``."""
    perturbation, pull_back = jax.vjp(ball.perturb, y)
    value, gradient = objective.value_and_gradient(op, moved(op.params, perturbation))
    return value, pull_back(gradient)[0]


@jax.jit
def loss(op: Hessian, ball: Ball, y: Tree) -> jax.Array:
    """The mean loss at ``params + ball.perturb(y)``."""
    return objective.value(op, moved(op.params, ball.perturb(y)))


@jax.jit
def _probe(op, ball, y, index, width):
    return loss(op, ball, y.at[index].add(width.astype(y.dtype)))


def forward_differences(op: Hessian, ball: Subspace, y: jax.Array, width: jax.Array) -> Any:
    """The loss and its forward-difference gradient: one forward pass per direction and one more."""
    value = loss(op, ball, y)

    def body(i, gradient):
        rise = _probe(op, ball, y, jnp.asarray(i), width) - value
        return gradient.at[i].set((rise / width.astype(rise.dtype)).astype(gradient.dtype))

    return value, objective.repeat(y.shape[0], body, jnp.zeros_like(y))


@reading.readable
class SamSharpness(NamedTuple):
    r"""The largest rise of the loss found in a ball.

    Attributes:
      value: $L(w + \epsilon) - L(w)$ at the best perturbation found, at least 0; a lower bound of
        the maximum.
      perturbation: the best $\epsilon$, a pytree like the params.
      loss: $L(w)$.
      first_step: the rise at the end of the first ascent step, SAM's own estimate; may be negative.
      first_order: the rise that the gradient predicts, $\rho \lVert T g \rVert_q$.
      gap: the most that the linear model at the best perturbation still rises inside the ball, in
        units of the loss; 0 at a stationary point of the maximisation.
      starts: the best rise from every start, shape ``(num_starts,)``.
      num_gradients: gradients spent.
    """

    value: jax.Array
    perturbation: Any
    loss: jax.Array
    first_step: jax.Array
    first_order: jax.Array
    gap: jax.Array
    starts: jax.Array
    num_gradients: int

    __float__ = reading.as_float


def search(
    evaluate: Evaluate, ball: Ball, p: float, ascent_steps: int, num_starts: int, key: Any
) -> SamSharpness:
    """The best of several ascents: one from the origin, the others from random boundary points.

    Takes ``1 + num_starts * ascent_steps`` evaluations, and a key where there are several ascents.
    """
    start = trees.zeros(ball.scales)
    origin = evaluate(start)
    ascents = [maximise(evaluate, start, origin, p, ascent_steps)]
    for i in range(1, num_starts):
        begin = random_boundary(key, i, start, p)
        # The first evaluation of another start is one of its steps.
        ascents.append(maximise(evaluate, begin, evaluate(begin), p, ascent_steps - 1))
    best = _best_of(tuple(ascents), *origin, ball, p)
    return best._replace(num_gradients=1 + num_starts * ascent_steps)


@partial(jax.jit, static_argnums=4)
def _best_of(ascents, origin, gradient, ball, p):
    """The best of the ascents, the first of which began at the origin and never went down."""
    best = ascents[0]
    for ascent in ascents[1:]:
        better = ascent.value > best.value
        best = jax.tree.map(lambda new, old, b=better: jnp.where(b, new, old), ascent, best)
    steepest = trees.vdot(best.gradient, dual_direction(best.gradient, p))
    return SamSharpness(
        value=best.value - origin,
        perturbation=ball.perturb(best.point),
        loss=origin,
        first_step=ascents[0].first_value - origin,
        first_order=trees.vdot(gradient, dual_direction(gradient, p)),
        gap=steepest - trees.vdot(best.gradient, best.point),
        starts=jnp.stack([ascent.value for ascent in ascents]) - origin,
        num_gradients=0,
    )


def random_boundary(key: Any, index: int, structure: Tree, p: float) -> Tree:
    """A random point on the boundary of the unit p-ball, for the ascent number ``index``."""
    return _direction(probes.probe(key, structure, "normal", number=index), p)


_direction = partial(jax.jit, static_argnums=1)(dual_direction)


def check_ascents(ascent_steps: Any, num_starts: Any, key: Any) -> None:
    """Raise unless there are steps and starts, and a key for the random ones."""
    checks.check_count("ascent_steps", ascent_steps)
    checks.check_count("num_starts", num_starts)
    if num_starts > 1 and key is None:
        raise ValueError("num_starts > 1 starts at random points: pass key=jax.random.key(0).")


def check_p(p: Any) -> float:
    """``p`` as a number in [1, inf], or a clear error."""
    if isinstance(p, jax.core.Tracer):
        raise TypeError("p decides the program and cannot be traced: pass a Python number.")
    checks.check_scalar("p", p, minimum=1.0, infinite=True)
    return float(p)
