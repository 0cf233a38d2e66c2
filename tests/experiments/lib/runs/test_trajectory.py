"""Chunks of a trajectory: a stop at any point, and the same bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lib.runs import trajectory
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
def whole(tmp_path_factory):
    return run_chunks(tmp_path_factory.mktemp("whole"), start(), advance, 7, 2)


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
        def save(self, step, state, meta):
            if step == 4:
                raise Stop
            super().save(step, state, meta)

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
