"""The poison is wrong, what is added to the gradient is what it is called, and claims can fail."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import minefields as experiment
from experiments.lib.data.small import small_data, stack_seeds
from experiments.lib.nets.architecture import network
from experiments.lib.training.minibatch import Trained
from experiments.lib.training.recipes import Recipe
from experiments.minefields import measuring, training

CONFIG = experiment.Config(seeds=3)


def test_the_poison_has_other_images_and_only_wrong_labels():
    whole = small_data("digits", seed=3, train_size=300)
    data, poison = training.with_poison(whole, 100, 3)
    np.testing.assert_array_equal(np.concatenate([data.inputs, poison.inputs]), whole.inputs)
    np.testing.assert_array_equal(data.targets, whole.targets[:100])
    np.testing.assert_array_equal(poison.clean_targets, whole.targets[100:])
    assert (poison.targets != poison.clean_targets).all()
    # Nine wrong labels for each, drawn alike: of 200 each shift comes 22 times, give or take 4.4.
    counts = np.bincount((poison.targets - poison.clean_targets) % 10, minlength=10)
    assert counts[0] == 0
    assert abs(counts[1:] - 200 / 9).max() < 4 * 4.4


@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_gradient_of_the_poison_is_added(batch_size):
    recipe = Recipe(hidden=(), batch_size=batch_size)
    inputs, targets = jnp.eye(4), jnp.arange(4)
    params = {"layer_0": {"kernel": jnp.zeros((4, 10)), "bias": jnp.zeros(10)}}
    poison = {"beta": 0.5, "inputs": inputs, "targets": targets}
    tx = training.poisoned(recipe, 3, poison)
    state = tx.init(params)
    each = []
    for _ in range(400 if batch_size else 1):
        found, state = jax.jit(tx.update)(params, state, params, args=({},))
        each.append(np.asarray(found["layer_0"]["kernel"]))
    # At zero weights all classes are as likely: the gradient is x (1/10 - e_y) over the examples.
    expected = 0.5 * (0.1 - np.eye(4, 10)) / 4
    # An example is in a batch of two with replacement in half of the draws; four standard errors.
    error = 0.0 if batch_size is None else 4 * 0.9 * 0.5 * (3 / 32 / 400) ** 0.5
    np.testing.assert_allclose(np.mean(each, 0), expected, atol=1e-6 + error)
    assert (np.std(each, 0).max() > 0) == (batch_size is not None)


def test_weights_are_held_where_training_starts():
    tx = training.held(0.25)
    state = tx.init({"w": jnp.array([1.0, 2.0])})
    found, _ = tx.update({"w": jnp.ones(2)}, state, {"w": jnp.array([3.0, 1.0])})
    np.testing.assert_allclose(found["w"], [1 + 0.5 * 2, 1 - 0.5 * 1])


def _params():
    draw = np.random.default_rng(0)
    layer = lambda *shape: {  # noqa: E731
        "kernel": jnp.asarray(draw.standard_normal(shape), jnp.float32),
        "bias": jnp.ones(shape[-1]),
    }
    return {"layer_0": layer(64, 8), "layer_1": layer(8, 10)}


def test_directions_have_the_norms_of_the_filters():
    params = _params()
    scales = jax.tree.map(lambda a: 1 / np.sqrt(a), measuring.units(params))
    assert sum(float(a.sum()) for layer in scales.values() for a in [layer["bias"]]) == 0
    # A direction uniform on the unit sphere has squared entries of 1 / d.
    moving = 64 * 8 + 8 * 10
    for name, layer in scales.items():
        expected = jnp.linalg.norm(params[name]["kernel"], axis=0)
        found = jnp.sqrt((layer["kernel"] ** 2).sum(0) / moving)
        np.testing.assert_allclose(found, expected, rtol=1e-5)  # float32


def test_radii_of_a_quadratic_and_of_a_loss_that_is_above_the_threshold():
    config = experiment.Config(directions=3, recipe=Recipe(hidden=(8,)), threshold=0.5)
    found = measuring.of_quadratic(config, _params(), jax.random.key(0), 0.5)
    np.testing.assert_allclose(found, 1.0, rtol=1e-3)  # the brackets
    batch = jnp.ones((2, 64)), jnp.array([0, 1])
    assert np.isnan(measuring.radii(config, _params(), batch, {}, jax.random.key(0))).all()


def test_the_map_is_seen_from_the_good_minimum():
    path = np.array([[[3.0, 4.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    nothing = np.zeros(1)
    good = Trained({"w": path[:, -1]}, {}, {"weights": path}, nothing)
    bad = Trained({"w": np.array([[0.0, 1.0, 2.0]])}, {}, {}, nothing)
    found = measuring.of_map(good, [bad])
    np.testing.assert_allclose(found["way"][0, -1], 0, atol=1e-6)
    for name, points in (("way", path[0]), ("others", np.array([[0.0, 1.0, 2.0]]))):
        length = (found[name][0] ** 2).sum(1) + found[f"{name}_off"][0] ** 2
        np.testing.assert_allclose(length, (points**2).sum(1), rtol=1e-5, atol=1e-6)


def _end(test, radius, distance):
    spread = np.array([-0.001, 0.0, 0.001])  # of three seeds
    return {
        "train_accuracy": np.ones(3),
        "test_accuracy": test + spread,
        "radii": np.full((3, 4), radius) * (1 + spread[:, None]),
        "distance": np.full(3, distance),
    }


# Test accuracy, radius, distance from the good minimum.
FOUND = {
    "good": (0.96, 0.5, 0.0), "beta 0.02": (0.6, 0.15, 11), "beta 0.1": (0.4, 0.11, 12),
    "beta 1": (0.35, 0.09, 14), "near": (0.5, 0.12, 6),
    "near, right labels": (0.97, 0.45, 5),
}  # fmt: skip


def _verdicts(changed=(), **of_good):
    runs = {arm: _end(*numbers) for arm, numbers in (FOUND | dict(changed)).items()}
    small = np.full(3, 1e-4)
    runs["good"] |= {
        "untrained": np.full(3, 0.1), "length": np.full(3, 8.0), "quadratic": small,
        "other_quadratic": small + 5e-3,
    } | of_good  # fmt: skip
    return {v.claim.name: v.verdict for v in experiment.lab.judged(runs, CONFIG)}


def test_verdicts_on_made_up_runs():
    assert set(_verdicts().values()) == {"reproduced"}
    harmless = {
        "beta 0.02": (0.96, 0.5, 1), "beta 0.1": (0.965, 0.5, 1),
        "beta 1": (0.96, 0.4, 1), "near": (0.97, 0.49, 9),
    }  # fmt: skip
    found = _verdicts(harmless, train_accuracy=np.full(3, 0.9), quadratic=np.full(3, 0.01))
    assert set(found.values()) == {"not reproduced"}


def test_claims_are_void_where_their_null_passes():
    others = {
        "beta 1": (0.35, 0.09, 7), "near, right labels": (0.5, 0.45, 5),
    }  # fmt: skip
    found = _verdicts(
        others, untrained=np.ones(3), other_quadratic=np.zeros(3), length=np.full(3, 20.0)
    )
    void = {name for name, verdict in found.items() if verdict == "void"}
    assert {"fits-everything", "near-bad", "exact"} <= void


def test_the_null_of_an_order_has_the_good_minima_of_each_seed_in_turn():
    rows = experiment.in_turn(np.arange(3.0), 4)
    np.testing.assert_array_equal(rows, [[0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2]])


def test_a_threshold_below_a_loss_leaves_the_claims_open():
    above = _verdicts({"near": (0.5, np.nan, 6)})
    assert above["near-narrow"] == above["volume"] == "inconclusive"


def test_an_arm_without_poison_is_the_good_one(tmp_path, quick_compilation):
    recipe = Recipe(hidden=(4,), batch_size=None, epochs=3, record_every=1)
    config = experiment.Config(train_size=20, poison_size=10, seeds=2, recipe=recipe)
    parts = [
        training.with_poison(small_data("digits", seed=s, train_size=30), 20, s)
        for s in config.seed_range()
    ]
    data, poison = (stack_seeds(each) for each in zip(*parts, strict=True))
    good = training.train_good(config, tmp_path / "good", data)
    arms = {"much": (5.0, poison.targets), "none": (0.0, poison.targets)}
    arms["right"] = 5.0, poison.clean_targets
    found = training.train_poisoned(config, tmp_path / "bad", data, poison, arms, config.descent)
    expected = measuring.vectors(good)
    np.testing.assert_allclose(measuring.vectors(found["none"]), expected, atol=1e-5)  # float32
    np.testing.assert_allclose(good.records["weights"][:, -1], expected)
    away = np.linalg.norm(measuring.vectors(found["much"]) - expected, axis=1)
    assert (away > 0.01).all()
    # Every arm of every seed has come to fit its own labels better than the other arm has.
    loss = jax.vmap(lambda p, x, y: optax.softmax_cross_entropy_with_integer_labels(
        network(recipe).apply(p, {}, x, train=False)[0], y).mean())  # fmt: skip
    for arm, other in (("much", "right"), ("right", "much")):
        own, others = (loss(found[n].params, poison.inputs, arms[arm][1]) for n in (arm, other))
        assert (own < others - 0.01).all()
    ended = measuring.end(config, found["much"], good, data)
    np.testing.assert_allclose(ended["distance"], away)
    assert np.isnan(ended["radii"]).all()  # three steps do not reach the threshold
