r"""The largest curvature over the unit ball of another norm than the Euclidean one.

A step goes from the point $d$ of the ball to the point $s$ of it at which the linear model
$\langle H d, s \rangle$ is largest (the conditional gradient of Frank and Wolfe 1956), or to the
best point between the two, in closed form. Where the function curves upwards along the way that is
$s$ itself, the generalised power method; in a ball with corners it then ends after finitely many
steps. The value never falls. One product per step.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax._balls import dual_direction
from flatjax._trees import Tree
from flatjax.linalg.vectors import _probes as probes
from flatjax.operators._base import Operator, as_operator


@reading.readable
class GeneralizedSharpness(NamedTuple):
    r"""The largest curvature found over the unit ball of a norm.

    Attributes:
      value: $d^\top H d$ at the best point found, a lower bound of the maximum.
      vector: the point $d$, a pytree like the params.
      gap: the most that the linear model at that point still rises within the ball, 0 where the
        point is stationary; not the distance from the maximum, of which there may be several.
      starts: the values from all starts, shape ``(num_starts,)``.
      converged: whether ``gap`` is at most ``tol`` times ``value``.
      num_products: products spent.
    """

    value: jax.Array
    vector: Any
    gap: jax.Array
    starts: jax.Array
    converged: jax.Array
    num_products: int

    __float__ = reading.as_float


def generalized_sharpness(
    op: Any,
    params: Any,
    *,
    norm: str = "spectral",
    key: jax.Array,
    num_starts: int = 4,
    tol: float = 1e-3,
    max_products: int = 200,
) -> GeneralizedSharpness:
    r"""The sharpness that steepest descent in another norm sees.

    $$\max_{\lVert d \rVert \le 1} d^\top H d$$

    (Islamov, Crawshaw, Cohen and Gower 2026). Of the Euclidean norm it is $\lambda_{\max}(H)$;
    steepest descent in the norm, with the step $\eta$, is stable while it is below $2 / \eta$. The
    norms, and the descent that is steepest in them:

    - ``"max"``: $\max_i |d_i|$; sign descent. An NP-hard maximum, of which a local one is found.
    - ``"spectral"``: the largest singular value of any leaf, as a matrix of its last axis against
      all others (a vector is one column); spectral descent, Muon without momentum.
    - ``"block"``: the sum of the Euclidean norms of the leaves; block coordinate descent, which
      moves the leaf of the largest gradient. For a positive semi-definite H the maximum is the
      largest $\lambda_{\max}$ of the leaves' diagonal blocks.

    The answer is a lower bound: the best of several ascents from random points of the ball.

    Invariances: to whatever keeps the norm (permutations and signs; rotations of a matrix on either
    side); scales with the loss.

    Cost: a product per step, 5 to 50 of them per start; ``"spectral"`` a singular value
    decomposition of every leaf beside each. Memory of four vectors.

    Args:
      op: an operator, or a callable ``v -> H v`` on trees like the params.
      params: a pytree whose leaves say what the blocks and matrices are.
      norm: ``"spectral"``, ``"max"`` or ``"block"``.
      key: a PRNG key of the starts.
      num_starts: how many ascents.
      tol: the gap relative to the value at which an ascent ends.
      max_products: the most products to spend on all ascents together.

    Returns:
      A [`GeneralizedSharpness`][].

    Raises:
      TypeError: if ``op`` is neither, or ``params`` has another tree structure.
      ValueError: for another norm, params of other shapes, or fewer than two products per start.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> H = jnp.array([[2.0, -1.0], [-1.0, 3.0]])
      >>> w = jnp.zeros(2)
      >>> found = flatjax.generalized_sharpness(
      ...     lambda v: H @ v, w, norm="max", key=jax.random.key(0)
      ... )
      >>> float(found.value), bool(found.converged)  # at (1, -1)
      (7.0, True)

    References:
      Islamov, Crawshaw, Cohen and Gower, "Non-Euclidean gradient descent operates at the edge of
      stability", 2026, arXiv:2603.05002; Journee, Nesterov, Richtarik and Sepulchre, "Generalized
      power method for sparse principal component analysis", JMLR 2010.
    """
    op = as_operator(op, None if isinstance(op, Operator) else params)
    trees.check(params, op.structure, "params")
    checks.check_choice("norm", norm, tuple(_CORNERS))
    key = checks.check_key(key)
    checks.check_count("num_starts", num_starts)
    checks.check_tolerance(tol)
    checks.check_count("max_products", max_products, 2 * num_starts)
    most, product = max_products // num_starts, loops.product(op)

    def ascended(index):
        point = _corner(probes.probe(key, op.structure, "normal", number=index), norm)
        state = _start(point, product(point), tol, norm)
        return loops.until(
            lambda state: state.done,
            lambda state: _advanced(state, product(state.towards), tol, most, norm),
            state,
        )

    ends = [ascended(i) for i in range(num_starts)]
    best = _best(tuple(ends))
    spent = sum(end.num_products for end in ends)
    return GeneralizedSharpness(
        value=best.value,
        vector=best.point,
        gap=best.gap,
        starts=jnp.stack([end.value for end in ends]),
        converged=_settled(best, tol),
        num_products=spent if loops.is_traced(spent) else int(spent),
    )


class Ascent(NamedTuple):
    """The state of an ascent: where it stands, and where it looks next."""

    point: Tree
    image: Tree  # H times the point
    towards: Tree  # where the linear model is largest
    value: jax.Array
    gap: jax.Array
    num_products: jax.Array
    done: jax.Array


def _settled(state, tol):
    return state.gap <= jnp.asarray(tol, state.gap.dtype) * state.value


def _looked(point, image, num_products, tol, most, norm):
    """The state at a point whose product is known."""
    towards, value = _CORNERS[norm](image), trees.vdot(point, image)
    gap = 2 * (trees.vdot(image, towards) - value)
    state = Ascent(point, image, towards, value, gap, num_products, jnp.asarray(False))
    # A gap that is no number ends the ascent, too.
    open_ = (gap > 0) & ~_settled(state, tol) & (num_products < most)
    return state._replace(done=~open_)


@partial(jax.jit, static_argnums=3)
def _start(point, image, tol, norm):
    image = trees.cast(image, point)
    return _looked(point, image, jnp.ones((), jnp.int32), tol, 2, norm)


@partial(jax.jit, static_argnums=4)
def _advanced(state, image, tol, most, norm):
    """One step, of the length at which the quadratic is largest on the way."""
    image = trees.cast(image, state.image)
    slope = state.gap / 2
    curvature = trees.vdot(state.towards, image) - 2 * slope - state.value
    one = jnp.ones_like(slope)
    length = jnp.where(curvature < 0, jnp.minimum(one, slope / -curvature), one)

    def between(a, b):
        share = length.astype(a.dtype)
        return (1 - share) * a + share * b

    point = jax.tree.map(between, state.point, state.towards)
    image = jax.tree.map(between, state.image, image)
    return _looked(point, image, state.num_products + 1, tol, most, norm)


@jax.jit
def _best(ends):
    best = ends[0]
    for end in ends[1:]:
        better = end.value > best.value
        best = jax.tree.map(lambda new, old, b=better: jnp.where(b, new, old), end, best)
    return best


def _spectral(g):
    """The product of the singular vectors of every leaf: its nearest partial isometry."""

    def leaf(a):
        matrix = a.reshape(-1, a.shape[-1]) if a.ndim > 1 else a.reshape(-1, 1)
        left, _, right = jnp.linalg.svd(matrix, full_matrices=False)
        return jnp.matmul(left, right, precision="highest").reshape(a.shape)

    return jax.tree.map(leaf, g)


def _block(g):
    """The direction of the leaf with the largest norm, zero in all others."""
    leaves, treedef = jax.tree.flatten(g)
    units, norms = zip(*map(trees.normalized, leaves), strict=True)
    dtype = trees.dtype(g)
    largest = jnp.argmax(jnp.stack([n.astype(dtype) for n in norms]))
    kept = [jnp.where(i == largest, a, jnp.zeros_like(a)) for i, a in enumerate(units)]
    return treedef.unflatten(kept)


# The point of the unit ball at which a linear function is largest.
_CORNERS = {
    "spectral": _spectral,
    "max": lambda g: dual_direction(g, jnp.inf),
    "block": _block,
}
_corner = partial(jax.jit, static_argnums=1)(lambda g, norm: _CORNERS[norm](g))
