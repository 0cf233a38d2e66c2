"""Groups, arms and measures are what they say, and claims can fail."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import learning_order as experiment
from experiments.learning_order import ARMS, LARGE, NOISE, SMALL
from experiments.lib.lab import changed
from experiments.lib.training import recipes
from experiments.lib.training.minibatch import Trained

SIZE = 50
"""Training examples: groups of 10, 10 and 30."""


@pytest.mark.parametrize("shares", [experiment.SHARES, (1, 0, 0)])
@pytest.mark.parametrize("data", ["vectors", "digits"])
def test_examples_are_sorted_by_group_and_tested_without_the_patch(data, shares):
    config = experiment.Config(data=data, train_size=SIZE, test_size=20, dimension=6)
    recipe = dataclasses.replace(config.recipe, classes=10)
    config = dataclasses.replace(config, recipe=recipe)
    found = experiment.examples(config, 3, shares)
    assert (found.inputs.shape[0], found.test_inputs.shape[0]) == (SIZE, 20)
    np.testing.assert_array_equal(found.targets, found.clean_targets)
    if data == "vectors":
        parts = [(a[:, :6], a[:, 6:]) for a in (found.inputs, found.test_inputs)]
    else:  # the patch covers rows and columns 0 to 6 of 8: an image shows at the edge
        edge = np.ones((8, 8), bool)
        edge[:7, :7] = False
        parts = [(a[:, edge], a[:, ~edge]) for a in (found.inputs, found.test_inputs)]
    first, patch = (abs(a).reshape(SIZE, -1).max(1) for a in parts[0])
    if shares == experiment.SHARES:
        assert (first[:10] > 0).all()
        assert (first[10:20] == 0).all()
        assert (first[20:] > 0).all()
        assert (patch[10:] > 0).all()
        assert len({tuple(p.ravel()[:3]) for p in parts[0][1][20:]}) <= 20  # fixed, +- by class
    else:
        assert (first > 0).all()
    if data == "vectors":
        assert (patch[:10] == 0).all()
        assert (parts[1][1] == 0).all()
    again, other = (experiment.examples(config, seed, shares) for seed in (3, 4))
    np.testing.assert_array_equal(again.inputs, found.inputs)
    assert (other.inputs != found.inputs).any()
    # No example is tested that was trained on.
    assert not {a.tobytes() for a in found.inputs} & {a.tobytes() for a in found.test_inputs}


def test_accuracies_of_the_groups():
    """A linear network that says what the inputs say."""
    config = experiment.Config(train_size=SIZE, test_size=4, dimension=6)
    data = experiment.examples(config, 0, experiment.SHARES)
    right = np.zeros(SIZE, bool)
    right[:5], right[10:20], right[20:30] = True, True, True
    recipe = dataclasses.replace(config.recipe, network="mlp-1-4-identity")
    answers = np.where(right, data.targets, 1 - data.targets)
    data = data._replace(inputs=np.eye(2, 12, dtype=np.float32)[answers])
    params, _ = recipes.network(recipe).init(jax.random.key(0), jnp.asarray(data.inputs[:1]))
    params["Dense_0"] = {"kernel": jnp.eye(12, 4), "bias": jnp.zeros(4)}
    kernel = jnp.full((32, 2), 0.0).at[:2].set(jnp.eye(2))[:4]
    params["head"] = {"kernel": kernel, "bias": jnp.zeros(2)}
    found = experiment.of_groups(recipe)(params, {}, data, None)
    expected = {"first_alone": 0.5, "patch_alone": 1.0, "both": 1 / 3}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-6)


def test_arms_go_on_from_where_they_ended():
    """Of two seeds and three arms, the run of a seed with an arm starts at number 3 seed + arm."""
    found = {arm: Trained(np.array([[i], [10 + i]]), {"s": np.array([i, 10 + i])}, {}, np.zeros(2))
             for i, arm in enumerate(ARMS)}  # fmt: skip
    params, state = experiment.ends(found)
    np.testing.assert_array_equal(params[:, 0], [0, 1, 2, 10, 11, 12])
    np.testing.assert_array_equal(state["s"], params[:, 0])
    first = Trained(
        0, {}, {"epoch": np.array([[0, 1, 2]]), "x": np.array([[5, 6, 7]])}, np.zeros(1)
    )
    last = first._replace(records={"epoch": np.array([[0, 1]]), "x": np.array([[7, 9]])})
    joined = experiment.joined(first, last, 2)
    np.testing.assert_array_equal(joined["epoch"], [[0, 1, 2, 3]])
    np.testing.assert_array_equal(joined["x"], [[5, 6, 7, 9]])


def test_all_arms_are_trained_alike_after_annealing(tmp_path, monkeypatch):
    """Before it rates and networks differ; afterwards neither, and all go on as they were."""
    calls = []

    def settings(folder, recipe, data, seeds, make, rates, *, measure, quiet, start=None):
        calls.append((folder.name, recipe.network, recipe.epochs, dict(rates), start))
        records = {"epoch": np.arange(recipe.epochs + 1)[None]}
        return {arm: Trained(np.zeros((1, 2)), {}, records, np.zeros(1)) for arm in rates}

    monkeypatch.setattr(experiment, "train_settings", settings)
    config = experiment.Config(seeds=1, train_size=20, test_size=5, dimension=4, noise=1.5)
    found = experiment.trained(config, tmp_path, experiment.SHARES)
    network, small, after = config.recipe.network, config.rate, config.recipe.epochs - config.anneal
    plain, noisy, last = calls
    assert plain[:4] == ("plain", network, config.anneal, {SMALL: small, LARGE: config.large_rate})
    assert noisy[:4] == ("noise", f"{network}-noise1.5", config.anneal, {NOISE: small})
    assert last[:4] == ("annealed", network, after, dict.fromkeys(ARMS, small))
    assert plain[4] is noisy[4] is None
    assert last[4] is not None
    assert last[4][0].shape == (3, 2)
    for arm in ARMS:
        np.testing.assert_array_equal(found[arm]["epoch"][0], np.arange(config.recipe.epochs + 1))


def made(*, patch=5, first=30, noisy_patch=0.5, at_end=1.0, gains=(0.05, 0.03), others=(0.0, 0.0)):
    """Made-up runs; the noise arm's patch accuracy before annealing and the end are given."""
    config = experiment.Config(seeds=3)
    epochs = np.tile(np.arange(0, config.recipe.epochs + 1, config.recipe.record_every), (3, 1))
    chance = np.array([[-0.001], [0.0], [0.001]])
    late = epochs > config.anneal

    def arm(patch_fit, first_after, accuracy):
        first_fit = np.where(epochs >= first_after, 1.0, 0.6)
        return {"epoch": epochs, "patch_alone": patch_fit, "first_alone": first_fit,
                "test_accuracy": 0.8 + (accuracy + chance) * late}  # fmt: skip

    early = np.where(epochs >= patch, 1.0, 0.5)
    noisy = np.where(late, at_end, noisy_patch)
    patches = {SMALL: early, LARGE: early, NOISE: noisy}
    runs = {}
    for name, gain, other in zip((NOISE, LARGE, SMALL), (*gains, 0.0), (*others, 0.0), strict=True):
        # The seeds differ in the small rate's accuracy, so that a difference has a spread.
        of_seed = np.array([[0.0], [0.001], [0.0]]) * (name == SMALL)
        runs[name] = arm(patches[name], first, gain + of_seed)
        alike = np.where(epochs >= first, 1.0, 0.5)
        runs[experiment.without_patch(name)] = arm(alike, first, other + of_seed)
    return {v.claim.name: v.verdict for v in experiment.lab.judged(runs, config)}


