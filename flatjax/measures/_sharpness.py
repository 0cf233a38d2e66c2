"""Sharpness: the largest eigenvalue, plain and as an adaptive optimiser sees it."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from flatjax.linalg import eigsh
from flatjax.operators._base import Operator, as_operator
from flatjax.operators._precondition import preconditioned


class Sharpness(NamedTuple):
    r"""The largest eigenvalue of an operator, against a threshold.

    Attributes:
      value: $\lambda_{\max}$.
      vector: its eigenvector, a unit vector like the params.
      residual: $\lVert A u - \lambda u \rVert$: some eigenvalue lies within this distance.
      converged: whether the residual is below the tolerance.
      ratio: ``value / threshold``: above 1 the optimiser is unstable along ``vector``. NaN without
        a threshold.
      num_products: products spent.
    """

    value: jax.Array
    vector: Any
    residual: jax.Array
    converged: jax.Array
    ratio: jax.Array
    num_products: jax.Array


def sharpness(
    op: Any,
    *,
    key: chex.PRNGKey | None = None,
    v0: Any = None,
    threshold: chex.Numeric | None = None,
    tol: float = 1e-3,
    max_products: int | None = None,
    structure: Any = None,
) -> Sharpness:
    r"""The largest eigenvalue of the Hessian, $\lambda_{\max}(H)$.

    Full-batch gradient descent with step $\eta$ diverges along the eigenvector where
    $\lambda_{\max} > 2 / \eta$, and in practice drives the sharpness to that value and holds it
    there (Cohen et al. 2021, arXiv:2103.00065). Give [`stability_threshold`][] as ``threshold`` and
    ``ratio`` says which side of it the point lies on.

    Invariances: to rotations of the params; scales with the loss. Not to rescaling of weights: a
    ReLU network can be given any sharpness without a change of its function (Dinh et al. 2017,
    arXiv:1703.04933), for which see [`normalized_sharpness`][] and
    [`scale_invariant_sharpness`][].

    Cost: of [`eigsh`][] for one pair, some 10 to 30 products from a random start. From the last
    eigenvector few to follow it, and as many again as from a random start to see whether another
    has overtaken it; [`track`][] does not look, for two products a step.

    Args:
      op: an operator, or a callable ``v -> A v`` with ``structure``.
      key: a PRNG key of a random start.
      v0: a start instead of a key: the eigenvector of the last step, or the gradient.
      threshold: the eigenvalue to compare with.
      tol: the residual relative to the eigenvalue.
      max_products: a bound on the products.
      structure: for a callable, a tree of arrays or ``ShapeDtypeStruct`` it acts on.

    Returns:
      A [`Sharpness`][].

    Raises:
      TypeError: if ``op`` is neither an operator nor callable.
      ValueError: unless exactly one of ``key`` and ``v0`` is given.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> curvature = jnp.array([4.0, 1.0])
      >>> H = flatjax.hessian(lambda w, _: 0.5 * (curvature * w**2).sum(), jnp.ones(2), None)
      >>> threshold = flatjax.stability_threshold("gd", 0.4)  # 2 / 0.4 = 5
      >>> result = flatjax.sharpness(H, key=jax.random.key(0), threshold=threshold)
      >>> round(float(result.value), 3), round(float(result.ratio), 3)
      (4.0, 0.8)
    """
    op = as_operator(op, structure)
    # A given start may be blind to the top eigenvector, by a symmetry; a random one is not.
    verify = v0 is not None
    pairs = eigsh(
        op, 1, which="LA", key=key, v0=v0, tol=tol, max_products=max_products, verify=verify
    )
    value = jnp.asarray(pairs.values[0])
    level = jnp.asarray(jnp.nan if threshold is None else threshold)
    return Sharpness(
        value=value,
        vector=_first(pairs.vectors),
        residual=jnp.asarray(pairs.residual_norms[0]),
        converged=jnp.asarray(pairs.converged[0]),
        ratio=value / level.astype(value.dtype),
        num_products=jnp.asarray(pairs.num_products),
    )


def preconditioned_sharpness(
    op: Operator,
    diagonal: Any,
    *,
    key: chex.PRNGKey | None = None,
    v0: Any = None,
    threshold: chex.Numeric | None = None,
    tol: float = 1e-3,
    max_products: int | None = None,
) -> Sharpness:
    r"""The largest eigenvalue of the preconditioned Hessian, $\lambda_{\max}(D^{-1/2} H D^{-1/2})$.

    The sharpness that decides whether an adaptive optimiser is stable: Adam with step $\eta$ and
    $\beta_1 = 0.9$ holds it at $38 / \eta$ (Cohen et al. 2022, arXiv:2207.14484).

    Invariances: where D transforms as H does, to any rescaling of single weights,
    $D \to S D S$ with $H \to S H S$. Adam's own D, of the dimension of a gradient, transforms with
    the first power of S only.

    Cost: as [`sharpness`][].

    Args:
      op: the operator H.
      diagonal: the preconditioner D, a tree like the params: [`preconditioner`][] reads it off an
        optax state.
      key: a PRNG key of a random start.
      v0: a start instead of a key: the eigenvector of the last step.
      threshold: the eigenvalue to compare with, from [`stability_threshold`][].
      tol: the residual relative to the eigenvalue.
      max_products: a bound on the products.

    Returns:
      A [`Sharpness`][]; ``vector`` is the eigenvector $u$ of the symmetric matrix, the params move
      along $D^{-1/2} u$.

    Raises:
      TypeError: if ``op`` is no operator, or ``diagonal`` another tree.
      ValueError: for entries of ``diagonal`` that are not positive, or unless exactly one of
        ``key`` and ``v0`` is given.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> curvature = jnp.array([4.0, 9.0])
      >>> H = flatjax.hessian(lambda w, _: 0.5 * (curvature * w**2).sum(), jnp.ones(2), None)
      >>> D = jnp.array([1.0, 3.0])
      >>> result = flatjax.preconditioned_sharpness(H, D, key=jax.random.key(0))
      >>> round(float(result.value), 3)
      4.0
    """
    return sharpness(
        preconditioned(op, diagonal), key=key, v0=v0, threshold=threshold, tol=tol,
        max_products=max_products,
    )  # fmt: skip


def _first(stack: Any) -> Any:
    return jax.tree.map(lambda a: a[0], stack)
