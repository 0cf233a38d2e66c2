"""What a few eigenpairs say of a matrix, as an operator that can be solved and sampled."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax import _texts as texts
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _probes as probes
from flatjax.measures import _objective as objective
from flatjax.operators._base import Operator, operator


@operator
class LowRank(Operator):
    r"""The matrix $A = V \Lambda V^\top + \delta I$; made by [`low_rank`][].

    An operator: ``low @ v`` is the product.

    Attributes:
      values: the diagonal of $\Lambda$, shape ``(k,)``.
      vectors: the orthonormal columns of V, a tree with leading axis ``k``.
      damping: $\delta$.
    """

    values: jax.Array
    vectors: Tree
    damping: Any

    @property
    def structure(self):
        return objective.row_structure("vectors", self.vectors)

    def mv(self, v):
        return self._power(v, 1.0)

    def _facts(self):
        return {"rank": f"{self.values.size:,}", "damping": texts.text(self.damping)}

    def solve(self, v: Tree) -> Tree:
        """The product with the inverse, $A^{-1} v$."""
        return self._power(v, -1.0)

    def sqrt(self, v: Tree) -> Tree:
        r"""The product with the symmetric square root, $A^{1/2} v$."""
        return self._power(v, 0.5)

    def sample(self, *, key: jax.Array, num: int | None = None) -> Tree:
        r"""A draw from the normal distribution of mean zero whose precision is A.

        Of covariance $A^{-1}$: add the params, and it is one of the Laplace approximation.

        Args:
          key: a PRNG key.
          num: how many draws, along a leading axis; ``None`` for a single one without.

        Returns:
          A tree like the vectors.
        """
        key = checks.check_key(key)
        if num is None:
            return self._power(probes.probe(key, self.structure, "normal"), -0.5)
        checks.check_count("num", num)
        draws = probes.block(jax.random.split(key, num), self.structure, "normal")
        return jax.vmap(lambda z: self._power(z, -0.5))(draws)

    def logdet(self) -> jax.Array:
        r"""The logarithm of the determinant, $\sum_i \log(\lambda_i + \delta)$ over all of them."""
        damping = jnp.asarray(self.damping, self.values.dtype)
        rest = float(self.size - self.values.size)
        return jnp.log(self.values + damping).sum() + rest * jnp.log(damping)

    def _power(self, v, exponent):
        trees.check(v, self.structure)
        return _power(self, v, exponent)


@partial(jax.jit, static_argnums=2)
def _power(low, v, exponent):
    v = trees.cast(v, low.structure)
    damping = jnp.asarray(low.damping, low.values.dtype)
    inside = bases.coefficients(low.vectors, v)[0]
    # Twice: rounding of the first pass lies along the vectors, where the inverse damping, which may
    # be many times the inverse eigenvalue, would magnify it.
    rest = bases.project_out(low.vectors, bases.project_out(low.vectors, v))
    known = bases.combine(low.vectors, inside * (low.values + damping) ** exponent)
    return trees.axpy(damping**exponent, rest, known)


def low_rank(pairs: Any, *, damping: ArrayLike) -> LowRank:
    r"""The matrix of a few known eigenpairs and a damping for all the rest.

    $$A = V \Lambda V^\top + \delta I$$

    with the eigenvectors V and eigenvalues $\Lambda$ of ``pairs``. As the precision of a
    posterior (a Laplace approximation: the curvature times the number of examples, plus the
    prior's precision $\delta$) it is sampled from; as an approximation of a damped Hessian
    it is solved with, by itself or as the preconditioner of [`inverse`][]:
    ``inverse(H, damping=d, preconditioner=as_operator(low.solve, params))``.

    Products, solves, roots and draws are exact for this A, up to rounding, however small the
    damping is beside the eigenvalues. What the pairs leave out counts as zero plus the damping.

    Cost: six passes over the ``k`` vectors per product or solve; no product of the operator.

    Args:
      pairs: what [`eigsh`][] returns, or anything with ``values`` and orthonormal ``vectors``.
      damping: $\delta$, positive.

    Returns:
      A [`LowRank`][], a pytree and an operator with ``solve``, ``sqrt``, ``sample`` and ``logdet``.

    Raises:
      TypeError: if ``pairs`` has no values and vectors.
      ValueError: unless the damping and all damped eigenvalues are positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> d = jnp.array([9.0, 4.0, 0.0, 0.0])
      >>> pairs = flatjax.eigsh(lambda v: d * v, 2, key=jax.random.key(0), structure=d)
      >>> low = flatjax.low_rank(pairs, damping=1.0)
      >>> low.solve(jnp.ones(4)).round(3).tolist()
      [0.10, 0.20, 1.0, 1.0]
      >>> round(float(low.logdet()), 3)  # log(10 * 5)
      3.912
    """
    if not (hasattr(pairs, "values") and hasattr(pairs, "vectors")):
        raise TypeError(
            "pairs must have values and vectors, as flatjax.eigsh returns them, got "
            f"{type(pairs).__name__}."
        )
    checks.check_scalar("damping", damping, above=0.0)
    vectors = trees.cast(pairs.vectors, trees.structure_of(pairs.vectors))
    values = jnp.asarray(pairs.values).astype(trees.dtype(vectors))
    if values.shape != (bases.size(vectors),):
        raise ValueError(
            f"pairs has {bases.size(vectors)} vectors and values of shape {values.shape}."
        )
    low = LowRank(values, vectors, jnp.asarray(damping, values.dtype))
    damped = values + low.damping
    if not loops.is_traced(damped) and not bool((damped > 0).all()):
        raise ValueError(
            f"all damped eigenvalues must be positive, got {damped.min()}: raise the damping above "
            "the negative of the least, or leave the negative ones out."
        )
    return low
