"""Curvature where the runs of `minibatch.train_arm` end."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import flatjax
from experiments.lib import minibatch
from experiments.lib.minibatch import Recipe
from experiments.lib.small import SmallData


def run_of(tree: Any, index: int) -> Any:
    """One run out of a tree with a leading axis of runs."""
    return jax.tree.map(lambda a: a[index], tree)


def curvature(
    recipe: Recipe, params: Any, data: SmallData, *, products: int = 40
) -> dict[str, np.ndarray]:
    """Largest eigenvalue and trace of the training loss's Hessian, and the trace's error.

    Args:
      recipe: the network and its loss.
      params: with a leading axis of runs.
      data: likewise.
      products: of the trace estimate.

    Returns:
      `sharpness`, `trace` and `trace_error`, shape (runs,).
    """
    found: dict[str, list[float]] = {"sharpness": [], "trace": [], "trace_error": []}
    for index in range(len(data.targets)):
        batch = minibatch.training_batch(recipe, run_of(data, index))
        losses_fn = minibatch.losses_fn(recipe.activation, recipe.loss)
        hessian = flatjax.hessian(losses_fn, run_of(params, index), batch)
        trace = flatjax.trace(hessian, key=jax.random.key(1), num_products=products)
        found["sharpness"].append(
            float(flatjax.sharpness(hessian, key=jax.random.key(0), max_products=100).value)
        )
        found["trace"].append(float(trace.value))
        found["trace_error"].append(float(trace.standard_error))
    return {name: np.array(values) for name, values in found.items()}
