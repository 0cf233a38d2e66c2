"""Saving and restoring trees: exact, verified, the best kept; damage set aside."""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.lib.runs import arrays, checkpoint, seals
from experiments.lib.runs.checkpoint import Checkpoints
from experiments.lib.runs.errors import CheckpointMismatch

PARAMS = {"w": jnp.arange(600.0).reshape(20, 30) / 7, "b": jnp.ones(3, jnp.bfloat16)}


def make_state(step):
    params = jax.tree.map(lambda x: x + step, PARAMS)
    opt_state = optax.adam(0.1).init(params)
    return {
        "params": params,
        "opt": opt_state,
        "key": jax.random.key(step),
        "flag": jnp.array(True),
    }


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def save(folder, steps, **options):
    """Saves a state at each step, with its score."""
    store = Checkpoints(folder, **options)
    for step, score in steps.items():
        store.save(step, make_state(step), {"name": "x"}, score=score)
    store.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(folder, {1: None, 2: None}, keep_last=2)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def test_what_is_restored_is_what_was_saved(saved):
    state = make_state(2)
    restored = Checkpoints(saved).restore(abstract(state))
    assert restored.step == 2
    assert restored.meta["name"] == "x"
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, *map(_plain, (restored.state, state)))


def _plain(state):
    return state | {"key": jax.random.key_data(state["key"])}


def test_donating_right_after_a_save_does_not_spoil_it(tmp_path):
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    store, state = Checkpoints(tmp_path, keep_last=9), {"w": jnp.zeros((512, 512))}
    for step in range(1, 10):
        state = advance(state)
        if step % 3 == 0:
            store.save(step, state, {})
    store.close()
    for step in (9, 6, 3):
        restored = Checkpoints(tmp_path).restore(abstract(state))
        assert restored.step == step
        assert np.unique(restored.state["w"]).tolist() == [step]
        shutil.rmtree(tmp_path / str(step))


def test_the_last_and_the_best_are_kept(tmp_path):
    nan = float("nan")  # of a network that answers nothing
    save(tmp_path, {1: 0.5, 2: 0.9, 3: None, 4: 0.7, 5: nan, 6: 0.6}, keep_last=2)
    assert [p.name for p in checkpoint.list_steps(tmp_path)] == ["2", "5", "6"]
    assert checkpoint.best_step(tmp_path).name == "2"
    shutil.rmtree(tmp_path / "2")
    shutil.rmtree(tmp_path / "6")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .* was saved with a score"):
        checkpoint.best_step(tmp_path)


def one_bit(folder):
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncated_arrays(folder):
    for path in folder.glob("state/**/d/*"):
        path.write_bytes(path.read_bytes()[:100])


def empty_file(folder):
    (folder / "state" / "manifest.ocdbt").write_bytes(b"")


def other_metadata(folder):
    path = folder / "meta" / "metadata"
    path.write_text(path.read_text().replace('"x"', '"y"'))


def other_step(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "1", folder)


def state_of_another_step(folder):
    """With all that was written down about its files."""
    shutil.rmtree(folder / "state")
    shutil.copytree(folder.parent / "1" / "state", folder / "state")
    seals.seal(folder)


def no_state(folder):
    shutil.rmtree(folder / "state")


def no_metadata(folder):
    shutil.rmtree(folder / "meta")


DAMAGE = [one_bit, truncated_arrays, empty_file, other_metadata, other_step]
DAMAGE += [state_of_another_step, no_state, no_metadata]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_the_one_before_taken(copy, damage):
    damage(copy / "2")
    state = make_state(1)
    newest, before = (re.escape(str(copy / s)) for s in "21")
    with pytest.warns(UserWarning, match=f"checkpoint {newest} is damaged .* from {before}"):
        restored = Checkpoints(copy).restore(abstract(state))
    assert restored.step == 1
    jax.tree.map(np.testing.assert_array_equal, *map(_plain, (restored.state, state)))
    assert (copy.parent / "damaged" / "2").is_dir()
    assert [p.name for p in checkpoint.list_steps(copy)] == ["1"]


def test_arrays_that_can_be_read_but_are_not_those_saved_are_damaged(tmp_path, monkeypatch):
    """What storage does not notice: an array changed in memory or on disk, with all files sound."""
    store, state = Checkpoints(tmp_path / "saved"), {"w": jnp.arange(4.0)}
    store.save(1, state, {})
    of_another = arrays.checksum({"w": state["w"].at[2].set(2.5)})
    with monkeypatch.context() as patch:
        patch.setattr(arrays, "checksum", lambda _: of_another)
        store.save(2, state, {})
        store.close()
    with pytest.warns(UserWarning, match="do not match their checksum"):
        assert Checkpoints(tmp_path / "saved").restore(abstract(state)).step == 1


def test_if_all_are_damaged_there_is_none(copy):
    for step in "12":
        empty_file(copy / step)
    with pytest.warns(UserWarning, match="from the beginning: none is sound") as caught:
        assert Checkpoints(copy).restore(abstract(make_state(1))) is None
    assert len(caught) == 2


def test_a_half_written_checkpoint_does_not_count(copy):
    (copy / "2").rename(copy / "2.orbax-checkpoint-tmp")
    store = Checkpoints(copy)
    assert store.restore(abstract(make_state(1))).step == 1
    store.save(2, make_state(2), {})
    store.close()
    assert sorted(p.name for p in copy.iterdir()) == ["1", "2"]


def test_another_structure_is_an_error_and_nothing_is_moved(copy):
    state = make_state(2)
    state["params"]["w"] = jnp.zeros((20, 31))
    with pytest.raises(CheckpointMismatch, match=r"\['params'\]\['w'\]:float32\[20,31\]; it was"):
        Checkpoints(copy).restore(abstract(state))
    assert len(checkpoint.list_steps(copy)) == 2


@pytest.mark.parametrize("name", ["w", "b", "key", "flag"])
def test_the_checksum_sees_every_change(name):
    state = {**PARAMS, "key": jax.random.key(0), "flag": jnp.array(True)}
    changed = dict(state)
    changed["w"] = PARAMS["w"].at[3, 4].set(jnp.nextafter(PARAMS["w"][3, 4], jnp.inf))
    changed["b"] = PARAMS["b"].at[1].set(1.0078125)  # the next bfloat16
    changed |= {"key": jax.random.key(1), "flag": jnp.array(False)}
    before = arrays.checksum(state)
    assert arrays.checksum({**state, name: changed[name]}) != before
    assert arrays.checksum({**state, "w": state["w"][::-1]}) != before


def test_the_checksum_is_that_of_the_numbers_not_of_containers_or_shardings():
    state = optax.adam(0.1).init({"w": jnp.arange(8.0)})[0]
    before = int(arrays.checksum(state))
    assert int(arrays.checksum(state._asdict())) == before
    if len(jax.devices()) > 1:
        mesh = jax.sharding.Mesh(np.array(jax.devices()), "x")
        sharded = jax.device_put(state.mu["w"], jax.sharding.NamedSharding(mesh, jax.P("x")))
        assert int(arrays.checksum(state._replace(mu={"w": sharded}))) == before
