"""Three factors: made-up pairs whose curvature and memorising do not follow eta / S must fail."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import three_factors as experiment
from experiments.lib.data.small import small_data, stack_seeds
from experiments.lib.nets.architecture import Architecture
from experiments.lib.nets.flat import flat_network
from experiments.three_factors import pairs, training
from experiments.three_factors.training import _curvature, _train


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """The tolerances are statistical."""


CONFIG = experiment.Config(seeds=1, rates=(0.1, 0.2), batch_sizes=(10, 20, 40))
PAIRS = [(rate, size) for size in (10, 20, 40) for rate in (0.1, 0.2)]


def _verdicts(factor, loss=0.0, noisier=None, faster=None):
    """Everything follows `factor(rate, size)`, whose values are about 0.01."""
    fit, test = np.linspace(0, 1, 11)[None], np.linspace(0.5, 0.9, 11)[None]

    def end(by):
        rows = {"loss": loss, "epochs": 1 / by, "frobenius": 1 / by, "test_accuracy": by}
        return {name: np.array([value]) for name, value in rows.items()}

    slow, small, large = PAIRS[0], PAIRS[1], PAIRS[3]
    runs = {
        "clean": {pair: end(factor(*pair)) for pair in PAIRS},
        "noisier": {large: end(noisier or factor(*small))},
        "momentum": {slow: end(faster or factor(*small))},
        "wrong": {
            # The larger it is, the better it generalises with as many of the labels memorised.
            pair: {
                "noisy_fit": fit,
                "test_accuracy": test + factor(*pair),
                "epoch": np.arange(11.0)[None] / factor(*pair),
            }
            for pair in PAIRS
        },
    }
    return {v.claim.name: v.verdict for v in experiment.lab.judged(runs, CONFIG)}


def test_verdicts_on_made_up_runs():
    assert set(_verdicts(lambda rate, size: rate / size).values()) == {"reproduced"}
    reverse = _verdicts(lambda rate, size: 0.1 + rate - 9 * rate / size, noisier=0.05, faster=0.05)
    assert "reproduced" not in reverse.values()
    unfinished = _verdicts(lambda rate, size: rate / size, loss=1.0)
    assert unfinished["norm-collapses"] == "inconclusive"
    assert unfinished["noise-is-the-third-factor"] == "inconclusive"
    assert unfinished["momentum-is-rate"] == "inconclusive"


def test_the_null_is_uncorrelated_with_the_ratio():
    ratio, other = (np.log(of(PAIRS)) for of in (pairs.ratios_of, pairs.crossed))
    assert np.corrcoef(ratio, other)[0, 1] == pytest.approx(0, abs=1e-12)  # float64
    rates, sizes = zip(*PAIRS, strict=True)
    assert np.corrcoef(np.log(rates), other)[0, 1] > 0.3
    assert np.corrcoef(np.log(sizes), other)[0, 1] > 0.3


def test_the_variance_within_equal_numbers_is_left():
    rows = np.array([[1.0, 3.0, 6.0, 8.0]])
    left = pairs.unexplained(rows, [0.1, 0.1, 0.2, 0.2])
    assert left == pytest.approx(1 / 7.25)  # 1 within either pair, (2.5^2 + 1) in all


def test_more_noise_has_the_mean_and_so_many_times_the_covariance():
    # 39 examples in batches of 20: an epoch is one step. Every run has other batches.
    data, count = small_data("digits", seed=0, train_size=39), 400
    net = flat_network(Architecture(hidden=(2,), loss="squared_error"), (64,))
    many = jax.tree.map(lambda a: np.repeat(a[None], count, 0), data)
    params = jnp.tile(net.init_seeds([0]), (count, 1))
    keys = jax.random.split(jax.random.key(1), count)
    options = jnp.float32(0.1), 1, 0.0, params, many, keys
    plain, noisier = (
        np.asarray(_train(net, 20, noise, 0.0, *options)["params"], float) for noise in (1, 3.0)
    )
    plain_var, noisier_var = plain.var(0).sum(), noisier.var(0).sum()
    # A hundred degrees of freedom at the least: one for every four runs.
    assert noisier_var / plain_var == pytest.approx(3, rel=4 * (2 * 2 / 100) ** 0.5 / 2)
    distance = np.square(plain.mean(0) - noisier.mean(0)).sum()
    assert distance < 4 * (plain_var + noisier_var) / count


def test_momentum_is_the_heavy_ball_of_optax():
    # Batches of all examples: their order is no matter. Four epochs are four steps.
    data = jax.tree.map(lambda a: a[None], small_data("digits", seed=0, train_size=20))
    net = flat_network(Architecture(hidden=(2,), loss="squared_error"), (64,))
    start = net.init_seeds([0])
    keys = jax.random.split(jax.random.key(1), 1)
    found = _train(net, 20, 1, 0.7, jnp.float32(0.1), 4, 0.0, start, data, keys)
    ball, batch = optax.sgd(0.1, momentum=0.7), (data.inputs[0], data.targets[0])
    params, state = start[0], ball.init(start[0])
    for _ in range(4):
        gradient = jax.grad(lambda p: net.losses_fn(p, batch).mean())(params)
        updates, state = ball.update(gradient, state)
        params = optax.apply_updates(params, updates)
    # Sums over examples in another order, four steps in float32.
    np.testing.assert_allclose(found["params"][0], params, rtol=1e-5, atol=1e-6)


def test_a_level_is_met_between_two_records():
    rising, other = np.array([0.0, 0.4, 0.6]), np.array([1.0, 2.0, 4.0])
    assert pairs.at(0.5, rising, other) == [pytest.approx(3.0)]
    assert np.isnan(pairs.at(0.7, rising, other)).all()


def test_the_curvature_of_a_network_with_batch_norm():
    net = flat_network(Architecture(network="mlp-1-3-batch"), (8, 8, 1))
    data = stack_seeds([small_data("digits", seed=s, train_size=30, flat=False) for s in (0, 1)])
    starts = net.init_seeds([5, 6])
    found = _curvature(net, 20, 200, starts, data)
    dense = jax.jit(jax.hessian(lambda p, batch: net.losses_fn(p, batch).mean()))
    for i, start in enumerate(starts):
        hessian = dense(start, (data.inputs[i, :20], data.targets[i, :20]))
        # Sixty steps of two vectors, in float32.
        np.testing.assert_allclose(found["sharpness"][i], jnp.linalg.eigvalsh(hessian)[-1], 0.01)
        # |H v|^2 has a standard deviation of at most sqrt 2 of its mean; four of 200, and the root.
        np.testing.assert_allclose(found["frobenius"][i], jnp.linalg.norm(hessian), 0.2)


def test_one_architecture_rules_both_parts(monkeypatch, tmp_path):
    architecture = Architecture(network="mlp-4-batch")
    smoke = experiment.lab.presets["smoke"]
    config = dataclasses.replace(smoke, architecture=architecture, rates=(0.02, 0.1))
    recipes = []
    monkeypatch.setattr(
        training, "train_settings", lambda folder, recipe, *_, **__: recipes.append(recipe) or {}
    )
    pieces = training.all_pairs(config, tmp_path)
    *_, net, data = pieces["clean", 0.02, 8].args
    assert net.architecture == architecture
    assert data.inputs.shape == (1, 32, 8, 8, 1)
    assert pieces["momentum", 0.02, 8].keywords == {"momentum": pytest.approx(0.8)}
    pieces["wrong", 0.0, 8]()
    assert vars(architecture).items() <= vars(recipes[0]).items()
    assert recipes[0].batch_size == 8
