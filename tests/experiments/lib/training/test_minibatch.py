"""Minibatch runs side by side: kills, stops at a loss, and the same as one by one."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatjax
from experiments.lib.nets import losses
from experiments.lib.runs import trajectory
from experiments.lib.runs.checkpoint import list_steps, read_meta
from experiments.lib.runs.errors import ExperimentError
from experiments.lib.runs.metrics import read_metrics
from experiments.lib.runs.placement import Placement
from experiments.lib.training import epoch, minibatch, recipes
from experiments.lib.training.engine import Engine
from experiments.lib.training.validation import halves

SEEDS = [0, 1]
RECIPE = recipes.Recipe(hidden=(8,), epochs=6, record_every=2, batch_size=20)


@pytest.fixture(autouse=True)
def compile_quickly(quick_compilation):
    """Equal bits are asked for, not these."""


@pytest.fixture(scope="module")
def data():
    return minibatch.load_seeds("digits", SEEDS, train_size=40, label_noise=0.25)


def penalised(seed, rate):
    model_fn, loss = recipes.model_of(RECIPE), losses.OUTPUT_LOSSES[RECIPE.loss]
    head = flatjax.fisher_penalty(model_fn, loss, coef=0.1, every=3, seed=seed)
    return optax.chain(head, optax.sgd(rate))


class Killed(Exception):
    """Stands for the end of the process."""


def test_killed_runs_continue_to_the_same_bits(tmp_path, data, monkeypatch):
    def train(name):
        rates = np.full(2, 0.1, np.float32)
        return minibatch.train_arm(
            tmp_path / name, RECIPE, data, SEEDS, penalised, hyper=rates, chunk=2
        )

    whole = train("whole")
    assert whole.records["epoch"].tolist() == [[0, 2, 4, 6]] * 2

    def save_and_die(path, **arrays):
        save_arrays(path, **arrays)
        if path.stem == "4":
            raise Killed

    save_arrays = trajectory.save_arrays
    with monkeypatch.context() as patch:
        patch.setattr(trajectory, "save_arrays", save_and_die)
        with pytest.raises(Killed):
            train("killed")
    continued = train("killed")
    for name, values in whole.records.items():
        np.testing.assert_array_equal(continued.records[name], values, err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, whole.params, continued.params)
    # The seeds differ in data, initialisation and draws.
    assert whole.records["train_loss"][0, -1] != whole.records["train_loss"][1, -1]


def test_a_convolutional_network_with_batch_statistics(tmp_path, monkeypatch):
    """One run after the other by one program, on moved images; killed, it ends the same."""
    recipe = recipes.Recipe(
        network="s2cnn-2-batch", batch_size=8, epochs=2, flip=True, crop=1, stop_loss=0.01
    )
    data = minibatch.load_seeds("digits", SEEDS, train_size=16, test_size=20, flat=False)
    assert data.inputs.shape == (2, 16, 8, 8, 1)

    def train(name, **options):
        return minibatch.train_arm(
            tmp_path / name, recipe, data, SEEDS, lambda seed, rate: optax.sgd(0.1), **options
        )

    whole = train("whole")
    assert whole.records["train_loss"].shape == (2, 3)
    moved = jax.tree.leaves(whole.model_state)
    assert moved[0].shape[0] == 2
    assert all(np.isfinite(a).all() and np.ptp(a) > 0 for a in moved)

    def save_and_die(path, **arrays):
        save_arrays(path, **arrays)
        if path.stem == "2":  # a save for each record, where two runs share the time of one
            raise Killed

    save_arrays = trajectory.save_arrays
    with monkeypatch.context() as patch:
        patch.setattr(trajectory, "save_arrays", save_and_die)
        with pytest.raises(Killed):
            train("killed")
    shutil.copytree(tmp_path / "killed", tmp_path / "spread")
    jax.tree.map(np.testing.assert_array_equal, whole, train("killed"))

    # The rest on four devices, two examples on each: sums in another order, over four updates.
    spread = train("spread", data_parallel=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, spread)
    assert len(jax.tree.leaves(spread.params)[0].devices()) == 1  # for what comes after


def test_devices_share_a_batch(data):
    """The gradient is summed over them, and so is what is recorded."""
    run = epoch.Run(RECIPE, penalised, None, Placement(data_parallel=True))
    engine = Engine(run)
    given = jax.tree.map(jnp.asarray, (data, np.uint32(SEEDS), np.full(2, 0.1, np.float32)))
    given = run.placement.everywhere(given)
    state = jax.eval_shape(engine.begin, *given, recipes.init_runs(RECIPE, data, SEEDS))
    trained = run.placement.compiled(lambda *now: jax.vmap(run.epoch)(now[0], *now[2:], now[1]))
    for program in (trained.lower(state, *given), engine._record.lower(state, given[0])):
        assert "all-reduce" in program.compile().as_text()


def test_a_batch_that_does_not_split(tmp_path, data):
    recipe = recipes.Recipe(hidden=(), batch_size=6)
    with pytest.raises(ExperimentError, match="6 examples does not split over 4 devices"):
        minibatch.train_arm(tmp_path, recipe, data, SEEDS, penalised, data_parallel=True)
    # More than there are is all there are.
    recipe = recipes.Recipe(hidden=(), batch_size=50, epochs=0)
    one = jax.tree.map(lambda a: a[:1, :38] if a.shape[1] == 40 else a[:1], data)
    with pytest.raises(ExperimentError, match="38 examples does not split"):
        minibatch.train_arm(tmp_path, recipe, one, [0], penalised, data_parallel=True)


def test_what_becomes_of_a_run_that_diverges(tmp_path, data):
    """No number of it is one; its neighbour's are those that it has alone."""
    recipe = dataclasses.replace(RECIPE, activation="relu")

    def train(name, rates):
        runs = jax.tree.map(lambda a: a[: len(rates)], data)
        return minibatch.train_arm(
            tmp_path / name, recipe, runs, SEEDS[: len(rates)],
            lambda seed, rate: optax.sgd(rate), hyper=np.float32(rates),
            measure=functools.partial(halves, recipe),
        ).records  # fmt: skip

    both, alone = train("both", [0.1, 1e20]), train("alone", [0.1])
    for name, values in both.items():
        assert np.isfinite(values[:, 0]).all()
        assert np.isnan(values[1, 1:]).all() != (name == "epoch"), name
        # A product of one matrix and of two add up in orders of their own.
        np.testing.assert_allclose(values[:1], alone[name], rtol=1e-5, err_msg=name)
    rows = read_metrics(tmp_path / "both")
    assert [row["train_loss"][1] is None for row in rows] == [False, True, True, True]
    *_, last = list_steps(tmp_path / "both" / "checkpoints")
    assert read_meta(last).get("score") is None


