"""The compiled update: against the same formulas by hand, compiled once, its input donated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.lib.nets import losses
from experiments.lib.nets.config import ModelConfig
from experiments.lib.nets.models import make_model
from experiments.lib.training.config import OptimizerConfig
from experiments.lib.training.optimizers import make_optimizer
from experiments.lib.training.step import init_state, make_step

RHO, RATE = 0.1, 0.05
MODEL = make_model(ModelConfig(name="mlp", width=6, depth=1, norm="batch"), 3)


@pytest.fixture(scope="module")
def batch():
    inputs = jax.random.normal(jax.random.key(1), (20, 5))
    return {"inputs": inputs, "targets": jax.random.randint(jax.random.key(2), (20,), 0, 3)}


def objective(params, state, batch):
    logits, model_state = MODEL.apply(params, state.model_state, batch["inputs"], train=True)
    return losses.per_example("cross_entropy")(logits, batch["targets"]).mean(), model_state


gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))


@functools.cache
def compiled(**options):
    config = OptimizerConfig(learning_rate=RATE, **options)
    optimizer = make_optimizer(config, 10)
    init = jax.jit(lambda: init_state(MODEL, optimizer, (5,), 0))
    return init, make_step(MODEL, "cross_entropy", optimizer)


def start(**options):
    init, step = compiled(**options)
    return init(), step


def test_sam_steps_from_the_perturbed_gradient_with_clean_batch_statistics(batch):
    state, step = start(sam_rho=RHO)
    (_, model_state), clean = gradient(state.params, state, batch)
    scale = RHO / optax.tree.norm(clean)
    perturbed = jax.tree.map(lambda p, g: p + scale * g, state.params, clean)
    _, there = gradient(perturbed, state, batch)
    expected = jax.tree.map(lambda p, g: p - RATE * g, state.params, there)
    new = step(state, batch)
    # float32, gradients of order 1 through one norm and two passes.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.params, expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.model_state, model_state
    )


def test_an_update_is_compiled_once_and_its_input_donated(batch):
    # A schedule and batch statistics: what most easily comes back as another type.
    state, step = start(momentum=0.9, schedule="cosine")
    before = jax.tree.map(jax.typeof, state)
    for _ in range(3):
        given, state = state, step(state, batch)
    assert step._cache_size() == 1
    assert jax.tree.map(jax.typeof, state) == before
    assert given.params["head"]["kernel"].is_deleted()
    assert int(state.step) == int(state.totals.updates) == 3


def test_totals_sum_what_the_rows_average(batch):
    state, step = start(momentum=0.9, schedule="cosine")
    (value, _), grads = gradient(state.params, state, batch)
    norm = optax.tree.norm(grads)
    totals = step(state, batch).totals
    np.testing.assert_allclose(totals.loss, value, rtol=1e-5)
    np.testing.assert_allclose(totals.grad_norm, norm, rtol=1e-5)
    assert 0 <= float(totals.accuracy) <= 1
    assert int(totals.bad_step) == 0


def test_the_first_update_with_a_bad_loss_is_remembered(batch):
    state, step = start(momentum=0.9, schedule="cosine")
    bad = batch | {"inputs": batch["inputs"] * jnp.nan}
    for given in (batch, bad, batch):
        state = step(state, given)
    assert int(state.totals.bad_step) == 2


def test_squared_error_is_half_the_distance_to_one_hot():
    logits = jnp.array([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    values = losses.per_example("squared_error")(logits, jnp.array([2, 0]))
    np.testing.assert_array_equal(values, [1.0, 0.5])
    with pytest.raises(ValueError, match="unknown loss 'hinge'; choose from cross_entropy, squ"):
        losses.per_example("hinge")
