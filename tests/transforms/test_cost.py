"""What each method costs over one gradient, by the compiler's own count of flops."""

import jax
import jax.numpy as jnp
import pytest

import flatjax.transforms as ft
from flatjax import losses

WIDTH, BATCH = 64, 64


def model(params, x):
    for w in params[:-1]:
        x = jnp.tanh(x @ w)
    return x @ params[-1]


def loss_fn(params, batch):
    return losses.softmax_cross_entropy(model(params, batch[0]), batch[1]).mean()


@pytest.fixture(scope="module")
def problem():
    keys = jax.random.split(jax.random.key(0), 4)
    params = [jax.random.normal(k, (WIDTH, WIDTH)) / 8 for k in keys]
    return params, (jnp.ones((BATCH, WIDTH)), jnp.zeros(BATCH, jnp.int32))


def flops(fn, *args):
    cost = jax.jit(fn).lower(*args).compile().cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]


@pytest.fixture(scope="module")
def gradient(problem):
    return flops(jax.grad(loss_fn), *problem)


def of_update(tx, problem):
    params, batch = problem

    def step(params, batch, state):
        g = jax.grad(loss_fn)(params, batch)
        return tx.update(
            g, state, params, grad_fn=lambda p: jax.grad(loss_fn)(p, batch), batch=batch
        )

    return flops(step, params, batch, tx.init(params))


# One gradient is 3 x 2 x 4 x 64^3 flops; elementwise work over the params is 2 % of it here, and
# the margins below are that.
COSTS = {
    "sam": (ft.sam(0.1), 2.0, 0.08),
    "asam": (ft.sam(0.1, ascent=ft.Ascent(adaptive=True)), 2.0, 0.15),
    "gsam": (ft.gsam(0.1), 2.0, 0.15),
    "momentum_sam": (ft.momentum_sam(0.1), 1.0, 0.15),
    "exact penalty": (ft.gradient_penalty(0.1), 3.0, 0.08),
    "forward penalty": (ft.gradient_penalty(0.1, mode="forward"), 2.0, 0.12),
}


@pytest.mark.parametrize("name", COSTS)
def test_gradients_a_step(name, problem, gradient):
    tx, expected, margin = COSTS[name]
    ratio = of_update(tx, problem) / gradient
    assert expected - 0.2 <= ratio <= expected + margin


def test_fisher_penalty_every_ten_steps_on_a_quarter(problem, gradient):
    tx = ft.fisher_penalty(
        model, losses.softmax_cross_entropy, coef=0.1, every=1, sub_batch=BATCH // 4
    )
    refresh = of_update(tx, problem) / gradient
    # On the other steps the kept gradient is added: two flops a parameter.
    assert 1 + (refresh - 1) / 10 <= 1.10


def test_the_naive_penalty_costs_more(problem, gradient):
    def naive(params, batch):
        def penalised(p):
            g = jax.grad(loss_fn)(p, batch)
            return loss_fn(p, batch) + 0.1 * sum(jnp.vdot(a, a) for a in g)

        return jax.grad(penalised)(params)

    ours = of_update(ft.gradient_penalty(0.1), problem)
    assert ours <= flops(naive, *problem)
