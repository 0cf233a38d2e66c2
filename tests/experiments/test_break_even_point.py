"""The break-even point: where it lies on made-up paths, and claims that can fail."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import break_even_point as experiment
from experiments.break_even_point import numbers, training
from experiments.break_even_point.arms import arms, with_batch_norm
from experiments.break_even_point.training import curvature_variance, groups_of
from experiments.lib.data.small import SmallData
from experiments.lib.nets import named
from experiments.lib.nets.architecture import Architecture
from experiments.lib.nets.config import ModelConfig
from experiments.lib.nets.flat import flat_network
from experiments.lib.runs.rundir import read_json

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


@pytest.mark.parametrize(
    ("own", "twin"),
    [
        (CONFIG.architecture, "mlp-3-64-tanh-batch"),
        (Architecture(network="s2cnn-16"), "s2cnn-16-batch"),
        (Architecture(network="resnet-20-group"), "resnet-20-batch"),
        (Architecture(network="resnet-20"), None),  # it has batch norm
        (Architecture(hidden=(8, 4)), None),
        (Architecture(network="my_nets:tiny"), None),
    ],
)
def test_the_same_network_with_batch_norm(own, twin):
    found = with_batch_norm(own)
    assert found == (twin and dataclasses.replace(own, network=twin))


def test_the_twin_of_the_mlp_has_its_size():
    twin = with_batch_norm(CONFIG.architecture)
    assert twin is not None
    size = {"depth": 3, "width": 64}
    expected = ModelConfig(name="mlp", norm="batch", activation="tanh", **size)
    assert named.parsed(twin.network) == expected


def test_the_hessian_is_that_of_the_first_examples():
    net = flat_network(Architecture(hidden=(2,), classes=2), (3,))
    inputs, targets = np.arange(15, dtype=np.float32).reshape(5, 3), np.arange(5) % 2
    data = SmallData(inputs, targets, targets, inputs, targets)
    operator: Any = training._hessian(net, np.zeros(net.size, np.float32), data, (5, 3))
    np.testing.assert_array_equal(operator.batch[0], inputs[:3])
    np.testing.assert_array_equal(operator.batch[1], targets[:3])


def test_the_batches_of_their_covariance_are_from_whole_passes():
    """Two passes over five batches, the second cut short: no example is in one pass twice."""
    config = experiment.Config(train_size=20, batch_sizes=(2, 4, 8), gradient_batches=8)
    groups = groups_of(config)
    assert groups.shape == (8, 4)
    assert sorted(groups[:5].ravel()) == list(range(20))
    assert len(set(groups[5:].ravel())) == 12


def test_epochs_in_place_of_time():
    config = experiment.Config(epochs=3)
    steps = {name: arm.steps for name, arm in arms(config).items() if not arm.batch_norm}
    assert steps["rate_1"] == steps["rate_0.1"] == 3 * (400 // 40)
    assert steps["batch_8"] == 3 * (400 // 8)


@pytest.mark.slow
def test_what_batch_norm_leaves_out_stays_open(tmp_path, quick_compilation):
    """A network with batch norm of its own: neither gradients of examples nor a twin."""
    smoke = experiment.lab.presets["smoke"]
    config = dataclasses.replace(
        smoke, architecture=Architecture(network="mlp-4-1-batch"), out=tmp_path, quiet=True
    )
    experiment.lab.main(config)
    claims = read_json(tmp_path / "summary.json")["claims"]
    known = {claim["name"] for claim in claims if claim["measured"] is not None}
    assert known == {
        *(f"{by}-reduces-{name}" for by in ("rate", "batch") for name in OF_BATCHES),
        *("sharpness-within-stability", "rate-preconditions-batches"),
    }


OF_BATCHES = ("lambda-h", "lambda-b", "trace-b")


def _runs(tops, ratios, stability, noise, leaves, at=25):
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
        away = np.maximum(np.arange(60.0) - at, 0) * (name == leaves)
        along = np.arange(60.0) + (0.5 if name in ("rate_1", "again") else 0)
        runs[name]["predictions"] = np.tile(np.stack([along, away], 1)[:, None], (3, 1, 2, 1))
    return runs


def _judged(*made_up, **options):
    judged = experiment.lab.judged(_runs(*made_up, **options), CONFIG)
    return {
        verdict: {v.claim.name for v in judged if v.verdict == verdict}
        for verdict in ("reproduced", "void")
    }


TOPS = {"rate_1": 1.8, "rate_0.3": 3.0, "rate_0.1": 4.0, "batch_8": 2.0, "batch_200": 6.0,
        "norm_rate_1": 1.5, "norm_rate_0.1": 9.0, "again": 4.0, "norm_again": 9.0}  # fmt: skip
RATIOS = dict.fromkeys(TOPS, 8.0) | {
    "rate_1": 9.0,
    "batch_8": 12.0,
    "batch_200": 11.0,
    "norm_rate_1": 11.0,
}


def test_verdicts_on_made_up_runs():
    good = _judged(TOPS, RATIOS, 1.0, 0.01, "rate_1")
    assert good == {"reproduced": set(experiment.lab.claims), "void": set()}
    same = dict.fromkeys(TOPS, 5.0)
    bad = _judged(same | {"norm_rate_0.1": 4.0}, same, 0.4, 5.0, "again")
    assert bad["reproduced"] <= {"stability-is-kept"}
    loose = _judged(TOPS, RATIOS, 2.0, 0.01, "rate_1")
    assert "stability-is-kept" not in loose["reproduced"]


def test_paths_are_drawn_up_to_where_a_run_diverged():
    runs = _runs(TOPS, RATIOS, 1.0, 0.01, "rate_1")
    runs["rate_1"]["predictions"][0, 40:] = np.nan
    axes = Figure().subplots(1, 2)
    experiment.paths(axes, runs, CONFIG)
    lines = [line.get_xydata() for line in axes[0].get_lines() if len(line.get_xydata()) > 1]
    finite = [int(np.isfinite(line).all(1).sum()) for line in lines]
    assert finite == [40, 60, 60, 60, 60, 60]
    # A run of the other arm that did not diverge goes straight along: its steps are equal.
    steps = np.linalg.norm(np.diff(lines[3], axis=0), axis=1)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)  # predictions are float32


def test_paths_that_part_from_the_start_say_nothing():
    found = _judged(TOPS, RATIOS, 1.0, 0.01, "rate_1", at=0)
    assert found["void"] == {"paths-differ-after-the-break-even-point"}
