"""The curvature of one state of a network: the same measurements for every experiment.

    curvature = Curvature(recipe, data, CurvatureConfig())
    numbers = curvature.numbers(params, model_state)       # eigenvalues and traces
    all_of_it = curvature.everything(params, model_state)  # density, the loss along lines too

All on one fixed subset of the training examples, the wrong labels among them: the loss that is
trained on. Every estimate carries its certificate; results depend on the state and the
configuration alone.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatjax
from experiments.lib.data.small import SmallData
from experiments.lib.nets import losses
from experiments.lib.training import recipes
from experiments.lib.training.minibatch import Trained
from experiments.lib.training.recipes import Recipe
from flatjax import _trees as trees
from flatjax import loops
from flatjax._spectrum import Spectrum, spectrum
from flatjax.landscape import filter_normalized_direction, loss_along

NUMBERS = ("top", "bottom", "trace", "lambda_K", "trace_K", "trace_fisher")
"""What `Curvature.numbers` measures."""


@dataclass(frozen=True, kw_only=True)
class CurvatureConfig:
    """How the curvature of a state is measured."""

    examples: int = 256
    """On this many of the training examples."""

    top: int = 5
    """This many of the largest eigenvalues of the Hessian ..."""

    bottom: int = 2
    """... and this many of the smallest."""

    tol: float = 1e-3
    """Residual of an eigenpair over its eigenvalue at which it counts as converged."""

    max_steps: int = 100
    """Lanczos steps an eigenvalue problem may cost."""

    trace_rtol: float = 0.02
    """Standard error of a trace over its value at which no more probes are drawn ..."""

    max_probes: int = 40
    """... and the most probes."""

    density_probes: int = 4
    """Random vectors of the spectral density ..."""

    density_steps: int = 30
    """... and the Lanczos steps of each."""

    line_points: int = 41
    """Points of the loss along a line."""

    line_length: float = 1.0
    """The line along the top eigenvector goes so far either way, in parameter space ..."""

    line_fraction: float = 1.0
    """... and the one along the filter-normalised direction this multiple of the weights."""

    seed: int = 0
    """Seed of start vectors, probes and directions."""

    def __post_init__(self):
        for name in ("examples", "top", "bottom", "max_probes", "line_points"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class Curvature:
    """Measures states of one network on one batch; states of it share the compiled programs."""

    def __init__(self, recipe: Recipe, data: SmallData, config: CurvatureConfig):
        """Takes the network with its loss, and its batch from the data of one run."""
        self.batch = recipes.training_batch(recipe, data, config.examples)
        self.config = config
        self.model_fn = recipes.model_of(recipe)
        self.losses_fn = recipes.losses_fn(recipe)
        self.output_loss = losses.OUTPUT_LOSSES[recipe.loss]
        names = ("hessian", "covariance", "fisher", "line")
        keys = jax.random.split(jax.random.key(config.seed), len(names))
        self.keys = dict(zip(names, keys, strict=True))

    def numbers(self, params: Any, model_state: Any) -> dict[str, np.ndarray]:
        """Eigenvalues and traces, with errors.

        Returns:
          Arrays whose last axis has a value and its error, of an eigenvalue the norm of the
          residual, of a trace its standard error: `top` and `bottom` of the Hessian, values
          descending; its `trace`; of the gradient covariance K `lambda_K`, the largest eigenvalue,
          and `trace_K`; `trace_fisher`, exact.
        """
        return self._measure(params, model_state, probes=2, steps=1)[0]

    def everything(self, params: Any, model_state: Any) -> dict[str, np.ndarray]:
        """The `numbers`, the spectral density, and the loss along two lines through the state.

        Returns:
          The `numbers`; `density`, grid, density, and low and high end of its band, (4, grid);
          positions and losses, (2, points), along `top_eigenvector`, of length one and turned
          uphill, and along `random`, filter-normalised.
        """
        c = self.config
        found, of_hessian = self._measure(
            params, model_state, probes=c.density_probes, steps=c.density_steps
        )
        density = of_hessian.density
        found["density"] = np.stack([density.grid, density.density, *density.band])
        random = filter_normalized_direction(params, key=self.keys["line"], axis=-1)
        top = _uphill(self.losses_fn, params, self.batch, model_state, of_hessian.top.vectors)
        lines = {"top_eigenvector": (top, c.line_length), "random": (random, c.line_fraction)}
        for name, (direction, reach) in lines.items():
            line = loss_along(
                self.losses_fn,
                params,
                self.batch,
                model_state,
                direction=direction,
                positions=np.linspace(-reach, reach, c.line_points),
            )
            found[name] = np.stack([line.positions, line.losses])
        return found

    def _measure(
        self, params: Any, model_state: Any, *, probes: int, steps: int
    ) -> tuple[dict[str, np.ndarray], Spectrum]:
        """The numbers, and the Hessian's spectrum."""
        c, given = self.config, (params, self.batch, model_state)
        hessian = flatjax.hessian(self.losses_fn, *given)
        noise = flatjax.gradient_covariance(self.losses_fn, *given)
        fisher = flatjax.fisher(self.model_fn, self.output_loss, *given)
        of_hessian = self._spectrum(hessian, "hessian", c.top, c.bottom, probes, steps)
        of_noise = self._spectrum(noise, "covariance", 1, 0, 2, 1)
        of_fisher = self._spectrum(fisher, "fisher", 1, 0, 2, 1)
        numbers = {
            "top": _pairs(of_hessian.top),
            "bottom": _pairs(of_hessian.bottom),
            "trace": np.array(of_hessian.trace[:2]),
            "lambda_K": _pairs(of_noise.top)[0],
            "trace_K": np.array(of_noise.trace[:2]),
            "trace_fisher": np.array(of_fisher.trace[:2]),
        }
        return numbers, of_hessian

    def _spectrum(
        self, op: Any, key: str, top: int, bottom: int, probes: int, steps: int
    ) -> Spectrum:
        return spectrum(
            op.linearize(),
            key=self.keys[key],
            k=top,
            num_bottom=bottom,
            tol=self.config.tol,
            max_steps=self.config.max_steps,
            num_probes=probes,
            probe_steps=steps,
            trace_rtol=self.config.trace_rtol,
            max_trace_products=self.config.max_probes,
        )


