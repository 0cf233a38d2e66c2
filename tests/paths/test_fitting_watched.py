"""`fit_curve` under a watch: the same curve, or that of the moment."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatjax
from tests.watched import Calls, check_same, ctrl_c, interrupt

ADAM = optax.adam(0.1)  # one object: one program


def valley(w, _):
    return (jnp.sum(w**2) - 1) ** 2


def fit(num_steps=9, **options):
    ends = jnp.array([-1.0, 0.0]), jnp.array([0.0, 0.1]), jnp.array([1.0, 0.0])
    return flatjax.fit_curve(
        valley, flatjax.bezier(ends), [None], optimizer=ADAM, key=jax.random.key(0),
        num_steps=num_steps, **options,
    )  # fmt: skip


def test_it_is_the_same(slow, capsys):
    seen = []
    found = fit(progress=True, callback=lambda step, curve, loss: seen.append((step, loss)))
    check_same(found, fit())
    assert [step for step, _ in seen] == list(range(1, 10))
    np.testing.assert_array_equal([loss for _, loss in seen], found.losses)
    assert capsys.readouterr().err.startswith("fit_curve: 9 of 9 steps, loss ")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"callback": Calls(4)}, "callback"),
        ({"callback": Calls(4, ctrl_c), "on_interrupt": "return"}, "interrupt"),
        ({"callback": Calls(4, interrupt), "on_interrupt": "return"}, "interrupt"),
    ],
)
def test_a_stop_is_a_fit_of_as_many_steps(slow, options, reason):
    found = fit(**options)
    assert found.stopped == reason
    check_same(found._replace(stopped=None), fit(4))


def test_a_time_limit(slow):
    found = fit(max_seconds=6.5)
    assert found.stopped == "max_seconds"
    assert 0 < len(found.losses) < 9


def test_a_stop_at_the_end_is_none(slow):
    assert fit(callback=Calls(9)).stopped is None
