"""Inputs that stay on disk."""

import time

import jax
import numpy as np
import pytest

from experiments.lib.data import small
from experiments.lib.data.stored import Stored, read_ahead


@pytest.mark.parametrize("flat", [False, True])
def test_they_are_those_in_memory(data_dir, monkeypatch, flat):
    """Of two seeds, each with examples, wrong labels and a mean of its own."""
    prepared = lambda seed, *_: small._prepared("digits", seed, 30, 0.2, 9, 10)  # noqa: E731
    monkeypatch.setattr(small, "_digits", prepared)

    def load(limit):
        monkeypatch.setattr(small, "IN_MEMORY_GIB", limit)
        options = {"train_size": 30, "flat": flat}
        return small.stack_seeds([small.small_data("digits", seed=s, **options) for s in (0, 1)])

    arrays, stored = load(1.0), load(0.0)
    assert isinstance(stored.inputs, Stored)
    assert not np.array_equal(arrays.inputs[0], arrays.inputs[1])
    for name in ("targets", "clean_targets", "test_inputs", "test_targets"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(arrays, name), err_msg=name)
    for seed in (0, 1):
        images = jax.tree.map(lambda a, seed=seed: a[seed], stored.inputs)
        for index in (np.array([[3, 29], [0, 3]]), slice(5, 8)):
            wanted = arrays.inputs[seed][index]
            np.testing.assert_array_equal(images[index].reshape(wanted.shape), wanted)


def test_blocks_come_in_order_and_are_read_ahead():
    """The second and third are read while the first one is at work."""
    read = []

    def slowly(block):
        time.sleep(0.05 if block % 2 else 0.0)
        read.append(block)
        return 10 * block

    blocks = read_ahead(range(6), slowly)
    assert next(blocks) == 0
    deadline = time.monotonic() + 60
    while len(read) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert list(blocks) == [10, 20, 30, 40, 50]
    assert list(read_ahead([], slowly)) == []
