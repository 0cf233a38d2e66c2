"""How alike two curvature matrices are: ratio of traces and cosine, without forming them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax.linalg.vectors import _basis as basis
from flatjax.linalg.vectors import _probes as probes
from flatjax.measures import _objective as objective
from flatjax.measures._jackknife import jackknife_variance
from flatjax.operators._base import Operator, as_operator


@reading.readable
class Alignment(NamedTuple):
    r"""How alike two symmetric matrices A and B are.

    Attributes:
      ratio: $r = \mathrm{tr} A / \mathrm{tr} B$.
      ratio_standard_error: by the jackknife over probes; 0 where exact.
      cosine: $s = \mathrm{tr}(A B) / \sqrt{\mathrm{tr}(A^2)\,\mathrm{tr}(B^2)}$.
      cosine_standard_error: by the jackknife over probes; 0 where exact.
      traces: $\mathrm{tr} A$ and $\mathrm{tr} B$, shape ``(2,)``.
      squared_norms: $\lVert A \rVert_F^2$ and $\lVert B \rVert_F^2$, shape ``(2,)``.
      inner_product: $\mathrm{tr}(A B)$.
      num_products: products spent, those of A and of B together.
    """

    ratio: jax.Array
    ratio_standard_error: jax.Array
    cosine: jax.Array
    cosine_standard_error: jax.Array
    traces: jax.Array
    squared_norms: jax.Array
    inner_product: jax.Array
    num_products: int


def alignment(
    a: Any,
    b: Any,
    *,
    key: jax.Array | None = None,
    num_probes: int = 32,
    method: str = "hutchinson",
    structure: Any = None,
) -> Alignment:
    r"""The ratio of traces and the cosine of two operators, without forming them.

    $$r(A, B) = \frac{\mathrm{tr} A}{\mathrm{tr} B}, \qquad
    s(A, B) = \frac{\mathrm{tr}(A B)}{\sqrt{\mathrm{tr}(A^2)\,\mathrm{tr}(B^2)}}$$

    (Thomas et al. 2020, for the Hessian H, the Fisher information F and the covariance C of the
    gradients; their TIC proxy is $r(C, F)$ or $r(C, H)$). With Rademacher probes z,
    $\langle z, A z \rangle$, $\langle A z, B z \rangle$ and $|A z|^2$ have the means
    $\mathrm{tr} A$, $\mathrm{tr}(A B)$ and $\mathrm{tr}(A^2)$ (Hutchinson 1990): the same probes
    serve all five, so that their noise largely cancels in s. Where a few large eigenvalues carry
    the norms the estimate of s is noisy and, as a ratio, biased by the order of its squared
    standard error; for matrices of low rank with known factors use [`gradient_alignment`][].

    Invariances: s to the scales of A and B, r to a common one; both to rotations of the params, not
    to rescaling of weights. s(A, A) = r(A, A) = 1 exactly.

    Cost: ``num_probes`` products of each operator and the memory of three vectors; ``"exact"``
    takes ``P`` products of each and two dense matrices.

    Args:
      a: an operator, or a callable ``v -> A v`` with ``structure``.
      b: an operator on the same params, or a callable.
      key: the PRNG key of the probes; ``"exact"`` takes none.
      num_probes: probes, at least two for a standard error.
      method: ``"hutchinson"`` or ``"exact"``.
      structure: for callables, a tree of arrays or ``ShapeDtypeStruct`` they act on.

    Returns:
      An [`Alignment`][] of scalars and pairs.

    Raises:
      TypeError: if ``a`` or ``b`` is neither, or they act on different trees.
      ValueError: for an unknown method, a missing or unused key, no probe, other shapes, or more
        than 20,000 params with ``"exact"``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> A = flatjax.operators.as_operator(lambda v: jnp.array([3.0, 4.0]) * v, jnp.ones(2))
      >>> B = flatjax.operators.as_operator(lambda v: jnp.array([1.0, 0.0]) * v, jnp.ones(2))
      >>> result = flatjax.alignment(A, B, method="exact")
      >>> round(float(result.ratio), 4), round(float(result.cosine), 4)
      (7.0, 0.6)
      >>> float(flatjax.alignment(A, B, key=jax.random.key(0)).ratio)  # diagonal: no variance
      7.0

    References:
      Thomas et al., "On the interplay between noise and curvature and its effect on optimization
      and generalization", AISTATS 2020, arXiv:1906.07774; Hutchinson, "A stochastic estimator of
      the trace of the influence matrix for Laplacian smoothing splines", 1990.
    """
    checks.check_choice("method", method, ("hutchinson", "exact"))
    checks.check_count("num_probes", num_probes)
    if (key is not None) != (method == "hutchinson"):
        raise ValueError('method="hutchinson" needs key=, and "exact" takes none.')
    given = lambda op: None if isinstance(op, Operator) else structure  # noqa: E731
    a, b = as_operator(a, given(a)), as_operator(b, given(b))
    trees.check(b.structure, a.structure, "the vectors of b")
    if key is None:  # exact
        return _certain(_dense_moments(a.to_dense(), b.to_dense()), 2 * a.size)
    apply_a, apply_b = loops.product(a), loops.product(b)

    def body(i, moments):
        z = probes.probe(key, a.structure, number=i)
        return _add_moments(moments, jnp.asarray(i), z, apply_a(z), apply_b(z))

    dtype = trees.dtype(a.structure)
    moments = objective.repeat(num_probes, body, jnp.zeros((num_probes, 5), dtype))
    return _from_probes(moments)._replace(num_products=2 * num_probes)


def gradient_alignment(a: Any, b: Any) -> Alignment:
    r"""The alignment of two matrices given by their factors, exactly.

    For $A = \frac{1}{m} \sum_i a_i a_i^\top$ and $B = \frac{1}{l} \sum_j b_j b_j^\top$,

    $$\mathrm{tr} A = \frac{1}{m} \sum_i |a_i|^2, \qquad
    \mathrm{tr}(A B) = \frac{1}{m l} \sum_{ij} \langle a_i, b_j \rangle^2,$$

    from Gram matrices alone. With per-example gradients at the true labels for $a$ and at labels
    drawn from the model for $b$ these are C (uncentred) and the sampled Fisher of Thomas et al.
    2020; subtract the mean gradient for the centred C.

    Cost: ``m^2 + m l + l^2`` inner products; no gradient.

    Args:
      a: the rows $a_i$, a pytree like the params with a leading axis ``m``
        ([`per_example_gradients`][]).
      b: the rows $b_j$, with a leading axis ``l``.

    Returns:
      An [`Alignment`][] with zero standard errors and no products.

    Raises:
      TypeError: for another tree.
      ValueError: for other shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> result = flatjax.gradient_alignment(jnp.eye(3)[:2], jnp.eye(3)[1:])
      >>> float(result.ratio), float(result.cosine)
      (1.0, 0.5)

    References:
      Thomas et al., "On the interplay between noise and curvature and its effect on optimization
      and generalization", AISTATS 2020, arXiv:1906.07774.
    """
    trees.check(objective.row_structure("b", b), objective.row_structure("a", a), "a row of b")
    return _certain(_row_moments(a, b), 0)


@jax.jit
def _row_moments(a, b):
    m, n = basis.size(a), basis.size(b)
    of_a, between, of_b = basis.gram(a, a) / m, basis.gram(a, b), basis.gram(b, b) / n
    inner = jnp.square(between).sum() / (m * n)
    squares = [jnp.square(of_a).sum(), jnp.square(of_b).sum()]
    return jnp.stack([jnp.trace(of_a), jnp.trace(of_b), inner, *squares])


@jax.jit
def _dense_moments(a, b):
    traces = [jnp.trace(a), jnp.trace(b)]
    return jnp.stack([*traces, (a * b).sum(), jnp.square(a).sum(), jnp.square(b).sum()])


def _certain(moments, num_products):
    ratio, cosine = _ratios(moments)
    zero = jnp.zeros_like(ratio)
    return Alignment(ratio, zero, cosine, zero, moments[:2], moments[3:], moments[2], num_products)


@jax.jit
def _add_moments(moments, i, z, az, bz):
    pairs = ((z, az), (z, bz), (az, bz), (az, az), (bz, bz))
    return moments.at[i].set(jnp.stack([trees.vdot(*p) for p in pairs]).astype(moments.dtype))


def _ratios(moments):
    trace_a, trace_b, inner, square_a, square_b = jnp.moveaxis(moments, -1, 0)
    # Not sqrt of the product, which overflows in float32 for norms of 1e10.
    return trace_a / trace_b, inner / (jnp.sqrt(square_a) * jnp.sqrt(square_b))


@jax.jit
def _from_probes(moments):
    count = moments.shape[0]
    means = moments.mean(axis=0)
    ratio, cosine = _ratios(means)
    # 0 / 0 for a single probe.
    left_out = _ratios((moments.sum(axis=0, keepdims=True) - moments) / (count - 1))
    errors = [jnp.sqrt(jackknife_variance(x)) for x in left_out]
    return Alignment(ratio, errors[0], cosine, errors[1], means[:2], means[3:], means[2], 0)
