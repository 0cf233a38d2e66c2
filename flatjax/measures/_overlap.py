"""How much of a vector, or of a subspace, lies in the span of given directions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax.linalg.vectors._basis import gram
from flatjax.measures import _objective as objective


@reading.readable
class SubspaceOverlap(NamedTuple):
    r"""The overlap with a subspace.

    Attributes:
      value: the share in [0, 1]: of the squared norm of a vector, or of the dimensions of a
        subspace.
      cosines: the cosines of the principal angles, descending: one number for a vector, shape
        ``(min(j, k),)`` for a subspace.
      components: the cosines with each direction, both normalised: shape ``(k,)`` for a vector,
        ``(j, k)`` for a subspace.
      random: the expected value for random directions, $k / P$ or $\sqrt{j k} / P$.
    """

    value: jax.Array
    cosines: jax.Array
    components: jax.Array
    random: jax.Array

    __float__ = reading.as_float


def subspace_overlap(a: Any, basis: Any) -> SubspaceOverlap:
    r"""The share of a vector, or of a subspace, that lies in the span of given directions.

    For a vector $g$ (a gradient, an update) and orthonormal directions $V$ (say the top
    eigenvectors of the Hessian),

    $$f = \lVert V^\top g \rVert^2 / \lVert g \rVert^2,$$

    the share of the gradient in the top subspace; for a second stack of directions $U$,

    $$\frac{\mathrm{tr}(P_U P_V)}{\sqrt{\mathrm{tr} P_U\, \mathrm{tr} P_V}}
    = \lVert U^\top V \rVert_F^2 / \sqrt{j k},$$

    1 for equal and 0 for orthogonal subspaces (Gur-Ari, Roberts & Dyer 2018).
    Directions need not be orthonormal; dependent ones count once.

    Invariances: to the scale of ``a`` and of every direction, to the choice of basis of each span,
    and to rotations of the params.

    Cost: ``(1 + k) k`` inner products; no gradient. Memory: the Gram matrices only.

    Args:
      a: a pytree like the params (a vector), or one whose leaves all have a leading axis ``j`` more
        (a stack of directions).
      basis: a stack of ``k`` directions, leaves with a leading axis, as ``eigsh(...).vectors``.

    Returns:
      A [`SubspaceOverlap`][] of arrays.

    Raises:
      TypeError: for another tree.
      ValueError: for other shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> V = jnp.eye(4)[:2]
      >>> float(flatjax.subspace_overlap(jnp.array([3.0, 0.0, 4.0, 0.0]), V).value)
      0.36
      >>> float(flatjax.subspace_overlap(jnp.eye(4)[1:3], V).value)
      0.5

    References:
      Gur-Ari, Roberts and Dyer, "Gradient descent happens in a tiny subspace", 2018,
      arXiv:1812.04754.
    """
    single = objective.row_structure("basis", basis)
    is_vector = [jnp.ndim(x) for x in jax.tree.leaves(a)] == [
        v.ndim for v in jax.tree.leaves(single)
    ]
    stack = jax.tree.map(lambda x: x[None], a) if is_vector else a
    trees.check(jax.tree.map(lambda x: x[0], stack), single, "a")
    dims = trees.size(single)
    squares, cosines, components, ranks = _overlap(stack, basis)
    j, k = components.shape
    value, random = squares / jnp.sqrt(ranks[0] * ranks[1]), (j * k) ** 0.5 / dims
    if is_vector:
        value, random, cosines, components = squares, k / dims, cosines[0], components[0]
    return SubspaceOverlap(value, cosines, components, jnp.asarray(min(random, 1.0), value.dtype))


@jax.jit
def _overlap(a, b):
    """The sum of the squared cosines, the cosines, the inner products, and both ranks."""
    a, b = (jax.vmap(trees.normalized)(trees.cast(x, trees.structure_of(x)))[0] for x in (a, b))
    within = [gram(a, a), gram(b, b)]
    components = gram(a, b)
    whitened = jnp.linalg.multi_dot(
        [_whitening(within[0]).T, components, _whitening(within[1])], precision="highest"
    )
    cosines = jnp.linalg.svd(whitened, compute_uv=False)
    ranks = [jnp.maximum(_rank(products), 1).astype(cosines.dtype) for products in within]
    return jnp.square(cosines).sum(), cosines, components, ranks


def _spectrum(products):
    values, vectors = jnp.linalg.eigh(products)
    floor = products.shape[0] * jnp.finfo(products.dtype).eps * jnp.maximum(values[-1], 1)
    return values, vectors, floor


def _whitening(products):
    """The columns that make vectors with this Gram matrix orthonormal; zero for dependent ones."""
    values, vectors, floor = _spectrum(products)
    kept = values > floor
    scale = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, values, jnp.ones_like(values))), 0.0)
    return vectors * scale[None, :]


def _rank(products):
    values, _, floor = _spectrum(products)
    return (values > floor).sum()
