"""Deficits are what they say and end when they should, and claims can fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import critical_periods as experiment
from experiments.lib.training import recipes
from experiments.lib.training.recipes import Recipe


def test_blurred_images_have_no_more_detail_than_said():
    rows = np.arange(4.0)[None, :, None, None]
    checks = np.indices((4, 4)).sum(0)[None, :, :, None] % 2 * 2.0 - 1
    assert abs(experiment.blurred(jnp.asarray(checks), 2)).max() < 0.3  # of one: the mean is zero
    ramp = experiment.blurred(jnp.broadcast_to(rows, (1, 4, 4, 1)), 2)
    # What varies slowly is kept; across the ramp nothing varies.
    assert np.corrcoef(ramp[0, :, 0, 0], np.arange(4))[0, 1] > 0.95
    np.testing.assert_allclose(ramp[0, 1], ramp[0, 1, :1] * np.ones((4, 1)), rtol=1e-6)
    one = experiment.blurred(jax.random.normal(jax.random.key(0), (2, 4, 4, 3)), 1)
    np.testing.assert_allclose(one, one[:, :1, :1] * np.ones((1, 4, 4, 1)), rtol=1e-5)


@pytest.mark.parametrize("upside_down", [False, True])
def test_gradients_are_those_on_impaired_images_until_the_deficit_ends(upside_down):
    recipe = Recipe(hidden=(3,))
    images = jax.random.normal(jax.random.key(1), (5, 4, 4, 1))
    targets = jnp.arange(5)
    params, _ = recipes.network(recipe).init(jax.random.key(0), images.reshape(5, 16))
    tx = experiment.impaired(recipe, 2, 2, jnp.asarray(upside_down))
    state = tx.init(params)
    other = images[:, ::-1] if upside_down else experiment.blurred(images, 2)
    for seen in (other, other, images):
        found, state = tx.update(
            jax.tree.map(jnp.zeros_like, params), state, params,
            batch=(images.reshape(5, 16), targets), args=({},),
        )  # fmt: skip
        batch = seen.reshape(5, 16), targets
        expected = jax.grad(lambda p, b=batch: recipes.mean_loss(recipe, p, b))(params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def _judged(blur, flip, trace):
    config = experiment.Config(seeds=3)
    epochs = experiment.with_epochs(config).epochs
    points = np.arange(0, epochs + 1, config.recipe.record_every)
    chance = np.array([[-0.001], [0.0], [0.001]])
    plain = 0.95 + chance + 1e-4 * np.cos(points)

    def arm(costs, length):
        return {
            "epoch": np.tile(points, (3, 1)),
            "test_accuracy": plain - costs * (points >= length + config.recovery),
            "trace_fisher": np.tile(trace(points), (3, 1)),
        }

    runs = {
        experiment.arm_of(kind, n): arm(cost(n), n)
        for kind, cost in zip(experiment.KINDS, (blur, flip), strict=True)
        for n in config.deficits
    }
    return {v.claim.name: v.verdict for v in experiment.lab.judged(runs, config)}


def _peaked(epochs):
    return 1 + 9 * np.exp(-(((epochs - PEAK) / 5) ** 2))


PEAK = 10
"""Where tr F of the made-up runs is largest: deficits of up to so many epochs are short."""


def test_verdicts_on_made_up_runs():
    good = _judged(lambda n: 0.002 * n, lambda n: 0.0001 * n, _peaked)
    assert good == dict.fromkeys(experiment.lab.claims, "reproduced")
    bad = _judged(lambda n: -0.002 * n, lambda n: -0.004 * n, lambda e: 10 * np.exp(-e / 20))
    assert not {name for name, verdict in bad.items() if verdict == "reproduced"}
    # All that is lost is lost at once: neither twice as much beyond the peak, nor of one kind.
    early = _judged(lambda n: 0.1 * (n > 0) + 1e-4 * n, lambda n: 0.1 * (n > 0), _peaked)
    assert {n for n, v in early.items() if v == "reproduced"} == {"later-is-worse", "fisher-peaks"}


def test_where_deficits_are_measured():
    config = experiment.Config(seeds=1)
    last = experiment.with_epochs(config).epochs
    epochs = np.arange(0, last + 1, config.recipe.record_every)[None]
    runs = {experiment.arm_of(kind, n): {"test_accuracy": epochs}
            for kind in experiment.KINDS for n in config.deficits}  # fmt: skip
    expected = [[n + config.recovery for n in config.deficits]]
    for kind in (*experiment.KINDS, None):
        np.testing.assert_array_equal(experiment.recovered(runs, config, kind), expected)
