"""C, H and F of one point as dense matrices, and the numbers by which they are compared."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

import flatjax
from experiments.lib.nets.flat import FlatNetwork

PAIRS = (("H", "C"), ("C", "F"), ("F", "H"))
DISTANCES = (1e-1, 1e-2, 1e-3)
"""Lengths of the random d in the divergence."""

CUT = 1e-3
"""Of the largest eigenvalue: smaller ones are left out of the inverse in Takeuchi's criterion."""


def matrices(net: FlatNetwork, params: jax.Array, batch: Any) -> dict[str, np.ndarray]:
    """C, H and F as dense arrays, in float64."""
    fisher = flatjax.fisher(net, flatjax.softmax_cross_entropy, params, batch)
    found = {
        "C": flatjax.gradient_covariance(net.losses_fn, params, batch, centered=False),
        "H": flatjax.hessian(net.losses_fn, params, batch),
        "F": fisher,
    }
    return {name: np.asarray(op.to_dense(), np.float64) for name, op in found.items()}


def compare(found: dict[str, np.ndarray], top: int) -> dict[str, float]:
    """Ratios of traces, cosines and overlaps of the `top` first eigenvectors of all pairs."""
    size = len(found["H"])
    tops = {
        name: scipy.linalg.eigh(a, subset_by_index=(size - top, size - 1))[1]
        for name, a in found.items()
    }
    numbers: dict[str, float] = {}
    for a, b in PAIRS:
        left, right = found[a], found[b]
        numbers[f"r({a},{b})"] = float(np.trace(left) / np.trace(right))
        norms = np.linalg.norm(left) * np.linalg.norm(right)
        numbers[f"s({a},{b})"] = float(np.vdot(left, right) / norms)
        numbers[f"overlap({a},{b})"] = float(np.square(tops[a].T @ tops[b]).sum() / top)
    return numbers


def takeuchi(found: dict[str, np.ndarray], count: int) -> float:
    """Tr(H^-1 C) / n, the inverse where H is well above zero."""
    values, vectors = np.linalg.eigh(found["H"])
    kept = values > CUT * values.max()
    forms = (vectors[:, kept] * (found["C"] @ vectors[:, kept])).sum(0)
    return float((forms / values[kept]).sum() / count)


def divergences(net: FlatNetwork, params: Any, batch: Any, key: Any) -> Any:
    """KL(p_w || p_(w+d)) over d'Fd / 2, and over d'Cd / 2, for random d of all lengths."""
    with jax.enable_x64(True):
        params = jnp.asarray(np.asarray(params), jnp.float64)
        batch = jnp.asarray(np.asarray(batch[0]), jnp.float64), jnp.asarray(np.asarray(batch[1]))
        fisher = flatjax.fisher(net, flatjax.softmax_cross_entropy, params, batch)
        direction = jax.random.normal(key, params.shape, jnp.float64)
        direction /= jnp.linalg.norm(direction)
        _, slopes = jax.jvp(lambda p: net.losses_fn(p, batch), (params,), (direction,))
        forms = np.array([jnp.vdot(direction, fisher @ direction), jnp.square(slopes).mean()])
        before = jax.nn.log_softmax(net(params, batch[0]))
        ratios = []
        for distance in DISTANCES:
            after = jax.nn.log_softmax(net(params + distance * direction, batch[0]))
            divergence = (jnp.exp(before) * (before - after)).sum(-1).mean()
            ratios.append(float(divergence) / (distance**2 * forms / 2))
        return np.array(ratios).T.tolist()