def _pairs(pairs: Any) -> np.ndarray:
    """Values and residuals, (k, 2); of a value below the noise of the products at least that."""
    least = np.where(pairs.resolved, 0.0, pairs.noise_floor)
    return np.stack([pairs.values, np.maximum(pairs.residual_norms, least)], -1)


@functools.partial(jax.jit, static_argnums=0)
def _uphill(losses_fn, params, batch, model_state, vectors):
    """The first vector with the sign that goes uphill: an eigenvector has none of its own."""
    gradient = jax.grad(lambda p: losses_fn(p, batch, model_state).mean())(params)
    first = jax.tree.map(lambda a: a[0], vectors)
    return trees.scale(jnp.where(trees.vdot(gradient, first) < 0, -1.0, 1.0), first)


def run_of(tree: Any, index: int) -> Any:
    """One run out of a tree with a leading axis of runs."""
    return jax.tree.map(lambda a: a[index], tree)


def curvature_of_runs(
    recipe: Recipe, trained: Trained, data: SmallData, *, top: int = 1, products: int = 40
) -> dict[str, np.ndarray]:
    """Largest eigenvalues and trace of the training loss's Hessian, and the trace's error.

    Args:
      recipe: the network and its loss.
      trained: with a leading axis of runs.
      data: likewise.
      top: how many eigenvalues.
      products: of the trace estimate.

    Returns:
      `sharpness`, `trace` and `trace_error`, shape (runs,); `eigenvalues`, (runs, top), of which
      the sharpness is the first.
    """
    found: dict[str, list[Any]] = {"eigenvalues": [], "trace": [], "trace_error": []}
    for index in range(len(data.targets)):
        batch = recipes.training_batch(recipe, run_of(data, index))
        params, model_state = run_of((trained.params, trained.model_state), index)
        hessian = flatjax.hessian(recipes.losses_fn(recipe), params, batch, model_state)
        # No check by a second start: the first one is random.
        pairs = flatjax.eigsh(
            hessian, top, which="LA", key=jax.random.key(0), max_products=100, verify=False
        )
        trace = flatjax.trace(hessian, key=jax.random.key(1), num_products=products)
        found["eigenvalues"].append(np.asarray(pairs.values))
        found["trace"].append(float(trace.value))
        found["trace_error"].append(float(trace.standard_error))
    arrays = {name: np.array(values, float) for name, values in found.items()}
    return arrays | {"sharpness": arrays["eigenvalues"][:, 0]}


@functools.partial(jax.jit, static_argnums=0)
def gauss_newton_diagonal(model_fn: Any, params: Any, inputs: jax.Array) -> Any:
    """The diagonal of the Gauss-Newton matrix of squared error, exact: one pass per output."""
    outputs = jax.eval_shape(model_fn, params, inputs).shape[-1]

    def add(total, k):
        one = lambda x: jax.grad(lambda p: model_fn(p, x[None])[0, k])(params)  # noqa: E731
        squares = jax.tree.map(lambda g: jnp.square(g).mean(0), jax.vmap(one)(inputs))
        return optax.tree.add(total, squares), None

    return loops.scan(add, optax.tree.zeros_like(params), jnp.arange(outputs))[0]
