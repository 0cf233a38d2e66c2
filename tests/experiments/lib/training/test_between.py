"""Curves between networks: kept, continued to the same bits, and measured as networks are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatjax
from experiments.lib.data.small import small_data
from experiments.lib.nets.architecture import network
from experiments.lib.runs.kept import save_arrays
from experiments.lib.training import between as module
from experiments.lib.training import recipes
from experiments.lib.training.between import Batches, Between

RECIPE = recipes.Recipe(hidden=(4,), batch_size=8)
NORMED = recipes.Recipe(network="mlp-1-4-batch", batch_size=8)


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """The numbers matter to rounding alone."""


@pytest.fixture(scope="module")
def data():
    return small_data("digits", seed=0, train_size=20, test_size=30)


def ends(recipe, data):
    keys = jax.random.split(jax.random.key(0), 2)
    found = [network(recipe).init(key, data.inputs[:1]) for key in keys]
    return [params for params, _ in found], found[0][1]


def test_every_pass_has_all_batches_in_another_order(data):
    batches = Batches(RECIPE, data, seed=3)
    passes = [[np.concatenate(parts) for parts in zip(*batches, strict=True)] for _ in range(2)]
    for inputs, targets in passes:
        assert len(np.unique(inputs, axis=0)) == len(inputs) == len(targets) == 16
        which = (inputs[:, None] == data.inputs).all(-1).argmax(1)
        np.testing.assert_array_equal(targets, data.targets[which])
    assert (passes[0][0] != passes[1][0]).any()
    np.testing.assert_array_equal(next(iter(Batches(RECIPE, data, 3)))[0], passes[0][0][:8])
    images = small_data("digits", seed=0, train_size=20, flat=False)
    shifted = recipes.Recipe(network="s2cnn-2", batch_size=None, crop=2)
    inputs, targets = next(iter(Batches(shifted, images, seed=3)))
    assert inputs.shape == images.inputs.shape
    assert len(targets) == 20
    assert not (inputs[:, None] == images.inputs).all((2, 3, 4)).any(1).all()


def test_a_killed_fit_continues_to_the_same_bits(data, tmp_path, monkeypatch):
    (a, b), _ = ends(RECIPE, data)
    between, curve = Between(RECIPE, data, decay=0.1), flatjax.bezier([a, None, b])

    def fit(name):
        return between.fitted(tmp_path / name, curve, optax.sgd(0.1, 0.9), steps=6, seed=1)

    whole = fit("whole")
    assert len(list((tmp_path / "whole").iterdir())) == module.LEGS

    def save_and_die(path, **arrays):
        save_arrays(path, **arrays)
        if path.stem == "leg_1":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("experiments.lib.runs.kept.save_arrays", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            fit("killed")
    jax.tree.map(np.testing.assert_array_equal, fit("killed").free, whole.free)
    far = jax.tree.map(lambda x, y: np.abs(x - y).max(), whole.free, curve.free)
    assert max(jax.tree.leaves(far)) > 1e-3


def test_a_curve_is_trained_on_the_loss_with_the_decay_of_its_points(data, monkeypatch):
    (a, _), _ = ends(RECIPE, data)
    seen = {}

    def fit_curve(loss_fn, curve, batches, *args, **options):
        seen["loss"] = loss_fn(a, next(iter(batches)), *args)
        seen["batch"] = next(iter(Batches(RECIPE, data, (0, 0))))
        raise StopIteration

    monkeypatch.setattr(module.flatjax, "fit_curve", fit_curve)
    between = Between(RECIPE, data, decay=0.1)
    with pytest.raises(StopIteration):
        between._leg(flatjax.bezier([a, None, a]), (None, None), None, 1, (0, 0))
    plain = recipes.mean_loss(RECIPE, a, seen["batch"])
    expected = plain + 0.05 * optax.tree.norm(a, squared=True)
    np.testing.assert_allclose(seen["loss"], expected, rtol=1e-6)


@pytest.mark.parametrize("recipe", [RECIPE, NORMED])
def test_points_are_measured_as_networks_are(recipe, data):
    (a, b), state = ends(recipe, data)
    between = Between(recipe, data, state, measured=12)
    found = between.along(flatjax.bezier([a, b]), [0.0, 0.5, 1.0])
    middle = jax.tree.map(lambda x, y: (x + y) / 2, a, b)
    first = data._replace(
        inputs=data.inputs[:12], targets=data.targets[:12], clean_targets=data.targets[:12]
    )
    for i, params in enumerate((a, middle, b)):
        batch = state
        if state:
            inputs = jnp.asarray(first.inputs @ params["Dense_0"]["kernel"])
            batch = {"batch_stats": {"BatchNorm_0": {"mean": inputs.mean(0), "var": inputs.var(0)}}}
            inner = network(recipe).apply(params, state, first.inputs, train=True)[0]
            plain = network(recipe).model_fn(params, first.inputs, batch)
            # What is normalised in training mode is what these statistics give.
            np.testing.assert_allclose(plain, inner, atol=1e-4)
        on_train = recipes.logits(recipe, params, batch, jnp.asarray(first.inputs))
        expected = recipes.accuracies(recipe, params, batch, first, on_train)
        for name in module.METRICS:
            # Variances by differences of squares, in float32.
            np.testing.assert_allclose(found[name][i], expected[name], rtol=2e-4)
        answers = recipes.logits(recipe, params, batch, jnp.asarray(data.test_inputs))
        np.testing.assert_allclose(between.answers(params), answers, atol=1e-3)
    losses = found["train_loss"]
    above = losses - np.linspace(losses[0], losses[-1], 3)
    np.testing.assert_allclose(found["barrier"], above.max(), rtol=1e-5, atol=1e-6)
    assert found["lengths"].shape == (3,)


def test_over_a_plane_is_the_loss_with_its_decay(data):
    (a, b), _ = ends(RECIPE, data)
    between = Between(RECIPE, data, decay=0.2)
    c = jax.tree.map(lambda x: x - 0.5, a)
    plane = flatjax.plane_through(a, b, c)
    x, y = np.asarray(plane.coordinates).T
    found = between.over(plane, x, y)
    batch = recipes.training_batch(RECIPE, data)
    for i, params in enumerate((a, b, c)):
        expected = recipes.mean_loss(RECIPE, params, batch)
        expected += 0.1 * optax.tree.norm(params, squared=True)
        np.testing.assert_allclose(found[i, i], expected, rtol=1e-4)
