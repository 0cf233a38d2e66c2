"""The curvature of one state of a network: the same measurements for every experiment.

    curvature = Curvature(model, "cross_entropy", data, CurvatureConfig())
    numbers = curvature.numbers(params, model_state)       # eigenvalues and traces
    all_of_it = curvature.everything(params, model_state)  # density, the loss along lines too

All on one fixed subset of the training examples, the wrong labels among them: the loss that is
trained on. Every estimate carries its certificate. Results are JSON values; they depend on the
state and the configuration alone.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flatjax
from experiments.lib.data.images import Dataset
from experiments.lib.data.small import SmallData
from experiments.lib.nets import losses
from experiments.lib.nets.models import Model
from experiments.lib.runs.metrics import jsonable
from experiments.lib.training import recipes
from experiments.lib.training.minibatch import Trained
from experiments.lib.training.recipes import Recipe
from flatjax import _trees as trees
from flatjax._spectrum import Spectrum, spectrum
from flatjax.landscape import filter_normalized_direction, loss_along


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

    def __init__(self, model: Model, loss: str, data: Dataset, config: CurvatureConfig):
        """Takes the loss by name, see `experiments.lib.nets.losses`, and its batch from `data`."""
        arrays = data.train.arrays(config.examples)
        targets = losses.encode(loss, jnp.asarray(arrays.targets), data.num_classes)
        self.batch = (jnp.asarray(arrays.inputs), targets)
        self.config = config
        self.model_fn = model.model_fn
        self.output_loss = losses.OUTPUT_LOSSES[loss]
        # One function object for all states, so that nothing is compiled twice.
        self.losses_fn = functools.partial(_losses, self.model_fn, self.output_loss)
        names = ("hessian", "covariance", "fisher", "line")
        keys = jax.random.split(jax.random.key(config.seed), len(names))
        self.keys = dict(zip(names, keys, strict=True))

    def numbers(self, params: Any, model_state: Any) -> dict[str, Any]:
        """Eigenvalues and traces.

        Returns:
          JSON values: `hessian` with `top` and `bottom` eigenpairs and `trace`; `covariance` (K,
          of the per-example gradients) and `fisher` (exact) with `top` and `trace`;
          `gradient_norm`, `loss`, `examples`, `parameters`.
        """
        return self._measure(params, model_state, probes=2, steps=1)[0]

    def everything(self, params: Any, model_state: Any) -> dict[str, Any]:
        """The `numbers`, the spectral density, and the loss along two lines through the state.

        Returns:
          JSON values: the `numbers`; `density`; `lines` with `top_eigenvector`, of length one and
          turned uphill, and `random`, filter-normalised.
        """
        c = self.config
        numbers, spectrum, gradient = self._measure(
            params, model_state, probes=c.density_probes, steps=c.density_steps
        )
        random = filter_normalized_direction(params, key=self.keys["line"], axis=-1)
        directions = {
            "top_eigenvector": (_uphill(spectrum.top.vectors, gradient), c.line_length),
            "random": (random, c.line_fraction),
        }
        lines = {}
        for name, (direction, reach) in directions.items():
            positions = np.linspace(-reach, reach, c.line_points)
            lines[name] = loss_along(
                self.losses_fn,
                params,
                self.batch,
                model_state,
                direction=direction,
                positions=positions,
            )
        names = ("atoms", "weights", "num_exact", "grid", "density", "band", "sigma")
        density = {name: getattr(spectrum.density, name) for name in names}
        return numbers | jsonable({"density": density, "lines": lines})

    def _measure(self, params: Any, model_state: Any, *, probes: int, steps: int) -> Any:
        """The numbers, the Hessian's spectrum and the gradient."""
        c = self.config
        loss, gradient, norm = _loss_and_gradient(self.losses_fn, params, self.batch, model_state)
        hessian = flatjax.hessian(self.losses_fn, params, self.batch, model_state).linearize()
        noise = flatjax.gradient_covariance(self.losses_fn, params, self.batch, model_state)
        fisher = flatjax.fisher(self.model_fn, self.output_loss, params, self.batch, model_state)
        of_hessian = self._spectrum(hessian, "hessian", c.top, c.bottom, probes, steps)
        of_noise = self._spectrum(noise.linearize(), "covariance", 1, 0, 2, 1)
        of_fisher = self._spectrum(fisher.linearize(), "fisher", 1, 0, 2, 1)
        numbers = {
            "hessian": {
                "top": _without_vectors(of_hessian.top),
                "bottom": _without_vectors(of_hessian.bottom),
                "trace": jsonable(of_hessian.trace),
            },
            "covariance": {
                "top": _without_vectors(of_noise.top),
                "trace": jsonable(of_noise.trace),
            },
            "fisher": {
                "top": _without_vectors(of_fisher.top),
                "trace": jsonable(of_fisher.trace),
            },
            "gradient_norm": float(norm),
            "loss": float(loss),
            "examples": int(self.batch[0].shape[0]),
            "parameters": hessian.size,
        }
        return numbers, of_hessian, gradient

    def _spectrum(
        self, op: Any, key: str, top: int, bottom: int, probes: int, steps: int
    ) -> Spectrum:
        return spectrum(
            op,
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


def _without_vectors(pairs: Any) -> dict[str, Any]:
    return jsonable({k: v for k, v in pairs._asdict().items() if k != "vectors"})


def _losses(model_fn, output_loss, params, batch, model_state):
    inputs, targets = batch
    return output_loss(model_fn(params, inputs, model_state), targets)


@functools.partial(jax.jit, static_argnums=0)
def _loss_and_gradient(losses_fn, params, batch, model_state):
    mean = lambda p: losses_fn(p, batch, model_state).mean()  # noqa: E731
    loss, gradient = jax.value_and_grad(mean)(params)
    return loss, gradient, trees.norm(gradient)


@jax.jit
def _uphill(vectors, gradient):
    """The first vector with the sign that goes uphill: an eigenvector has none of its own."""
    first = jax.tree.map(lambda a: a[0], vectors)
    sign = jnp.where(trees.vdot(gradient, first) < 0, -1.0, 1.0)
    return trees.scale(sign, first)


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
