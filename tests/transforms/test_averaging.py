"""Averages of the params, batch-norm statistics for them, and Entropy-SGD."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatjax.transforms as ft
from tests.transforms.zoo import Dense, assert_close, descend, flat, network

STEPS = 7


@pytest.fixture(scope="module")
def net():
    with jax.enable_x64(True):
        yield network(jnp.float64)


@pytest.fixture(scope="module")
def path(net):
    params, batch = net
    trajectory, _ = descend(optax.sgd(0.5), params, batch, STEPS)
    return trajectory.reshape(STEPS, -1)


def averaged(tail, net):
    """The path is unchanged; the tail's state after it, and the average."""
    params, batch = net
    tx = optax.chain(optax.sgd(0.5), tail)
    trajectory, state = descend(tx, params, batch, STEPS)
    last = Dense(params, batch).unravel(jnp.asarray(trajectory[-flat(params).size :]))
    return trajectory, state, flat(ft.averaged_params(state, last))


@pytest.mark.parametrize("options", [{}, {"debias": True}, {"warmup": True}], ids=str)
def test_ema(options, net, path):
    trajectory, _, average = averaged(ft.ema_params(0.8, **options), net)
    np.testing.assert_array_equal(trajectory, path.ravel())
    expected = np.zeros_like(path[0]) if "debias" in options else flat(net[0])
    for t, w in enumerate(path):
        d = min(0.8, (1 + t) / (10 + t)) if "warmup" in options else 0.8
        expected = d * expected + (1 - d) * w
    if "debias" in options:
        expected = expected / (1 - 0.8**STEPS)
    assert_close(average, expected)


def test_debiased_ema_with_a_schedule_is_a_weighted_mean(net, path):
    # Decay t/(t+1) on update t is the plain mean.
    tail = ft.ema_params(lambda t: t / (t + 1.0), debias=True)
    assert_close(averaged(tail, net)[2], path.mean(axis=0))


def test_swa(net, path):
    _, state, average = averaged(ft.swa(2, every=2), net)
    assert_close(average, path[[3, 5]].mean(axis=0))
    assert int(state[-1].collected) == 2


def columns(state, rank):
    """The deviations, one raveled row each."""
    return np.stack([flat([a[k] for a in jax.tree.leaves(state.deviations)]) for k in range(rank)])


def test_swag_moments(net, path):
    _, state, average = averaged(ft.swag(1, every=1, rank=3), net)
    kept = path[1:]
    assert_close(average, kept.mean(axis=0))
    assert_close(state[-1].square, kept.var(axis=0), rtol=1e-9)
    running = np.cumsum(kept, axis=0) / np.arange(1, len(kept) + 1)[:, None]
    # Columns 3, 4, 5 have overwritten 0, 1, 2.
    assert_close(columns(state[-1], 3), (kept - running)[3:])


@pytest.mark.parametrize("rank", [0, 3])
def test_swag_samples_have_its_covariance(rank, net):
    params, _ = net
    _, state, average = averaged(ft.swag(1, rank=rank), net)
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(
        jax.vmap(
            lambda k: jax.flatten_util.ravel_pytree(
                ft.swag_sample(state, params, key=k, scale=0.5)
            )[0]
        )
    )
    samples = np.asarray(draw(keys)) - average
    covariance = np.diag(flat(state[-1].square))
    if rank:
        d = columns(state[-1], rank)
        covariance = covariance / 2 + d.T @ d / (2 * (rank - 1))
    for u in np.random.default_rng(0).normal(size=(5, samples.shape[1])):
        expected = 0.25 * u @ covariance @ u
        # Four standard errors of the variance of 4000 Gaussian draws.
        assert (samples @ u).var() == pytest.approx(expected, rel=4 * np.sqrt(2 / 4000))


@pytest.mark.parametrize("make", [ft.ema_params, ft.swa, ft.swag])
def test_averages_are_the_params_before_anything_is_collected(make):
    w = {"a": jnp.array([1.0, 2.0])}
    assert_close(ft.averaged_params(make().init(w), w), w)
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), w)
    assert_close(ft.averaged_params(make().init(abstract), w), w)


def test_average_of_bfloat16_params_does_not_stall():
    # In bfloat16 0.999 * 1 + 0.001 * 2 is 1 for ever.
    w = jnp.ones(1, jnp.bfloat16)
    tx = ft.ema_params(0.999)
    state = tx.init(w)
    for _ in range(3):
        _, state = tx.update(jnp.ones_like(w), state, w)
    assert state.average.dtype == jnp.float32
    np.testing.assert_allclose(state.average, 2 - 0.999**3, rtol=1e-6)
    assert ft.averaged_params(state, w).dtype == jnp.bfloat16


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(4)(x))


def test_batch_statistics_of_averaged_params():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)), jnp.float32)
    variables = Normed().init(jax.random.key(0), x, False)
    params, stats = variables["params"], variables["batch_stats"]

    def update(params, stats, batch):
        variables = {"params": params, "batch_stats": stats}
        return Normed().apply(variables, batch, True, mutable=["batch_stats"])[1]["batch_stats"]

    batches = [x[:8], x[8:16], x[16:]]
    found = ft.reestimate_batch_statistics(update, params, stats, batches)["BatchNorm_0"]
    hidden = np.asarray(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
    parts = [hidden[:8], hidden[8:16], hidden[16:]]
    weights = np.array([8, 8, 4]) / 20
    # Float32, and the decay of 0.9 is measured as 1 - (1 - 0.1): a few 1e-6.
    np.testing.assert_allclose(found["mean"], hidden.mean(axis=0), rtol=2e-5, atol=2e-6)
    variance = sum(w * p.var(axis=0) for w, p in zip(weights, parts, strict=True))
    np.testing.assert_allclose(found["var"], variance, rtol=2e-5)


def test_entropy_sgd(net):
    params, batch = net
    dense = Dense(params, batch)
    options = {"inner_steps": 3, "inner_learning_rate": 0.1, "gamma": 0.5, "scoping": 0.2}
    tx = ft.entropy_sgd(0.8, averaging=0.75, noise=0.0, **options)
    trajectory, state = descend(tx, params, batch, 8)
    anchor = inner = mean = dense.w
    expected = []
    for t in range(8):
        gamma = 0.5 * 1.2 ** (t // 3)
        inner = inner - 0.1 * (dense.grad(inner) - gamma * (anchor - inner))
        mean = 0.75 * mean + 0.25 * inner
        if t % 3 == 2:
            anchor = anchor - 0.8 * (anchor - mean)
            inner = mean = anchor
        expected.append(inner)
    assert_close(trajectory, np.concatenate(expected))
    assert_close(ft.entropy_sgd_eval_params(state, params), anchor)


def test_entropy_sgd_noise_and_abstract_init():
    w = jnp.zeros(20_000)
    tx = ft.entropy_sgd(inner_steps=5, inner_learning_rate=0.25, noise=0.2)
    state = tx.init(jax.ShapeDtypeStruct(w.shape, w.dtype))
    updates, state = tx.update(w, state, w + 3)
    # sqrt(eta') epsilon = 0.1; 20,000 draws know it to 0.5 %.
    assert float(jnp.std(updates)) == pytest.approx(0.1, rel=0.02)
    np.testing.assert_array_equal(ft.entropy_sgd_eval_params(state, w), 3.0)