def test_evaluated_in_parts(monkeypatch):
    recipe = recipes.Recipe(network="s2cnn-2", classes=3)
    images = np.random.RandomState(0).randn(11, 8, 8, 1).astype(np.float32)
    params, state = recipes.network(recipe).init(jax.random.key(0), images[:1])
    whole = recipes.logits(recipe, params, state, images)
    monkeypatch.setattr(recipes, "EVALUATED", 4)
    # Batches of another size add up in another order: some units in the last place of float32.
    np.testing.assert_allclose(
        recipes.logits(recipe, params, state, images), whole, rtol=1e-5, atol=1e-6
    )


def test_noisy_targets_move_every_update(tmp_path, data):
    common = {"hidden": (), "epochs": 1, "batch_size": None, "loss": "squared_error"}
    one = jax.tree.map(lambda a: a[:1], data)

    def moved(noise):
        recipe = recipes.Recipe(target_noise=noise, **common)
        found = minibatch.train_arm(
            tmp_path / str(noise), recipe, one, [0], lambda seed, rate: optax.sgd(1.0)
        )
        return found.params["layer_0"]["bias"][0]

    # The bias of a linear network moves by the mean over 40 examples of the noise.
    difference = moved(2.0) - moved(0.0)
    key = jax.random.wrap_key_data(jax.random.key_data(jax.random.fold_in(jax.random.key(0), 1)))
    update = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, 0), 1), 1)[0]
    noise = 2.0 * jax.random.normal(jax.random.fold_in(update, 3), (40, 10))
    np.testing.assert_allclose(difference, noise.mean(0), rtol=1e-4, atol=1e-6)  # float32 sums


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": True}, "name a network"),
        ({"crop": 2}, "name a network"),
        ({"target_noise": 0.1}, "squared_error"),
    ],
)
def test_what_does_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        recipes.Recipe(**options)


