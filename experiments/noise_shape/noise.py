"""Classes of gradient noise: of one mean and trace, or of one covariance, and what each has.

All estimate the mean gradient of n examples as a batch of S would. C is the covariance of the
examples' gradients about their mean, K the mean of their outer products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flatjax import per_example_gradients

CLASSES = ("descent", "isotropic", "diagonal", "gaussian", "bernoulli", "minibatch")
SAMPLED = ("gaussian", "bernoulli", "minibatch")
"""Those that weight the examples at random: their noise is as SGD's."""


def covariance(kind: str, gradients: np.ndarray, size: int) -> np.ndarray:
    """The covariance of a class of noise.

    Args:
      kind: one of `CLASSES`.
      gradients: (n, parameters) of the examples.
      size: S.

    Returns:
      (parameters, parameters): 0; tr C / (S p) I; diag C / S; C / S, Gaussian or
      C (n - S) / (S (n - 1)) of batches without replacement; K (1 / S - 1 / n) where each example
      is taken with probability S / n.
    """
    n, p = gradients.shape
    centred = gradients - gradients.mean(0)
    c = centred.T @ centred / n
    return {
        "descent": lambda: np.zeros((p, p)),
        "isotropic": lambda: np.trace(c) / (size * p) * np.eye(p),
        "diagonal": lambda: np.diag(np.diag(c)) / size,
        "gaussian": lambda: c / size,
        "bernoulli": lambda: gradients.T @ gradients / n * (1 / size - 1 / n),
        "minibatch": lambda: c * (n - size) / (size * (n - 1)),
    }[kind]()


def weights(kind: str, key: jax.Array, n: int, size: int, dtype: Any = jnp.float32) -> jax.Array:
    """(n,) the random weight of every example's gradient, on average 1 / n; of `SAMPLED`."""
    if kind == "gaussian":
        z = jax.random.normal(key, (n,), dtype)
        return 1 / n + (z - z.mean()) / jnp.sqrt(n * size).astype(dtype)
    if kind == "bernoulli":
        return jax.random.bernoulli(key, size / n, (n,)).astype(dtype) / size
    return (jax.random.permutation(key, n) < size).astype(dtype) / size


def draw(
    kind: str,
    key: jax.Array,
    losses_fn: Callable[..., jax.Array],
    params: Any,
    batch: Any,
    size: int,
) -> Any:
    """An estimate of the mean gradient with noise of a class; see `covariance`.

    Args:
      kind: one of `CLASSES`.
      key: of the draw.
      losses_fn: the loss of every example, `losses_fn(params, batch)`.
      params: where.
      batch: all n examples.
      size: S.
    """
    n = len(batch[1])
    if kind in SAMPLED:
        dtype = jax.tree.leaves(params)[0].dtype
        chosen = weights(kind, key, n, size, dtype)
        return jax.grad(lambda p: (chosen * losses_fn(p, batch)).sum())(params)
    mean = jax.grad(lambda p: losses_fn(p, batch).mean())(params)
    if kind == "descent":
        return mean
    each = per_example_gradients(losses_fn, params, batch)
    variances = jax.tree.map(lambda a: a.var(0), each)
    if kind == "isotropic":
        count = sum(v.size for v in jax.tree.leaves(variances))
        trace = sum(v.sum() for v in jax.tree.leaves(variances))
        variances = jax.tree.map(lambda v: jnp.full_like(v, trace / count), variances)
    noise = optax.tree.random_like(key, mean, jax.random.normal)
    return jax.tree.map(lambda g, v, z: g + jnp.sqrt(v / size) * z, mean, variances, noise)


def shaped(
    kind: str, losses_fn: Callable[..., jax.Array], size: int, seed: Any
) -> optax.GradientTransformationExtraArgs:
    """In place of the gradient of all examples, one with noise of a class."""

    def update(updates, key, params=None, *, batch, args=(), **extra):
        del updates, extra
        key, now = jax.random.split(key)
        loss = lambda p, b: losses_fn(p, b, *args)  # noqa: E731
        return draw(kind, now, loss, params, batch, size), key

    return optax.GradientTransformationExtraArgs(lambda params: jax.random.key(seed), update)
