"""Chunks of a trajectory: a stop at any point, and the same bits."""

import functools
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lib.runs import trajectory
from experiments.lib.runs.checkpoint import best_step, list_steps
from experiments.lib.runs.errors import Preempted
from experiments.lib.runs.metrics import read_metrics
from experiments.lib.runs.trajectory import run_chunks


class Stop(Exception):
    pass


@functools.partial(jax.jit, static_argnums=1)
def advance(state, steps):
    def step(state, _):
        x, key = state["x"], jax.random.wrap_key_data(state["key"])
        key, draw = jax.random.split(key)
        x = 0.9 * x + jax.random.normal(draw, x.shape)
        return {"x": x, "key": jax.random.key_data(key)}, {"x": x, "norm": jnp.linalg.norm(x)}

    return jax.lax.scan(step, state, length=steps)


def start():
    return {"x": jnp.ones(3), "key": jax.random.key_data(jax.random.key(1))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def whole(folder):
    return run_chunks(folder, start(), advance, 7, 2)


@pytest.fixture
def copy(folder, whole, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def counted(calls):
    """`advance`, which notes the steps of its calls."""

    def advancing(state, steps):
        calls.append(steps)
        return advance(state, steps)

    return advancing


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_stopped_trajectory_ends_with_the_same_bits(tmp_path, whole, calls):
    count = 0

    def stopping(state, steps):
        nonlocal count
        count += 1
        if count > calls:
            raise Stop
        return advance(state, steps)

    with pytest.raises(Stop):
        run_chunks(tmp_path, start(), stopping, 7, 2)
    state, records = run_chunks(tmp_path, start(), advance, 7, 2)
    jax.tree.map(np.testing.assert_array_equal, (state, records), whole)
    assert records["x"].shape == (7, 3)


def test_rows_of_steps_that_come_again_are_there_once(tmp_path, monkeypatch):
    """A kill between the rows of a chunk and its checkpoint: the chunk is computed again."""

    class Dying(trajectory.Checkpoints):
        def save(self, step, *args, **options):
            if step == 4:
                raise Stop
            super().save(step, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(trajectory, "Checkpoints", Dying)
        with pytest.raises(Stop):
            run_chunks(tmp_path, start(), advance, 7, 2)
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3]
    run_chunks(tmp_path, start(), advance, 7, 2)
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(7))


@pytest.mark.parametrize(("most", "steps"), [(7, range(7)), (6, [0, 2, 4, 6]), (3, [0, 3, 6])])
def test_a_long_trajectory_has_at_most_so_many_rows(tmp_path, monkeypatch, most, steps):
    """Every second step, every third, and so on: never more than the most."""
    monkeypatch.setattr(trajectory, "MOST_ROWS", most)
    run_chunks(tmp_path, start(), advance, 9, 3, logged=7)
    rows = [row["step"] for row in read_metrics(tmp_path)]
    assert rows == list(steps)
    assert len(rows) <= most


def lost(parts):
    (parts / "4.npz").unlink()


def lost_at_the_end(parts):
    (parts / "7.npz").unlink()


def cut(parts):
    (parts / "4.npz").write_bytes((parts / "4.npz").read_bytes()[:50])


def one_of_the_others(parts):
    shutil.copy(parts / "2.npz", parts / "4.npz")


def one_of_another_trajectory(parts):
    """Sound, of the same steps and shapes."""
    other = start() | {"x": 2 * jnp.ones(3)}
    run_chunks(parts.parent.parent / "other", other, advance, 4, 2)
    shutil.copy(parts.parent.parent / "other" / "records" / "4.npz", parts / "4.npz")


def no_folder(parts):
    shutil.rmtree(parts)


@pytest.mark.parametrize(
    ("damage", "again"),
    [
        (lost, [2, 2, 2, 1]),
        (lost_at_the_end, [1]),
        (cut, [2, 2, 2, 1]),
        (one_of_the_others, [2, 2, 2, 1]),
        (one_of_another_trajectory, [2, 2, 2, 1]),
        (no_folder, [2, 2, 2, 1]),
    ],
)
def test_lost_and_damaged_records_are_made_again(copy, whole, damage, again):
    """From the newest of the two checkpoints whose records are whole, or from the beginning."""
    damage(copy / "records")
    calls = []
    with pytest.warns(UserWarning, match=r"the records .*\.npz are (lost|not as .* written)"):
        found = run_chunks(copy, start(), counted(calls), 7, 2)
    assert calls == again
    jax.tree.map(np.testing.assert_array_equal, found, whole)
    assert [row["step"] for row in read_metrics(copy)] == list(range(7))


@pytest.mark.parametrize("name", ["3.npz", "notes.npz", "notes.txt", "-1.npz"])
def test_strays_among_the_records_are_set_aside(copy, whole, name):
    shutil.copy(copy / "records" / "4.npz", copy / "records" / name)
    with pytest.warns(UserWarning, match=f"{name} is damaged .no checkpoint knows"):
        found = run_chunks(copy, start(), advance, 7, 2)
    jax.tree.map(np.testing.assert_array_equal, found, whole)
    assert (copy / "damaged" / name).exists()


def test_a_folder_that_may_not_be_written_is_shown(copy, whole, monkeypatch):
    (copy / "records" / "9.npz.12345678.tmp").write_bytes(b"")
    before = sorted(copy.rglob("*"))
    monkeypatch.setattr(trajectory, "writable", lambda folder: False)
    jax.tree.map(np.testing.assert_array_equal, run_chunks(copy, start(), advance, 7, 2), whole)
    assert sorted(copy.rglob("*")) == before


def test_a_folder_that_has_gone_further_gives_the_first_steps(copy, whole):
    for steps in (5, 4):  # within a chunk, and at its end
        _, records = run_chunks(copy, start(), advance, steps, 2)
        np.testing.assert_array_equal(records["x"], whole[1]["x"][:steps])


def test_chunks_of_another_length_after_a_kill(tmp_path, whole, monkeypatch):
    """The killed start has left records that no checkpoint knows, of steps that come again."""

    class Dying(trajectory.Checkpoints):
        def save(self, step, *args, **options):
            if step == 4:
                raise Stop
            super().save(step, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(trajectory, "Checkpoints", Dying)
        with pytest.raises(Stop):
            run_chunks(tmp_path, start(), advance, 7, 2)
    _, records = run_chunks(tmp_path, start(), advance, 7, 3)
    assert records["x"].shape == (7, 3)
    # Chunks of other lengths are other programs, whose sums may round otherwise.
    np.testing.assert_allclose(records["x"], whole[1]["x"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("end", [2, 6, 7])
def test_a_signal_in_any_chunk_is_told(tmp_path, whole, end):
    calls = []

    def interrupted(state, steps):
        calls.append(steps)
        if sum(calls) == end:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(state, steps)

    with pytest.raises(Preempted, match=f"stopped at step {end} of 7 .*; the same") as caught:
        run_chunks(tmp_path, start(), interrupted, 7, 2)
    assert caught.value.exit_status == 75
    calls.clear()
    found = run_chunks(tmp_path, start(), counted(calls), 7, 2)
    assert sum(calls) == 7 - end
    jax.tree.map(np.testing.assert_array_equal, found, whole)


def test_a_finished_trajectory_is_not_run_again(tmp_path, whole):
    run_chunks(tmp_path, start(), advance, 4, 2)

    def never(state, steps):
        raise AssertionError

    _, records = run_chunks(tmp_path, start(), never, 4, 2)
    np.testing.assert_array_equal(records["x"], whole[1]["x"][:4])


def test_seeds_may_come_first(tmp_path):
    def two(state, steps):
        state, records = advance(state, steps)
        return state, {name: jnp.stack([a, -a]) for name, a in records.items()}

    _, records = run_chunks(tmp_path, start(), two, 5, 2, axis=1)
    assert records["x"].shape == (2, 5, 3)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(5))
    np.testing.assert_allclose(rows[3]["norm"], records["norm"][:, 3], rtol=1e-6)
    assert "x" not in rows[3]


def test_the_checkpoint_of_the_best_test_accuracy_is_kept(tmp_path):
    """By the mean over runs at its last step."""
    accuracies = np.array(
        [[0.9, 0.2, 0.3, 0.7, 0.1, 0.1, 0.2], [0.9, 0.2, 0.3, 0.6, 0.9, 0.9, 0.2]]
    )

    def scored(state, steps):
        done = int(state["done"])
        return {"done": state["done"] + steps}, {
            "test_accuracy": accuracies[:, done : done + steps]
        }

    run_chunks(tmp_path, {"done": jnp.zeros((), jnp.int32)}, scored, 7, 2, axis=1)
    checkpoints = list_steps(tmp_path / "checkpoints")
    assert [path.name for path in checkpoints] == ["4", "6", "7"]
    assert best_step(tmp_path / "checkpoints").name == "4"
