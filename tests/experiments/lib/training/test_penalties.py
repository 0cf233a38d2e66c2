"""The coefficient counts for a time; norms of batch gradients are tr F where labels are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatjax
from experiments.lib.data.small import small_data
from experiments.lib.nets.mlp import init_mlp
from experiments.lib.training import penalties, recipes
from experiments.lib.training.recipes import Recipe

RECIPE = Recipe(hidden=(), batch_size=4)


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """The tolerances are those of float32 and of chance."""


def _start():
    data = small_data("digits", seed=0, train_size=12, label_noise=0.5)
    return init_mlp(jax.random.key(1), (64, 10)), jax.tree.map(jnp.asarray, data)


def test_a_penalty_counts_from_one_step_to_before_another():
    params, data = _start()
    batch = recipes.training_batch(RECIPE, data)
    grad_fn = jax.grad(lambda p: recipes.mean_loss(RECIPE, p, batch))
    hyper = {"rate": 1.0, "coef": 0.5, "since": 1, "until": 2}
    tx = penalties.optimizer("gp", RECIPE)(0, hyper)
    state, extra = tx.init(params), []
    for _ in range(3):
        found, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
        extra.append(float(optax.tree.norm(optax.tree.add(found, grad_fn(params)))))
    assert extra[0] == extra[2] == 0.0
    assert extra[1] > 0.01


def test_batches_with_drawn_labels_have_the_trace_of_the_fisher_matrix():
    params, data = _start()
    batch = recipes.training_batch(RECIPE, data)
    draws = 2000
    found = penalties.batch_norms(RECIPE, params, {}, data, jax.random.key(0), draws)
    model_fn = recipes.model_of(RECIPE)
    fisher = flatjax.fisher(model_fn, flatjax.losses.softmax_cross_entropy, params, batch)
    trace = np.trace(np.asarray(fisher.to_dense(), float))
    # A squared norm varies by less than its mean, and there are 6,000: four standard errors.
    np.testing.assert_allclose(found["drawn_norms"], trace, rtol=4 / (3 * draws) ** 0.5)
    norms = [
        4 * optax.tree.norm(jax.grad(recipes.mean_loss, 1)(RECIPE, params, part), squared=True)
        for part in (jax.tree.map(lambda a, i=i: a[i : i + 4], batch) for i in (0, 4, 8))
    ]
    np.testing.assert_allclose(found["given_norms"], np.mean(norms), rtol=1e-4)  # float32
