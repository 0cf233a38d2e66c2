"""The Hessian's spectrum at every checkpoint of every run of an arm.

found = measured(recipe, trained.records["params"], data, None)
found["eigenvalues"]                                        # (seeds, records, 11)
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.flatten_util
import numpy as np

import flatjax
from experiments.lib.data.small import SmallData, first_examples
from experiments.lib.nets.architecture import network
from experiments.lib.nets.flat import FlatNetwork, flat_network
from experiments.lib.training import curvature, recipes
from experiments.lib.training.recipes import Recipe

TOP = 11
"""Eigenvalues of every spectrum: of ten classes ten outliers, and the largest below them."""
PROBES = 16
"""Of a density: with 4 its first moment is off by a tenth where few eigenvalues are exact."""
POINTS, ATOMS = 512, 64
"""Of the grid of a density; at most so many eigenvalues are drawn as exact."""


def flattened(params: Any, model_state: Any, data: SmallData, key: Any) -> dict[str, jax.Array]:
    """What is recorded along training: all parameters, as the vector of a `FlatNetwork`."""
    del model_state, data, key
    return {"params": jax.flatten_util.ravel_pytree(params)[0]}


def measured(
    recipe: Recipe, params: np.ndarray, data: SmallData, count: int | None
) -> dict[str, np.ndarray]:
    """The spectra of the training loss of the first `count` examples.

    With batch norm it is the loss of training, whose statistics are those of these very examples
    and move with the parameters.

    Args:
      recipe: the network and its loss.
      params: vectors of parameters, (seeds, records, size).
      data: with a leading axis of seeds.
      count: how many training examples; None for all.

    Returns:
      Arrays (seeds, records, ...): `eigenvalues`, the largest `TOP`; `energy`, the share of the
      gradient in all but the last of their eigenvectors; `moment`, the dimension times the first
      moment of the density, `bulk_moment`, the same without its exact eigenvalues, and `trace`, an
      estimate of its own; `density`, the grid, the density, and low and high end of its band;
      `atoms`, the exact eigenvalues, filled up with NaN. Of the last record alone `fixed`, the
      largest eigenvalues where the statistics are held fixed.
    """
    net = flat_network(recipe, data.inputs.shape[2:])
    rows = []
    for index, vectors in enumerate(params):
        one = first_examples(curvature.run_of(data, index), count)
        batch = recipes.training_batch(recipe, one)
        row = [spectrum(net, vector, batch) for vector in vectors]
        found = {name: np.stack([each[name] for each in row]) for name in row[0]}
        rows.append(found | {"fixed": fixed_statistics(recipe, net, vectors[-1], batch)})
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def spectrum(net: FlatNetwork, vector: np.ndarray, batch: Any) -> dict[str, np.ndarray]:
    """The spectrum at one point; see `measured`."""
    hessian = flatjax.hessian(net.losses_fn, vector, batch).linearize()
    of_density, of_trace = jax.random.split(jax.random.key(0))
    found = flatjax.spectrum(
        hessian, key=of_density, k=TOP, num_bottom=1, tol=1e-2, num_probes=PROBES,
        trace_rtol=None, num_points=POINTS,
    )  # fmt: skip
    trace = flatjax.trace(hessian, key=of_trace, method="deflated", num_products=80)
    gradient = _gradient(net, vector, batch)
    density, exact = found.density, int(found.density.num_exact)
    atoms, weights = (np.asarray(a, np.float64) for a in (density.atoms, density.weights))
    return {
        "eigenvalues": np.asarray(found.top.values),
        "energy": np.asarray(
            flatjax.subspace_overlap(gradient, found.top.vectors[: TOP - 1]).value
        ),
        "moment": found.size * (atoms * weights).sum(),
        "bulk_moment": found.size * (atoms * weights)[exact:].sum(),
        "trace": np.asarray(trace.value),
        "density": np.stack([density.grid, density.density, *density.band]),
        "atoms": np.array([*atoms[:exact], *[np.nan] * ATOMS])[:ATOMS],
    }


@functools.partial(jax.jit, static_argnums=0)
def _gradient(net, vector, batch):
    return jax.grad(lambda p: net.losses_fn(p, batch).mean())(vector)


def fixed_statistics(
    recipe: Recipe, net: FlatNetwork, vector: np.ndarray, batch: Any
) -> np.ndarray:
    """The largest eigenvalues where batch norm has the same statistics, but holds them fixed."""
    model, params = network(recipe), net.unravel(vector)
    _, state = model.init(jax.random.key(0), batch[0][:1])
    if not state:
        return np.full(TOP, np.nan)
    state = flatjax.reestimate_batch_statistics(
        lambda p, s, x: model.apply(p, s, x, train=True)[1], params, state, [batch[0]]
    )
    hessian = flatjax.hessian(recipes.losses_fn(recipe), params, batch, state)
    found = flatjax.spectrum(
        hessian.linearize(), key=jax.random.key(0), k=TOP, num_bottom=1, tol=1e-2, num_probes=2,
        trace_rtol=None,
    )  # fmt: skip
    return np.asarray(found.top.values)
