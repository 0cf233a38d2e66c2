"""The edge of stability: the sharpness against an independent one, and claims that can fail."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg

from experiments import edge_of_stability as experiment
from experiments.edge_of_stability import dynamics
from experiments.lib.runs.errors import ExperimentError

SMOKE = dataclasses.replace(experiment.lab.presets["smoke"], quiet=True)


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """The numbers hold at any optimisation of the programs."""


def test_the_tracked_sharpness_is_that_of_double_backward_and_arpack(tmp_path):
    params, records = experiment.run_arm(dataclasses.replace(SMOKE, steps=720), tmp_path, "gd")
    losses_fn, data, _ = experiment.setup(SMOKE, "gd")
    batch = (data.inputs[0], data.targets[0])

    def mean_loss(p):
        return losses_fn(p, batch).mean()

    # Reverse over reverse, and ARPACK: nothing of flatjax.
    product = jax.jit(jax.grad(lambda p, v: jnp.vdot(jax.grad(mean_loss)(p), v)))
    size = params.shape[-1]
    operator = scipy.sparse.linalg.LinearOperator(
        (size, size), lambda v: np.asarray(product(params[0], v.ravel().astype(np.float32)))
    )
    start = np.random.RandomState(0).randn(size)
    value = scipy.sparse.linalg.eigsh(operator, 1, which="LA", v0=start, tol=1e-5)[0][0]
    np.testing.assert_allclose(records["sharpness"][0, -1], value, rtol=1e-3)


def test_the_quadratic_model_is_exact_on_a_quadratic():
    def losses_fn(p, x):
        return 0.5 * (x @ p) ** 2

    x = jnp.asarray(np.random.RandomState(0).randn(6, 3).astype(np.float32))
    loss, model = dynamics.quadratic_model(losses_fn, jnp.ones(3), x, 0.1, 2, 5)
    # the same number by two sums, in float32
    np.testing.assert_allclose(loss, model, rtol=1e-4, atol=1e-6)


def test_unknown_arms_are_refused():
    with pytest.raises(ExperimentError, match="arms are gd"):
        experiment.arms(dataclasses.replace(SMOKE, arms=("adamw",)))
