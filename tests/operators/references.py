"""Dense float64 references of every operator, written out from the textbook formulas.

Nothing here calls flatjax's losses or operators to make a reference: the per-example Hessians,
Jacobians and gradients of a network are stacked by ``jax.hessian`` and ``jax.jacobian``, and every
matrix is a weighted sum of them in NumPy.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import flatjax
from flatjax import _trees as trees
from tests.models import NETWORKS

OPERATORS = (
    "hessian",
    "ggn",
    "fisher_sampled",
    "fisher_empirical",
    "covariance",
    "second_moment",
)
FISHER_KEY = 5  # the seed of the sampled Fisher


class Reference(NamedTuple):
    """Per-example derivatives at the params, in float64 NumPy.

    Attributes:
      gradients: of the loss of every example, ``(n, P)``.
      hessians: of the loss of every example, ``(n, P, P)``.
      jacobians: of the outputs, ``(n, positions, classes, P)``.
      probabilities: the softmax of the outputs, ``(n, positions, classes)``.
      mask: which positions count, ``(n, positions)``.
    """

    gradients: np.ndarray
    hessians: np.ndarray
    jacobians: np.ndarray
    probabilities: np.ndarray
    mask: np.ndarray


@functools.cache
def reference(name: str) -> Reference:
    """The derivatives of softmax cross-entropy on one of the networks."""
    with jax.enable_x64(True):
        network = NETWORKS[name]
        params, (x, y) = network.cast(jnp.float64)
        flat, unravel = ravel_pytree(params)
        y = y.reshape(len(y), -1)

        def outputs(w):
            z = network.apply(unravel(w), x)
            return z.reshape(z.shape[0], -1, z.shape[-1])

        def losses(w):
            z = outputs(w)
            picked = jnp.take_along_axis(z, jnp.maximum(y, 0)[..., None], axis=-1)[..., 0]
            values = jnp.where(y >= 0, jnp.log(jnp.exp(z).sum(axis=-1)) - picked, 0.0)
            return values.sum(axis=1) / (y >= 0).sum(axis=1).astype(z.dtype)

        @jax.jit
        def derivatives(w):
            return jax.jacrev(losses)(w), jax.hessian(losses)(w), jax.jacrev(outputs)(w), outputs(w)

        gradients, hessians, jacobians, z = map(np.asarray, derivatives(flat))
        p = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
        return Reference(gradients, hessians, jacobians, p, np.asarray(y >= 0))


def ggns(ref: Reference) -> np.ndarray:
    """``J_i^T H_i J_i`` of every example, the mean over its positions: ``(n, P, P)``."""
    p = ref.probabilities
    blocks = np.einsum("nti,ij->ntij", p, np.eye(p.shape[-1])) - np.einsum("nti,ntj->ntij", p, p)
    return _mean_over_positions(ref, blocks)


def sampled_fishers(ref: Reference, draws: np.ndarray) -> np.ndarray:
    """``J_i^T r r^T J_i`` of every example for drawn ids ``(samples, n, ...)``: ``(n, P, P)``."""
    draws = draws.reshape(len(draws), *ref.mask.shape)
    r = ref.probabilities - np.eye(ref.probabilities.shape[-1])[np.maximum(draws, 0)]
    return _mean_over_positions(ref, np.einsum("snti,sntj->ntij", r, r) / len(draws))


def _mean_over_positions(ref, blocks):
    scale = ref.mask / ref.mask.sum(axis=1, keepdims=True)
    return np.einsum("nt,ntip,ntij,ntjq->npq", scale, ref.jacobians, blocks, ref.jacobians)


def mean(terms: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The weighted mean over the leading axis."""
    return np.average(terms, axis=0, weights=weights)


def covariance(
    gradients: np.ndarray, weights: np.ndarray | None = None, *, centered: bool = True
) -> np.ndarray:
    """The covariance of stacked gradients with the biased normalisation, or the second moment."""
    if centered:
        gradients = gradients - mean(gradients, weights)
    return mean(gradients[:, :, None] * gradients[:, None, :], weights)


def dense(kind: str, ref: Reference, weights=None, draws=None) -> np.ndarray:
    """The matrix that the operator of this kind must be equal to."""
    match kind:
        case "hessian":
            return mean(ref.hessians, weights)
        case "ggn":
            return mean(ggns(ref), weights)
        case "fisher_sampled":
            return mean(sampled_fishers(ref, np.asarray(draws)), weights)
        case "fisher_empirical" | "second_moment":
            return covariance(ref.gradients, weights, centered=False)
        case "covariance":
            return covariance(ref.gradients, weights)
    raise KeyError(kind)


@functools.cache
def losses_fn(apply):
    """The per-example losses of a model; one function object a model, to share programs."""
    return lambda params, batch: flatjax.softmax_cross_entropy(apply(params, batch[0]), batch[1])


def make(kind: str, apply, params, batch, **options):
    """The operator of this kind, for softmax cross-entropy."""
    loss = flatjax.softmax_cross_entropy
    match kind:
        case "hessian":
            return flatjax.hessian(losses_fn(apply), params, batch, **options)
        case "ggn":
            return flatjax.ggn(apply, loss, params, batch, **options)
        case "fisher_sampled":
            key = jax.random.key(FISHER_KEY)
            options = {"num_samples": 2} | options
            return flatjax.fisher(apply, loss, params, batch, kind="sampled", key=key, **options)
        case "fisher_empirical":
            return flatjax.fisher(apply, loss, params, batch, kind="empirical", **options)
        case "covariance" | "second_moment":
            centered = kind == "covariance"
            return flatjax.gradient_covariance(
                losses_fn(apply), params, batch, centered=centered, **options
            )
    raise KeyError(kind)


def assert_close(actual, desired, tolerance: float) -> None:
    """Equal up to ``tolerance`` times the largest entry of the reference."""
    actual, desired = np.asarray(actual, np.float64), np.asarray(desired)
    assert actual.shape == desired.shape
    np.testing.assert_allclose(actual, desired, rtol=0, atol=tolerance * np.abs(desired).max())


def assert_product(op, matrix, tolerance: float, *, linearized: bool = True) -> None:
    """A product with a random vector is that of the matrix, plain and (unless told) linearised.

    Beside the dense matrices of ``test_dense.py``: a random vector sees every entry, and a product
    compiles in half the time.
    """
    zeros = trees.zeros(op.structure)
    flat, unravel = ravel_pytree(zeros)
    row = np.random.default_rng(0).normal(size=flat.size).astype(flat.dtype)
    for operator in (op, op.linearize()) if linearized else (op,):
        product = np.asarray(ravel_pytree(operator @ unravel(jnp.asarray(row)))[0])
        # Relative to the largest entry of |A| |v|, what rounding scales with.
        scale = (np.abs(matrix) @ np.abs(row)).max()
        np.testing.assert_allclose(product, matrix @ row, rtol=0, atol=tolerance * scale)


# float64: the references are exact to some 1e-15 of the largest entry; 1e-9 is the promise.
FLOAT64 = 1e-9
# float32: an entry is a sum of at most some 100 rounded products of two or three Jacobian entries,
# each with an error of a few 6e-8; errors add up like a random walk: 10 * 10 * 6e-8.
FLOAT32 = 6e-6


def tolerance(dtype) -> float:
    """The bound for matrices computed in this dtype, relative to the largest entry."""
    return FLOAT64 if jnp.dtype(dtype) == jnp.float64 else FLOAT32
