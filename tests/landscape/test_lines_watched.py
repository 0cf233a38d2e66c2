"""Lines and surfaces under a watch: the same losses, told as they come, or NaN after a stop."""

import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax import loops
from tests.compilations import count_compilations
from tests.watched import Calls, check_same, ctrl_c

W, X = jnp.ones(2), jnp.arange(6.0).reshape(3, 2)


def metrics(w, x):
    return {"loss": 0.5 * (x @ w) ** 2, "hits": x @ w > 4}


def line(**options):
    positions = np.linspace(-1, 1, 5)
    return flatjax.loss_along(metrics, W, X, direction=W, positions=positions, **options)


def surface(**options):
    first, second = jnp.eye(2)
    return flatjax.loss_surface(
        metrics, W, X, first=first, second=second, positions=[0.0, 1.0, 2.0],
        other_positions=[0.0, 1.0], **options,
    )  # fmt: skip


@pytest.mark.parametrize(("draw", "count"), [(line, 5), (surface, 6)])
def test_it_is_the_same_and_told(slow, draw, count):
    silent, calls = draw(), Calls()
    found = draw(callback=calls)
    check_same(found, silent)
    assert found.stopped is None
    assert calls.steps == list(range(1, count + 1))
    for step, losses, errors in calls:
        assert errors is None
        for name, whole in silent.losses.items():
            assert isinstance(losses[name], np.ndarray)
            np.testing.assert_array_equal(losses[name], np.ravel(whole)[:step])


@pytest.mark.parametrize("draw", [line, surface])
def test_after_a_stop_there_is_nan(slow, draw):
    silent = draw()
    for options, reason in (
        ({"callback": Calls(3)}, "callback"),
        ({"callback": Calls(3, ctrl_c), "on_interrupt": "return"}, "interrupt"),
        ({"max_seconds": 5.5}, "max_seconds"),
    ):
        found = draw(**options)
        assert found.stopped == reason
        for name, whole in silent.losses.items():
            part = np.ravel(found.losses[name])
            done = np.isfinite(part).sum()
            assert done == 3 or (reason == "max_seconds" and 0 < done < 5)
            np.testing.assert_array_equal(part[:done], np.ravel(whole)[:done])


def test_fast_points_come_in_chunks(still):
    calls = Calls()
    check_same(surface(callback=calls), surface())
    assert calls.steps == [1, 3, 6]


def test_a_loop_of_the_device_is_driven_from_the_host(still):
    silent = line()
    with loops.device(), count_compilations() as count:  # there every length is a program
        found = line(callback=Calls(2))
    assert count.value == 0
    np.testing.assert_array_equal(found.losses["loss"][:3], silent.losses["loss"][:3])
    assert np.isnan(found.losses["loss"][3:]).all()


def test_progress(slow, capsys):
    line(progress=True)
    assert "loss_along: 5 of 5 points" in capsys.readouterr().err
