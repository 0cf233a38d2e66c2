"""Sharpness: the largest eigenvalue, plain and as an adaptive optimiser sees it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flatjax import _reading as reading
from flatjax.linalg import eigsh
from flatjax.operators._base import as_operator


@reading.readable
class Sharpness(NamedTuple):
    r"""The largest eigenvalue of an operator, against a threshold.

    Attributes:
      value: $\lambda_{\max}$.
      vector: its eigenvector, a unit vector like the params.
      residual_norms: $\lVert A u - \lambda u \rVert$, a scalar: some eigenvalue lies within this
        distance.
      converged: whether the residual is below the tolerance, as in [`Eigenpairs`][].
      ratio: ``value / threshold``: above 1 the optimiser is unstable along ``vector``. NaN without
        a threshold.
      num_products: products spent.
      noise_floor: the size below which an eigenvalue is noise.
      resolved: whether the value is above it.
    """

    value: jax.Array
    vector: Any
    residual_norms: jax.Array
    converged: jax.Array
    ratio: jax.Array
    num_products: int
    noise_floor: jax.Array
    resolved: jax.Array

    __float__ = reading.as_float


def sharpness(
    op: Any,
    *,
    key: jax.Array | None = None,
    v0: Any = None,
    threshold: ArrayLike | None = None,
    tol: float = 1e-3,
    max_products: int | None = None,
    structure: Any = None,
) -> Sharpness:
    r"""The largest eigenvalue of the Hessian, $\lambda_{\max}(H)$.

    Full-batch gradient descent with step $\eta$ diverges along the eigenvector where
    $\lambda_{\max} > 2 / \eta$, and in practice drives the sharpness to that value and holds it
    there (Cohen et al. 2021). Give [`stability_threshold`][] as ``threshold`` and ``ratio`` says
    which side of it the point lies on.

    Of an adaptive optimiser with the preconditioner D ([`preconditioner`][] reads it off an optax
    state) take $\lambda_{\max}(D^{-1/2} H D^{-1/2})$, ``sharpness(preconditioned(op, D))``: Adam
    with step $\eta$ and $\beta_1 = 0.9$ holds it at $38 / \eta$ (Cohen et al. 2022). ``vector`` is
    then the eigenvector $u$ of the symmetric matrix, and the params move along $D^{-1/2} u$.

    Invariances: to rotations of the params; scales with the loss. Not to rescaling of weights: a
    ReLU network can be given any sharpness without a change of its function (Dinh et al. 2017), for
    which see [`normalized_sharpness`][] and [`scale_invariant_sharpness`][]. The preconditioned one
    is, where D transforms as H does, $D \to S D S$ with $H \to S H S$; Adam's own D, of the
    dimension of a gradient, transforms with the first power of S only.

    Cost: that of [`eigsh`][] for one pair, some 10 to 30 products from a random start. From the
    last eigenvector it takes a few products to follow it, and as many again as from a random start
    to see whether another has overtaken it; [`track`][] does not look, for two products per step.

    Args:
      op: an operator, or a callable ``v -> A v`` with ``structure``.
      key: a PRNG key of a random start.
      v0: a start instead of a key: the eigenvector of the last step, or the gradient.
      threshold: the eigenvalue to compare with.
      tol: the residual relative to the eigenvalue.
      max_products: the most products to spend.
      structure: for a callable, a tree of arrays or ``ShapeDtypeStruct`` it acts on.

    Returns:
      A [`Sharpness`][]; ``vector`` is a pytree like the params, all else scalars.

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
      >>> P = flatjax.preconditioned(H, jnp.array([2.0, 1.0]))
      >>> round(float(flatjax.sharpness(P, key=jax.random.key(0)).value), 3)
      2.0

    References:
      Cohen, Kaur, Li, Kolter and Talwalkar, "Gradient descent on neural networks typically occurs
      at the edge of stability", 2021, arXiv:2103.00065; Cohen et al., "Adaptive gradient methods at
      the edge of stability", 2022, arXiv:2207.14484; Dinh, Pascanu, Bengio and Bengio, "Sharp
      minima can generalize for deep nets", 2017, arXiv:1703.04933.
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
        residual_norms=jnp.asarray(pairs.residual_norms[0]),
        converged=jnp.asarray(pairs.converged[0]),
        ratio=value / level.astype(value.dtype),
        num_products=pairs.num_products,
        noise_floor=pairs.noise_floor,
        resolved=jnp.asarray(pairs.resolved[0]),
    )


def _first(stack: Any) -> Any:
    return jax.tree.map(lambda a: a[0], stack)
