"""Steps, widths at the same loss, and claims that can fail."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from experiments import grokking as experiment
from experiments.grokking import matched as at
from experiments.lib.data.small import SmallData
from experiments.lib.nets import papers
from experiments.lib.runs.errors import BadData
from experiments.lib.training import recipes
from experiments.lib.verdicts import figures

CONFIG = experiment.lab.presets["smoke"]


def test_the_table_is_split_and_encoded():
    data = experiment.tables(CONFIG, 0.6)
    assert data.inputs.shape == (1, 15, 10)
    assert data.test_inputs.shape == (1, 10, 10)
    a, b = data.inputs[0].reshape(15, 2, 5).argmax(-1).T
    np.testing.assert_array_equal(data.targets[0], (a + b) % 5)
    recipe = dataclasses.replace(CONFIG.recipe, network="experiments.lib.nets.papers:TwoTokens")
    pairs = experiment.tables(dataclasses.replace(CONFIG, recipe=recipe), 0.6)
    np.testing.assert_array_equal(pairs.inputs[0], np.stack([a, b], 1))


def test_outputs_are_the_results():
    with pytest.raises(BadData, match=r"set --recipe\.classes 7, not 5"):
        dataclasses.replace(CONFIG, modulus=7)


def test_the_transformer_reads_both_residues_and_their_order():
    net = papers.TwoTokens(5)
    pairs = jnp.array([[1, 2], [2, 1], [1, 3]])
    params = net.init(jax.random.key(0), pairs)
    logits = np.asarray(net.apply(params, pairs))
    assert logits.shape == (3, 5)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs(logits[i] - logits[j]).max() > 1e-3  # outputs near one


def test_steps_and_the_delay():
    records = {
        "epoch": np.tile([0, 10, 20, 300], (2, 1)),
        "train_accuracy": np.array([[0.1, 0.99, 1, 1], [0.1, 0.2, 0.9, 0.98]]),
        "test_accuracy": np.array([[0, 0.1, 0.94, 0.96], [0, 0, 0, 1.0]]),
    }
    np.testing.assert_array_equal(experiment.steps(records), [300, 300])
    np.testing.assert_array_equal(experiment.delay(records), [30, np.nan])
    np.testing.assert_array_equal(at.memorised(records), [1, 0])
    runs = {"decay 1": records}
    np.testing.assert_array_equal(experiment.at_memorised(runs, CONFIG), [0.1, 0])


def test_the_measures_are_those_of_squared_error(x64):
    recipe = at.squared(CONFIG)
    data = jax.tree.map(lambda a: a[0], experiment.tables(CONFIG, 0.6))
    data = SmallData(*(a.astype(float) if a.dtype == np.float32 else a for a in data))
    params = recipes.init_runs(recipe, jax.tree.map(lambda a: a[None], data), [0])[0]
    params = jax.tree.map(lambda a: 2.0 * a[0].astype(float), params)
    found = at.measures(CONFIG, params, data)
    batch = recipes.training_batch(recipe, data)
    model_fn = recipes.model_of(recipe)
    with jax.default_matmul_precision("highest"):
        hessian = flatjax.hessian(recipes.losses_fn(recipe), params, batch).to_dense()
        squared = flatjax.losses.squared_error
        dense = flatjax.ggn(lambda p, x: model_fn(p, x), squared, params, batch).to_dense()
    assert found["sharpness"] == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-2)
    unravel = jax.flatten_util.ravel_pytree(params)[1]
    expected = flatjax.normalized_sharpness(params, unravel(np.diag(dense))).value
    assert found["normalised"] == pytest.approx(float(expected), rel=1e-6)


def test_decay_draws_the_weights_to_zero():
    tx = experiment.adamw(CONFIG)(0, 0.5)
    params = jnp.array([2.0, -4.0])
    updates, _ = tx.update(jnp.zeros(2), tx.init(params), params)
    # Without a gradient nothing but the rate times the decay, rounded in float32.
    np.testing.assert_allclose(updates, -CONFIG.learning_rate * 0.5 * params, rtol=1e-6)


def test_the_chains_stay_near_and_take_stable_steps(monkeypatch):
    given = {}

    def coefficient(*args, **options):
        given.update(options)
        return SimpleNamespace(value=1.0, r_hat=np.ones(1))

    monkeypatch.setattr(flatjax, "local_learning_coefficient", coefficient)
    data = jax.tree.map(lambda a: a[0], experiment.tables(CONFIG, 0.6))
    start = recipes.init_runs(at.squared(CONFIG), experiment.tables(CONFIG, 0.6), [0])
    found = at.measures(CONFIG, jax.tree.map(lambda a: a[0], start[0]), data)
    n = given["num_data"]
    stiffest = n / np.log(n) * found["sharpness"] + given["localization"]
    assert (n, given["localization"]) == (15, 100.0)
    assert given["step_size"] * stiffest == pytest.approx(0.5)  # a quarter of what is stable


def test_widths_are_where_all_is_memorised_and_at_the_end(monkeypatch, tmp_path):
    data = experiment.tables(CONFIG, 0.6)
    size = 10 * 8 + 8 + 8 * 5 + 5
    vectors = np.arange(3.0)[None, :, None] * np.ones((1, 3, size))
    records = {"train_accuracy": np.array([[0.1, 1.0, 1.0]])}

    def train_arm(folder, recipe, data, seeds, make, start, quiet):
        assert recipe.stop_loss == CONFIG.matched_loss
        ends = {name: np.zeros((2, 1)) for name in ("train_loss", "test_accuracy")}
        return SimpleNamespace(params=start[0], records=ends, reached=np.array([True, False]))

    monkeypatch.setattr(at.minibatch, "train_arm", train_arm)
    first = lambda config, params, data: {"bias": float(params["layer_0"]["bias"][0])}  # noqa: E731
    monkeypatch.setattr(at, "measures", first)
    found = at.widths(CONFIG, tmp_path, data, records, vectors)
    np.testing.assert_array_equal(found["bias"], [[1, 2]])
    np.testing.assert_array_equal(found["reached"], [[True, False]])


def runs_of(config, **changes):
    """Made-up runs of three seeds; changes of `arm__name`."""
    spread = np.array([0.99, 1.0, 1.01])[:, None]

    def arm(taken, end=1.0, loss=3.0):
        epoch = np.array([0.0, 10, 50, taken, 3000])
        test = [0.0, 0.02, 0.03, 0.97 * (end > 0.9), end]
        return {
            "epoch": np.round(spread * epoch),
            "train_accuracy": np.tile([0.0, 0.5, 1, 1, 1], (3, 1)),
            "test_accuracy": np.tile(test, (3, 1)),
            "test_loss": np.tile([2.0, 2 * loss, loss, 0.2, 0.1], (3, 1)),
            "train_loss": np.tile([2.0, 1.0, 0.1, 0.01, 0.01], (3, 1)),
        }

    def wide(ratio):
        pair = np.array([10.0, 10 * ratio])
        both = np.tile(pair, (3, 1)) * spread
        return {"normalised": both, "coefficient": both, "reached": np.ones((3, 2), bool)}

    runs = {
        "decay 0": arm(3000, end=0.02), "decay 0.3": arm(2000), "decay 1": arm(1000),
        "fraction 0.65": arm(800), "fraction 0.7": arm(600), "fraction 0.8": arm(200),
        "squared error 0": wide(0.95), "squared error 0.3": wide(0.5),
    }  # fmt: skip
    for key, value in changes.items():
        name, record = key.split("__")
        runs[name.replace("_", " ")][record] = value
    return runs


def verdicts(runs, config):
    return {v.claim.name: v.verdict for v in experiment.lab.judged(runs, config)}


def test_verdicts_on_made_up_runs():
    config = experiment.Config(seeds=3)
    good = verdicts(runs_of(config), config)
    assert set(good.values()) == {"reproduced"}
    runs = runs_of(config)
    slow = runs["decay 1"] = dict(runs["decay 1"])
    slow["epoch"] = slow["epoch"] * 0 + [0, 10, 200, 1900, 3000]  # not long after
    slow["test_accuracy"] = np.tile([0.0, 0.0, 0.3, 0.97, 0.97], (3, 1))  # nor from chance
    slow["test_loss"] = np.tile([2.0, 1.9, 1.0, 0.2, 0.1], (3, 1))
    runs["fraction 0.7"]["epoch"] = slow["epoch"] + 300
    for name in ("normalised", "coefficient"):
        runs["squared error 0.3"][name] = np.tile([10.0, 12.0], (3, 1))
    bad = verdicts(runs, config)
    for name in ("memorises-at-chance", "delay", "more-decay-sooner", "more-data-sooner",
                 "test-loss-rises", "flatter", "simpler"):  # fmt: skip
        assert bad[name] == "not reproduced", name
    swapped = runs_of(config)
    swapped["decay 0"], swapped["decay 1"] = swapped["decay 1"], swapped["decay 0"]
    other = verdicts(swapped, config)
    assert other["generalises"] == other["not-without-decay"] == "not reproduced"


def test_widths_count_where_the_loss_is_reached():
    config = experiment.Config(seeds=3)
    runs = runs_of(config)
    runs["squared error 0.3"]["reached"][0, 1] = False
    assert verdicts(runs, config)["flatter"] == "inconclusive"


def test_the_figure_is_drawn_where_no_seed_generalises(tmp_path):
    config = experiment.Config(seeds=3)
    runs = runs_of(config)
    runs["noise"] = runs["decay 0"]
    for arm, records in runs.items():
        if "test_accuracy" in records:
            records["test_accuracy"] = np.full((3, 5), 0.05)
        elif arm.startswith("squared"):
            records |= {name: np.full((3, 2), np.nan) for name in ("normalised", "coefficient")}
    path = tmp_path / "grokking.png"
    with figures.figure(path, rows=2, columns=2) as axes:
        experiment.grokking(axes, runs, config)
    assert path.stat().st_size > 0
