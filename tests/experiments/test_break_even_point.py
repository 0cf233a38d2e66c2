"""The break-even point: where it lies on made-up paths, and claims that can fail."""

import jax
import numpy as np

from experiments import break_even_point as experiment
from experiments.break_even_point import numbers
from experiments.break_even_point.arms import arms
from experiments.break_even_point.network import network
from experiments.break_even_point.training import curvature_variance

CONFIG = experiment.Config(seeds=3)


def test_the_break_even_point_is_where_the_slow_path_passes_the_fast_ones_largest():
    slow, fast = (
        {"trace_K": level * np.linspace(0, 1, 41)[None], "accuracy": np.zeros((1, 41))}
        for level in (2, 1)
    )
    # The fast path's smoothed end is a little below its level of 1; the slow one is there halfway.
    assert numbers.break_even(slow, fast)[0] in (19, 20)
    assert numbers.break_even(fast, slow) == [None]


def test_smoothing_removes_a_spike_and_keeps_a_line():
    line = np.arange(30.0)
    spiked = line.copy()
    spiked[15] = 1000
    # Next to the spike the medians are those of eight numbers and a larger one: half a step more.
    np.testing.assert_allclose(numbers.smooth(spiked)[10:20], line[10:20], atol=1)


def test_the_nearest_row_is_the_nearest_per_example():
    path = np.arange(5.0)[:, None, None] * np.ones((1, 3, 2))
    # Half a unit in each of two classes.
    found = numbers.nearest(path[1:3] + 0.5, path)
    np.testing.assert_allclose(found, np.sqrt(0.5), rtol=1e-6)


def test_the_variance_of_the_curvature_is_that_of_the_examples_hessians():
    rows = np.random.RandomState(0).randn(5, 3).astype(np.float32)
    direction = np.array([0.6, 0.0, 0.8], np.float32)
    found = curvature_variance(lambda p, x: (x @ p) ** 2 / 2, np.ones(3), rows, direction)
    pushed = rows * (rows @ direction)[:, None]  # the Hessian of an example is x x^T
    expected = np.square(pushed - pushed.mean(0)).sum(1).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # float32


def test_batch_norm_makes_the_network_blind_to_the_scale_of_its_inputs_and_weights():
    net = network(3, 4, 1.0, True)
    params = net.init(jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (20, 3))
    logits = net(params, inputs)
    # float32, and epsilon = 1e-5 beside variances of about 1
    np.testing.assert_allclose(net(params, 3 * inputs + 1), logits, atol=1e-4)
    tree = net.unravel(params)
    tree["layer_1"]["kernel"] *= 5
    scaled = jax.flatten_util.ravel_pytree(tree)[0]
    np.testing.assert_allclose(net(scaled, inputs), logits, atol=1e-4)


def _reproduced(tops, ratios, stability, noise, leaves):
    """Quantities that rise to the tops of the arms; the path of one of them leaves the others."""
    rise = np.linspace(0.1, 1, 60)
    rng = np.random.RandomState(1)
    runs = {}
    for name in arms(CONFIG):
        chance = 1 + 0.01 * rng.randn(3, 1)
        own = tops[name] * rise * chance
        runs[name] = dict.fromkeys(("lambda_H", "trace_K", "lambda_B", "trace_B"), own)
        runs[name] |= dict.fromkeys(("ratio_K", "ratio_B"), ratios[name] * chance + 0 * own)
        runs[name]["lambda_K"] = own + noise * rng.randn(3, 60)
        runs[name]["accuracy"] = np.zeros((3, 60))
        arm = arms(CONFIG)[name]
        # What the noise adds to the left side of the condition of stability.
        noise_part = np.linspace(0, 1, 60) * (stability - (1 - arm.rate * tops[name]) ** 2)
        share = (400 - arm.batch_size) / (arm.batch_size * 399)
        runs[name]["variance_H"] = noise_part / (share * arm.rate**2) + 0 * own
        away = 3 * np.maximum(np.arange(60.0) - 25, 0) if name == leaves else 0.0
        path = np.arange(60.0) + away + (0.5 if name in ("rate_1", "again") else 0)
        runs[name]["predictions"] = np.tile(path[None, :, None, None], (3, 1, 2, 2))
    judged = experiment.lab.judged(runs, CONFIG)
    return {v.claim.name for v in judged if v.verdict == "reproduced"}


def test_verdicts_on_made_up_runs():
    tops = {"rate_1": 1.8, "rate_0.3": 3.0, "rate_0.1": 4.0, "batch_8": 2.0, "batch_200": 6.0,
            "norm_rate_1": 1.5, "norm_rate_0.1": 9.0, "again": 4.0, "norm_again": 9.0}  # fmt: skip
    ratios = dict.fromkeys(tops, 8.0) | {"rate_1": 9.0, "batch_8": 12.0, "batch_200": 11.0}
    ratios |= {"norm_rate_1": 11.0}
    assert _reproduced(tops, ratios, 1.0, 0.01, "rate_1") == set(experiment.lab.claims)
    same = dict.fromkeys(tops, 5.0)
    bad = _reproduced(same | {"norm_rate_0.1": 4.0}, same, 0.4, 5.0, "again")
    assert bad <= {"stability-is-kept"}
    assert "stability-is-kept" not in _reproduced(tops, ratios, 2.0, 0.01, "rate_1")
