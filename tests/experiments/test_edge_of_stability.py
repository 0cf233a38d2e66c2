"""The edge of stability: the smoke preset, and the sharpness against an independent one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg

from experiments import edge_of_stability as experiment
from experiments.edge_of_stability import dynamics, training
from experiments.lib.runs.errors import ExperimentError
from experiments.lib.runs.rundir import read_json
from experiments.lib.verdicts.claims import judge


@pytest.fixture(scope="module")
def run(tmp_path_factory, quick_compilation_of_module):
    out = tmp_path_factory.mktemp("edge")
    config = dataclasses.replace(experiment.PRESETS["smoke"], out=out, quiet=True)
    experiment.main(config)
    return config


def test_the_smoke_preset_judges_all_claims(run):
    summary = read_json(run.out / "summary.json")
    assert {c["name"] for c in summary["claims"]} == set(experiment.CLAIMS)
    by_name = {c["name"]: c for c in summary["claims"]}
    assert by_name["gd-settles-at-the-edge"]["measured"] > 0
    assert by_name["adam-settles-at-the-edge"]["verdict"] == "inconclusive"  # not among the arms
    for picture in summary["figures"]:
        assert (run.out / picture["file"]).stat().st_size > 5000


def test_the_tracked_sharpness_is_that_of_double_backward_and_arpack(run, tmp_path):
    run = dataclasses.replace(run, steps=720)  # of the smoke preset's programs
    params, records = training.run_arm(run, tmp_path, training.arms(run)["gd"])
    losses_fn, data, _ = training.setup(run, "gd")
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


def test_made_up_sharpness_off_the_edge_is_not_reproduced():
    claim = experiment.CLAIMS["gd-settles-at-the-edge"]
    assert judge(claim, {0: 0.5, 1: 0.51, 2: 0.49}).verdict == "not reproduced"
    assert judge(claim, {0: 1.0, 1: 1.001, 2: 1.002}).verdict == "reproduced"


def test_the_quadratic_model_is_exact_on_a_quadratic():
    def losses_fn(p, x):
        return 0.5 * (x @ p) ** 2

    x = jnp.asarray(np.random.RandomState(0).randn(6, 3).astype(np.float32))
    loss, model = dynamics.quadratic_model(losses_fn, jnp.ones(3), x, 0.1, 2, 5)
    # the same number by two sums, in float32
    np.testing.assert_allclose(loss, model, rtol=1e-4, atol=1e-6)


def test_unknown_arms_are_refused():
    with pytest.raises(ExperimentError, match="arms are gd"):
        training.arms(dataclasses.replace(experiment.PRESETS["smoke"], arms=("adamw",)))
