"""Networks out of checkpoints of any make."""

import shutil

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from experiments.lib.runs.errors import ExperimentError
from experiments.lib.training.load import load_checkpoint
from experiments.lib.training.train import train
from tests.experiments.throwaway import small

PARAMS = {"Dense_0": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}}
STATS = {"BatchNorm_0": {"mean": jnp.arange(3.0)}}
VARIABLES = {"params": PARAMS, "batch_stats": STATS}


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


TREES = {
    "bare": (PARAMS, {}),
    "variables": (VARIABLES, {"batch_stats": STATS}),
    "nested": ({"model": VARIABLES, "step": jnp.array(3)}, {"batch_stats": STATS}),
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
    assert (loaded.config, loaded.step) == (None, None)


def test_a_folder_of_numbered_checkpoints(tmp_path):
    for step in (5, 10):
        ocp.save(tmp_path / str(step), jax.tree.map(lambda x, s=step: x + s, PARAMS))
    assert load_checkpoint(tmp_path).step == 10
    assert_equal(load_checkpoint(tmp_path, step=5).params["Dense_0"]["bias"], jnp.full(3, 6.0))
    with pytest.raises(ExperimentError, match="no checkpoint at step 7; it has 5, 10"):
        load_checkpoint(tmp_path, step=7)


def test_flax_msgpack_files(tmp_path):
    (tmp_path / "model.msgpack").write_bytes(flax.serialization.to_bytes(VARIABLES))
    loaded = load_checkpoint(tmp_path / "model.msgpack")
    assert_equal(loaded.params, PARAMS)
    assert_equal(loaded.model_state, {"batch_stats": STATS})


def test_a_run_of_this_harness_comes_with_its_configuration(data_dir, tmp_path):
    del data_dir
    config = small(steps=4)
    result = train(tmp_path / "run", config, quiet=True)
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "4"):
        loaded = load_checkpoint(path)
        assert_equal(loaded.params, result.params)
        assert_equal(loaded.model_state, result.model_state)
        assert (loaded.config, loaded.step) == (config, 4)
    assert load_checkpoint(tmp_path / "run", step="best").step == 4
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4" / "meta")
    with pytest.raises(ExperimentError, match=r"/4 cannot be read: its file meta"):
        load_checkpoint(tmp_path / "run")
    with pytest.raises(ExperimentError, match="does not tell its best checkpoint"):
        load_checkpoint(tmp_path / "run", step="best")


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ExperimentError, match=f"there is no checkpoint at {tmp_path}/none"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(ExperimentError, match=f"checkpoint {tmp_path} cannot be read"):
        load_checkpoint(tmp_path)
    with pytest.raises(ExperimentError, match="is not a folder of numbered checkpoints"):
        load_checkpoint(tmp_path, step=3)
    (tmp_path / "text").write_text("x")
    with pytest.raises(ExperimentError, match="neither a folder nor a flax msgpack file"):
        load_checkpoint(tmp_path / "text")
