"""C, H and F: comparisons of matrices that are known, and claims that can fail."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import information_matrices as experiment
from experiments.information_matrices import comparisons, training
from experiments.lib.nets.architecture import Architecture
from experiments.lib.runs.errors import BadData, BadNetwork


def test_equal_and_orthogonal_matrices():
    a = np.diag([*np.arange(9.0, 0, -1), *[0.0] * 9])
    b = np.diag([*[0.0] * 9, *np.arange(9.0, 0, -1)])
    numbers = comparisons.compare({"H": a, "C": 2 * a, "F": b}, 9)
    assert numbers["r(H,C)"] == pytest.approx(0.5)
    assert numbers["s(H,C)"] == pytest.approx(1)
    assert numbers["overlap(H,C)"] == pytest.approx(1)
    assert numbers["s(C,F)"] == numbers["overlap(F,H)"] == 0


def test_takeuchi_leaves_out_what_is_flat():
    hessian = np.diag([4.0, 2.0, 1e-9, -1.0])
    covariance = np.diag([8.0, 2.0, 5.0, 5.0])
    assert comparisons.takeuchi({"H": hessian, "C": covariance}, 10) == pytest.approx(0.3)


def _judged(first, last, kl, kl_by_c=3.0, *, fresh=(2.0, 1.1, 1.0, 1.2), takeuchi=0.3):
    """Cosines and overlaps from `first` to `last`; of fresh examples r(F, H) and r(C, F)."""

    def arm(hessian, covariance):
        names = [f"{kind}({a},{b})" for kind in ("s", "overlap") for a, b in comparisons.PAIRS]
        pairs = dict.fromkeys(names, (first, last))
        pairs |= {"r(F,H)": hessian, "r(C,F)": covariance, "takeuchi": (0.3, takeuchi)}
        pairs |= {"gap": (0.01, 0.3)}
        found = {name: np.tile(pair, (3, 1)) for name, pair in pairs.items()}
        return found | {"kl": np.full((3, 2, 3), kl), "kl_by_c": np.full((3, 2, 3), kl_by_c)}

    runs = {"fitted": arm((2.0, 0.6), (1.0, 1 - last)), "fresh": arm(fresh[:2], fresh[2:])}
    found = experiment.lab.judged(runs, experiment.Config(seeds=3))
    return {
        verdict: {v.claim.name for v in found if v.verdict == verdict}
        for verdict in ("reproduced", "void")
    }


def test_verdicts_on_made_up_runs():
    good = {"reproduced": set(experiment.lab.claims), "void": set()}
    assert _judged(0.3, 0.96, 1.001) == good
    # 2: KL against d'Fd without the half
    bad = _judged(0.4, 0.3, 2.0, fresh=(2.0, 2.0, 1.0, 0.1), takeuchi=0.05)
    assert not bad["reproduced"]
    assert "fisher-is-the-divergence" in _judged(0.3, 0.96, 1.0, kl_by_c=1.0)["void"]


def _slope_losses(params, batch):
    return batch[0] @ params


def test_every_example_is_drawn_equally_often():
    # The gradient of example i is the i-th unit vector, and so the end counts the draws.
    data = jnp.eye(5), jnp.zeros(5)
    state = jnp.zeros(5), jnp.zeros(5), jnp.int32(0)
    key = jax.random.key(0)
    end, _, count = training._descend(_slope_losses, 4, state, data, 0.5, 0.0, key, 1000)
    counts = -np.asarray(end) * 4 / 0.5
    assert count == 1000
    assert counts.sum() == pytest.approx(4000)
    assert abs(counts - 800).max() < 4 * (4000 * 0.2 * 0.8) ** 0.5  # standard deviations


def test_heavy_ball_goes_on_where_it_stopped():
    data = jnp.eye(2), jnp.zeros(2)
    state, key = (jnp.zeros(2), jnp.zeros(2), jnp.int32(0)), jax.random.key(0)
    for steps in (1, 2):
        state = training._descend(_slope_losses, None, state, data, 0.5, 0.5, key, steps)
    # The gradient is 1/2 throughout; velocities 1, 3/2 and 7/4 of it.
    np.testing.assert_array_equal(state[0], np.full(2, -0.25 * (1 + 1.5 + 1.75)))


def test_images_are_averaged_over_squares():
    images = np.arange(32.0).reshape(1, 4, 4, 2)
    means = training.pooled(images, 2)
    assert means.shape == (1, 2, 2, 2)
    np.testing.assert_array_equal(means[0, 0, 1], images[0, :2, 2:].mean((0, 1)))
    with pytest.raises(BadData, match="choose a divisor"):
        training.pooled(images, 3)


@pytest.mark.parametrize(
    ("arm", "options", "message"),
    [
        ("fitted", {"network": "cnn-16"}, r"cnn-16 has 17,658 parameters .* beyond 6,000"),
        ("fresh", {"network": "cnn-2-batch"}, "cnn-2-batch has batch norm"),
        ("fitted", {"loss": "squared_error"}, "cannot have squared_error"),
    ],
)
def test_networks_without_the_matrices_are_refused(arm, options, message):
    config = experiment.lab.presets["smoke"]
    field = "fresh_architecture" if arm == "fresh" else "architecture"
    architecture = dataclasses.replace(config.architecture, **options)
    with pytest.raises(BadNetwork, match=message):
        training.prepared(dataclasses.replace(config, **{field: architecture}), arm, 0)


def test_the_arms_have_networks_and_examples_of_their_own():
    config = dataclasses.replace(
        experiment.lab.presets["smoke"],
        architecture=Architecture(hidden=(4,)),
        fresh_architecture=Architecture(network="cnn-2-tanh"),
        fresh_size=40,
        pool=2,
    )
    net, data = training.prepared(config, "fitted", 0)
    assert net.size == 16 * 4 + 4 + 4 * 10 + 10
    assert data.inputs.shape == (30, 16)
    net, data = training.prepared(config, "fresh", 0)
    assert net.architecture == config.fresh_architecture
    assert data.inputs.shape == (40, 4, 4, 1)
    assert data.test_inputs.shape == (30, 4, 4, 1)


def test_each_arm_is_measured_on_its_own_examples(monkeypatch, tmp_path):
    config = dataclasses.replace(
        experiment.lab.presets["smoke"], steps=(0,), fresh_size=40, test_size=25
    )
    sizes = []
    monkeypatch.setattr(
        training, "matrices", lambda net, params, batch: sizes.append(len(batch[1]))
    )
    monkeypatch.setattr(training, "compare", lambda found, top: {"top": top})
    monkeypatch.setattr(training, "takeuchi", lambda found, count: count)
    monkeypatch.setattr(training, "divergences", lambda *_: ([1.0], [1.0]))
    rows = training.run_seed(config, 0, tmp_path)
    assert sizes == [30, 25]
    assert [rows[arm][0]["top"] for arm in rows] == [9, 9]
    assert rows["fresh"][0]["takeuchi"] == 40
