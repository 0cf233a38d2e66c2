"""Products with streams under a watch, which sees the batches."""

import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from tests.watched import Calls, check_same

W = jnp.ones(2)
BATCHES = [jnp.ones((1, 2)), jnp.ones((3, 2)), jnp.ones((2, 2))]


def loss_fn(w, x):
    return 0.5 * (x @ w) ** 2


def stream(batches=BATCHES, **options):
    return flatjax.over_batches(lambda x: flatjax.hessian(loss_fn, W, x), batches, **options)


def test_it_is_the_same_and_every_product_tells_its_batches(slow):
    calls = Calls()
    watched = stream(callback=calls)
    check_same(watched @ W, stream() @ W)
    assert calls == [(1, 1.0, None), (2, 4.0, None), (3, 6.0, None)]
    assert isinstance(calls[0][1], np.ndarray)
    watched @ W
    assert calls.steps == [1, 2, 3, 1, 2, 3]


def test_a_block_of_it_tells_as_well(slow):
    calls = Calls()

    def make(x):
        return flatjax.hessian(lambda w, x: loss_fn(w["a"], x), {"a": W, "b": W}, x)

    watched = flatjax.over_batches(make, BATCHES, callback=calls)
    flatjax.restrict(watched, "a") @ {"a": W, "b": None}
    assert calls.steps == [1, 2, 3]


def test_a_part_of_a_product_is_none(slow):
    with pytest.raises(RuntimeError, match="stopped a product after 2 batches"):
        stream(callback=Calls(2)) @ W
    stream(callback=Calls(3)) @ W  # it was whole


def test_progress_is_silent_where_products_are_short(capsys):
    watched = stream(progress=True)
    check_same(watched @ W, stream() @ W)
    assert capsys.readouterr().err == ""


def test_batches_without_a_length(slow):
    class Batches:
        def __iter__(self):
            return iter(BATCHES)

    check_same(stream(Batches(), progress=True) @ W, stream() @ W)


def test_its_options_are_looked_at_at_the_door():
    with pytest.raises(TypeError, match="callback must be a function"):
        stream(callback=1)