def test_verdicts_on_made_up_runs():
    assert made() == dict.fromkeys(experiment.lab.claims, "reproduced")
    failures = {
        "noise-hides-the-patch": {"noisy_patch": 0.7},
        "patch-is-learned-afterwards": {"at_end": 0.98},
        "small-rate-fits-the-patch-first": {"patch": 40},
        "noise-generalises": {"gains": (0.01, 0.03)},
        "large-rate-generalises": {"gains": (0.05, -0.01)},
    }
    assert failures.keys() == experiment.lab.claims.keys()
    for name, changes in failures.items():
        assert made(**changes)[name] == "not reproduced", name
    # Noise that helps as much where there is no patch says nothing about the order.
    assert made(others=(0.05, 0.03))["noise-generalises"] == "void"
    assert made(others=(0.05, 0.03))["large-rate-generalises"] == "void"
    assert made(noisy_patch=1.0)["patch-is-learned-afterwards"] == "void"


def test_when_a_group_is_fitted():
    records = {"epoch": np.array([[0, 2, 4]] * 3),
               "x": np.array([[0.5, 0.995, 0.7], [0.5, 0.6, 0.99], [0.1, 0.2, 0.98]])}  # fmt: skip
    np.testing.assert_array_equal(experiment.fitted_after(records, "x"), [2, 4, 4])


@pytest.mark.parametrize("change", [{"anneal": 0}, {"anneal": 300}, {"recipe": {"network": "mlp"}},
                                    {"recipe": {"record_every": 7}}])  # fmt: skip
def test_what_cannot_be_annealed_is_refused(change):
    with pytest.raises(ValueError, match="anneal"):
        changed(experiment.Config(), change)
