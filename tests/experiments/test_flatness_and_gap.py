"""Copies have the function of their network, the diagonal is exact, and the claims can fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from experiments import flatness_and_gap as experiment
from experiments.lib.nets.mlp import apply_mlp, init_mlp
from experiments.lib.training import curvature
from flatjax import losses

FACTORS = [np.array([2.0, 0.1, 7.0, 1.0]), np.array([0.5, 3.0, 30.0])]


@pytest.fixture
def network(x64):
    del x64
    params = init_mlp(jax.random.key(0), (5, 4, 3, 2))
    biased = jax.tree.map(lambda a: a + 0.1 if a.ndim < 2 else a, params)
    inputs = jax.random.normal(jax.random.key(1), (6, 5))
    return lambda p, x: apply_mlp(p, x, activation=jax.nn.relu), biased, inputs


def test_copies_have_the_same_function(network):
    model_fn, params, inputs = network
    copy = experiment.rescaled(params, FACTORS)
    np.testing.assert_allclose(copy["layer_0"]["kernel"], params["layer_0"]["kernel"] * FACTORS[0])
    # Rounding of outputs near one.
    np.testing.assert_allclose(model_fn(copy, inputs), model_fn(params, inputs), atol=1e-13)
    other = experiment.rescaled(params, FACTORS, undone=False)
    assert abs(model_fn(other, inputs) - model_fn(params, inputs)).max() > 0.1


def test_the_diagonal_is_that_of_the_gauss_newton_matrix(network):
    model_fn, params, inputs = network
    found = curvature.gauss_newton_diagonal(model_fn, params, inputs)
    batch = inputs, jnp.zeros((6, 2))
    dense = flatjax.ggn(model_fn, losses.squared_error, params, batch).to_dense()
    flat = jax.flatten_util.ravel_pytree(found)[0]
    np.testing.assert_allclose(flat, np.diag(dense), rtol=1e-12, atol=1e-15)


def test_biases_stay_at_zero():
    params = init_mlp(jax.random.key(0), (3, 2, 2))
    tx = experiment.without_biases(0.5)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params))
    assert all((layer["bias"] == 0).all() for layer in updates.values())
    # The first update of Adam has the size of the rate, up to the rounding of 1 - 0.999.
    for layer in updates.values():
        np.testing.assert_allclose(layer["kernel"], -0.5, rtol=1e-4)


def _runs(scale=(1.0, 30.0, 900.0), invariant=(1.0, 1.0, 1.0), identity=1.0, function=1e-15):
    """Ten networks of three seeds with as many gaps, and two copies of each."""
    gaps = np.tile(np.linspace(0.1, 0.9, 10), (3, 1))
    moved = gaps[..., None] * np.array(scale)
    kept = gaps[..., None] * np.array(invariant)
    runs = {name: kept if name in experiment.INVARIANT else moved for name in experiment.MEASURES}
    ones = np.ones_like(moved)
    return runs | {
        "gap": gaps, "reached": gaps > 0, "function": function * ones, "undone": ones,
        "identity": identity * ones,
    }  # fmt: skip


def _verdicts(runs):
    config = experiment.Config(seeds=3)
    return {v.claim.name: v.verdict for v in experiment.lab.judged(runs, config)}


def test_verdicts_on_made_up_runs():
    assert set(_verdicts(_runs()).values()) == {"reproduced"}
    # No copy is sharper: the eigenvalue ranks the gap too, and the other nulls pass.
    same = _verdicts(_runs(scale=(1.0, 1.0, 1.0)))
    assert same.pop("eigenvalue-does-not") == "not reproduced"
    invariances = [name for name in same if name.endswith("-invariant")]
    assert len(invariances) == 4
    assert {same.pop(name) for name in (*invariances, "normalised-ranks")} == {"void"}
    assert set(same.values()) == {"reproduced"}
    broken = _verdicts(_runs(invariant=(1.0, 30.0, 900.0), identity=1.01, function=1e-3))
    # Normalised sharpness has lost the gap as well, and is the null of the last claim.
    assert broken.pop("eigenvalue-does-not") == "void"
    assert set(broken.values()) == {"not reproduced"}


def test_networks_short_of_the_loss_are_not_compared():
    runs = _runs()
    runs["reached"] = runs["gap"] > 0.2
    assert _verdicts(runs)["normalised-ranks"] == "inconclusive"


def test_a_single_sharper_copy_leaves_half_of_the_correlation():
    runs = _runs(scale=(1.0, 30.0))
    found = experiment.correlations(runs, "trace", copies=True)
    # Of 2 m ranks, in pairs of equal gaps: (m^2 - 1) / sqrt((4 m^2 - 1) (m^2 - 1)), m = 10.
    np.testing.assert_allclose(found, (99 / 399) ** 0.5, rtol=1e-12)
    np.testing.assert_allclose(experiment.correlations(runs, "trace", copies=False), 1)


def test_the_copy_that_changes_most_counts():
    runs = _runs()
    np.testing.assert_allclose(experiment.largest_change("trace")(runs, None), 899)
    runs["function"][:, 3, 1] = 0.5
    np.testing.assert_array_equal(experiment.largest("function")(runs, None), 0.5)