def test_labels_without_an_output(tmp_path, data):
    recipe = recipes.Recipe(hidden=(), classes=9)
    with pytest.raises(ValueError, match=r"--recipe\.classes 10"):
        minibatch.train_arm(tmp_path, recipe, data, SEEDS, penalised)


def test_shares_are_of_the_right_examples():
    """A network that answers what its one-hot input says."""
    eye = np.eye(10, dtype=np.float32)
    data = minibatch.SmallData(
        inputs=eye[[0, 1, 2, 3, 4]],
        targets=np.array([0, 5, 9, 7, 4], np.int32),
        clean_targets=np.array(
            [0, 1, 9, 4, 6], np.int32
        ),  # so the second and the last two are wrong
        test_inputs=eye[[1, 2, 3, 4]],
        test_targets=np.array([1, 3, 3, 3], np.int32),
    )
    params = {"layer_0": {"kernel": jnp.eye(10), "bias": jnp.zeros(10)}}
    recipe = recipes.Recipe(hidden=())
    answers = recipes.logits(recipe, params, {}, data.inputs)
    found = recipes.accuracies(recipe, params, {}, data, answers)
    expected = {
        "train_accuracy": 2 / 5, "test_accuracy": 2 / 4, "clean_fit": 1 / 2, "noisy_fit": 1 / 3,
        "noisy_recovered": 1 / 3, "norm": 10**0.5,
        # The logit of the answer is 1, all others are 0.
        "train_loss": np.log(np.e + 9) - 2 / 5, "test_loss": np.log(np.e + 9) - 2 / 4,
    }  # fmt: skip
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-5), name
    assert set(found) == set(expected)


def test_every_epoch_has_batches_of_its_own(tmp_path, data, monkeypatch):
    """The batches of a run of three epochs, and of no more: a chunk is filled up with none."""
    drawn = []

    def watched(key, size, batch_size):
        index = shuffled_batches(key, size, batch_size)
        jax.debug.callback(lambda i: drawn.append(np.asarray(i)), index)
        return index

    shuffled_batches = epoch.shuffled_batches
    monkeypatch.setattr(epoch, "shuffled_batches", watched)
    recipe = recipes.Recipe(hidden=(8,), epochs=3, record_every=3, batch_size=20)
    one = jax.tree.map(lambda a: a[:1], data)
    minibatch.train_arm(tmp_path, recipe, one, [0], lambda seed, rate: optax.sgd(0.1), chunk=3)
    jax.effects_barrier()
    orders = {tuple(np.ravel(index)) for index in drawn}
    assert len(orders) == len(drawn) == 3
    assert all(sorted(order) == list(range(40)) for order in orders)


def test_runs_stand_still_at_the_loss_they_stop_at(tmp_path, data):
    recipe = recipes.Recipe(hidden=(8,), epochs=60, record_every=20, stop_loss=1.5, batch_size=20)
    found = minibatch.train_arm(
        tmp_path, recipe, data, SEEDS, lambda seed, rate: optax.sgd(rate), hyper=np.array([1.0, 0])
    )
    assert found.reached.tolist() == [True, False]
    epochs = found.records["epoch"]
    assert epochs[1].tolist() == [0, 20, 40, 60]
    assert 0 < epochs[0, -1] < 60
    loss = found.records["train_loss"]
    assert loss[0, -1] <= 1.5
    assert loss[1, 0] == loss[1, -1]
    # Where it stands is where the parameters are.
    one = jax.tree.map(lambda a: a[0], found.params)
    batch = recipes.training_batch(recipe, jax.tree.map(lambda a: jnp.asarray(a[0]), data))
    # Two programs round the same sum differently: some units in the last place of float32.
    assert recipes.mean_loss(recipe, one, batch) == pytest.approx(loss[0, -1], rel=1e-5)


def test_an_average_is_read_from_the_state_of_the_optimiser(tmp_path, data):
    found = minibatch.train_arm(
        tmp_path,
        dataclasses.replace(RECIPE, epochs=3, record_every=1),
        data,
        SEEDS,
        lambda seed, hyper: optax.chain(optax.sgd(0.1), flatjax.swa(every=2)),  # two an epoch
        measure=lambda params, *_: {"bias": params["layer_0"]["bias"]},
    )
    averages = jax.vmap(flatjax.averaged_params)(found.opt_state, found.params)
    # Another order of the sum of three numbers below 0.1.
    np.testing.assert_allclose(
        averages["layer_0"]["bias"], found.records["bias"][:, 1:].mean(1), atol=1e-7
    )
