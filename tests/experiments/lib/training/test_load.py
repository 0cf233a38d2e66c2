"""Networks out of checkpoints of any make."""

import shutil

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from experiments.lib.runs.checkpoint import Checkpoints
from experiments.lib.runs.errors import ExperimentError
from experiments.lib.training.load import load_checkpoint

PARAMS = {"Dense_0": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}}
STATS = {"BatchNorm_0": {"mean": jnp.arange(3.0)}}
VARIABLES = {"params": PARAMS, "batch_stats": STATS}


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


TREES = {
    "bare": (PARAMS, {}),
    "variables": (VARIABLES, {"batch_stats": STATS}),
    "nested": ({"model": VARIABLES, "step": 3, "lr": 0.1, "name": "x"}, {"batch_stats": STATS}),
    "state": (
        {"params": PARAMS, "opt_state": optax.adam(0.1).init(PARAMS), "batch_stats": STATS},
        {"batch_stats": STATS},
    ),
    "double": ({"params": VARIABLES, "step": jnp.array(3)}, {"batch_stats": STATS}),
}


@pytest.mark.parametrize("name", TREES)
def test_orbax_checkpoints_of_others(tmp_path, name):
    tree, model_state = TREES[name]
    ocp.save(tmp_path / "checkpoint", tree)
    loaded = load_checkpoint(tmp_path / "checkpoint")
    assert_equal(loaded.params, PARAMS)
    assert_equal(loaded.model_state, model_state)


def test_a_folder_of_numbered_checkpoints(tmp_path):
    for step in (5, 10):
        ocp.save(tmp_path / str(step), jax.tree.map(lambda x, s=step: x + s, PARAMS))
    assert load_checkpoint(tmp_path).path.name == "10"
    assert_equal(load_checkpoint(tmp_path, step=5).params["Dense_0"]["bias"], jnp.full(3, 6.0))
    with pytest.raises(ExperimentError, match="no checkpoint at step 7; it has 5, 10"):
        load_checkpoint(tmp_path, step=7)


def test_flax_msgpack_files(tmp_path):
    (tmp_path / "model.msgpack").write_bytes(flax.serialization.to_bytes(VARIABLES))
    loaded = load_checkpoint(tmp_path / "model.msgpack")
    assert_equal(loaded.params, PARAMS)
    assert_equal(loaded.model_state, {"batch_stats": STATS})


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The folder of two runs side by side, as the engine saves them; the first save is the best."""
    folder = tmp_path_factory.mktemp("own") / "run"
    store = Checkpoints(folder / "checkpoints")
    for step, score in ((2, 0.9), (4, 0.5), (6, 0.6), (8, 0.7)):
        both = jax.tree.map(lambda a, s=step: jnp.stack([a, a + s]), VARIABLES)
        runs = {"params": both["params"], "model_state": {"batch_stats": both["batch_stats"]}}
        runs |= {"opt_state": optax.adam(0.1).init(PARAMS), "epoch": jnp.array([step, step])}
        store.save(step, {"runs": runs, "block": jnp.array(step)}, {}, score=score)
    store.close()
    return folder


@pytest.mark.parametrize(
    ("place", "options", "step"),
    [
        ("", {}, 8),
        ("checkpoints", {"step": 6}, 6),
        ("checkpoints/6", {}, 6),
        ("", {"step": "best"}, 2),
    ],
)
def test_a_checkpoint_of_this_laboratory_is_one_of_its_runs(own, place, options, step):
    for which, add in ((0, 0), (1, step)):
        loaded = load_checkpoint(own / place, which=which, **options)
        expected = jax.tree.map(lambda a, add=add: a + add, (PARAMS, {"batch_stats": STATS}))
        assert_equal((loaded.params, loaded.model_state), expected)
        assert loaded.path == own / "checkpoints" / str(step)


def test_what_a_folder_of_this_laboratory_has_not(own):
    with pytest.raises(ExperimentError, match="8 holds 2 runs, from 0; there is no 2"):
        load_checkpoint(own, which=2)
    with pytest.raises(ExperimentError, match="no checkpoint at step 4; it has 2, 6, 8"):
        load_checkpoint(own, step=4)


def test_damage_is_told(own, tmp_path):
    folder = shutil.copytree(own / "checkpoints", tmp_path / "checkpoints")
    path = max((folder / "8").rglob("d/*"), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ExperimentError, match=r"/8 cannot be read: its file state"):
        load_checkpoint(tmp_path)


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ExperimentError, match=f"there is no checkpoint at {tmp_path}/none"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(ExperimentError, match=f"checkpoint {tmp_path} cannot be read"):
        load_checkpoint(tmp_path)
    ocp.save(tmp_path / "5", PARAMS)
    with pytest.raises(ExperimentError, match=r"no checkpoint in .* was saved with a score"):
        load_checkpoint(tmp_path, step="best")
    with pytest.raises(ExperimentError, match="is not a folder of numbered checkpoints"):
        load_checkpoint(tmp_path / "5", step=3)
    (tmp_path / "text").write_text("x")
    with pytest.raises(ExperimentError, match="neither a folder nor a flax msgpack file"):
        load_checkpoint(tmp_path / "text")
