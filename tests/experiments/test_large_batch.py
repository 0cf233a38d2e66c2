"""The lines go through both ends, the attack is that of the paper, and the claims can fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import large_batch as experiment
from experiments.large_batch import ends
from experiments.lib.data.small import SmallData
from experiments.lib.training import recipes
from experiments.lib.training.recipes import Recipe

CHORD, START = experiment.CHORD, experiment.START


def _verdicts(reached=True, **changed):
    """Those of three seeds that differ by one in a hundred, with some numbers changed."""
    draw = np.array([0.99, 1.0, 1.01])
    numbers = {
        "large": 2.0,  # over small batches
        "again": 1.0,
        # Sharper to the right of 1 than to the left of 0, and higher in between.
        "chord": 0.1 + np.where(CHORD < 0, 1, 3) * CHORD**2 * (CHORD - 1) ** 2,
        "chord_again": 0.1 + CHORD**2 * (CHORD - 1) ** 2,
        "from_start_small": 1 - 0.9 * START,
        "from_start_large": 1 - 0.8 * START,
    } | changed
    runs = {}
    for arm in experiment.ARMS:
        factor = numbers.get(arm, 1.0)
        runs[arm] = dict.fromkeys(("sharpness", "trace", "phi"), factor * draw)
        runs[arm]["reached"] = np.full(3, reached or arm != "large")
        if arm != "small":  # or every seed would have one ratio
            runs[arm] = {k: v * draw if v.dtype == float else v for k, v in runs[arm].items()}
    for line in ("chord", "chord_again", "from_start_small", "from_start_large"):
        runs[line] = {"train_loss": draw[:, None] * numbers[line]}
    judged = experiment.lab.judged(runs, experiment.Config(seeds=3))
    return {v.claim.name: v.verdict for v in judged}


def test_verdicts_on_made_up_runs():
    assert set(_verdicts().values()) == {"reproduced"}
    mirrored = 0.1 + np.where(CHORD > 1, 1, 3) * CHORD**2 * (CHORD - 1) ** 2
    bumpy = 1 - 0.9 * START + 0.2 * np.sin(20 * START)
    wrong = _verdicts(large=1.0, chord=mirrored, from_start_large=bumpy)
    assert set(wrong.values()) == {"not reproduced"}
    assert _verdicts(from_start_small=bumpy)["falls-from-start"] == "not reproduced"


def test_a_second_descent_that_is_as_sharp_makes_the_claims_void():
    asymmetric = 0.1 + np.where(CHORD < 0, 1, 3) * CHORD**2 * (CHORD - 1) ** 2
    found = _verdicts(again=2.0, chord_again=asymmetric)
    void = {name for name, verdict in found.items() if verdict == "void"}
    assert void == {"sharper", "larger-trace", "larger-phi", "asymmetric"}


def test_nothing_is_said_where_the_loss_is_not_reached():
    found = _verdicts(reached=False)
    assert {found[name] for name in ("sharper", "larger-trace", "larger-phi")} == {"inconclusive"}


def test_the_rise_is_above_the_lowest_loss_before():
    losses = np.array([[3.0, 1.0, 2.0, 1.5, 2.5, 0.0], [3.0, 2.0, 1.0, 0.5, 0.2, 0.1]])
    np.testing.assert_allclose(experiment.climb(losses), [1.5, 0])


@pytest.fixture(scope="module")
def problem():
    recipe = Recipe(hidden=(3,), loss="squared_error")
    rng = np.random.default_rng(0)
    inputs, labels = rng.standard_normal((6, 5)).astype("f"), np.arange(6, dtype=np.int32)
    one = SmallData(inputs, labels, labels, inputs[:4], labels[:4])
    data = jax.tree.map(lambda a: a[None], one)
    first, second = (recipes.init_runs(recipe, data, [seed]) for seed in (0, 1))
    return recipe, one, data, first, second


def test_a_line_goes_from_the_first_to_the_second_end(problem):
    recipe, one, data, first, second = problem
    found = ends.lines(recipe, first, second, data, np.array([0.0, 1.0]))
    train = recipes.training_batch(recipe, one)
    for at, end in enumerate((first, second)):
        params = jax.tree.map(lambda a: a[0], end[0])
        # Rounding of a sum over six examples, and of first + (second - first).
        loss = recipes.mean_loss(recipe, params, train)
        np.testing.assert_allclose(found["train_loss"][0, at], loss, rtol=1e-5)
        answers = recipes.logits(recipe, params, {}, one.test_inputs).argmax(-1)
        hits = np.mean(np.asarray(answers) == one.test_targets)
        np.testing.assert_allclose(found["test_accuracy"][0, at], hits, rtol=1e-6)


def test_the_attack_moves_every_pixel_by_its_size_uphill(problem):
    """Of a network that is linear in two inputs: its class changes where the size is enough."""
    del problem
    recipe = Recipe(hidden=(), classes=2)
    params = {"layer_0": {"kernel": jnp.array([[1.0, 0.0], [0.0, 1.0]]), "bias": jnp.zeros(2)}}
    # The margin of an input (a, b) of class 0 is a - b; the attack takes twice its size from it.
    inputs = jnp.array([[0.3, 0.0], [0.5, 0.0], [0.0, 0.7], [0.9, 0.0]])
    targets = jnp.array([0, 0, 1, 0])
    for size, accuracy in ((0.0, 1.0), (0.1, 1.0), (0.2, 0.75), (0.3, 0.5), (0.4, 0.25)):
        assert ends.attacked(recipe, params, {}, inputs, targets, size) == accuracy
