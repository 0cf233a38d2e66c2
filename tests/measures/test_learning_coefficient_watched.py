"""The local learning coefficient under a watch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from tests.watched import Calls, check_same, ctrl_c

BURNIN, STEPS = 6, 12


def loss_fn(w, _):
    return (w**2).sum()


def coefficient(num_steps=STEPS, **options):
    return flatjax.local_learning_coefficient(
        loss_fn, jnp.zeros(4), [None], key=jax.random.key(0), num_data=1000, localization=1.0,
        step_size=2e-3, num_steps=num_steps, num_burnin=BURNIN, num_chains=2, **options,
    )  # fmt: skip


def test_it_is_the_same_and_told(slow, capsys):
    silent, calls = coefficient(), Calls()
    found = coefficient(callback=calls, progress=True)
    check_same(found, silent)
    assert calls.steps == list(range(1, BURNIN + STEPS + 1))
    assert np.isnan([value for _, value, _ in calls[:BURNIN]]).all()
    _, value, error = calls[-1]
    np.testing.assert_allclose(value, silent.value, rtol=1e-6)
    np.testing.assert_allclose(error, np.std(silent.per_chain, ddof=1) / 2**0.5, rtol=1e-5)
    assert "local_learning_coefficient: 18 of 18 steps" in capsys.readouterr().err


@pytest.mark.parametrize(("stop", "steps"), [(BURNIN + 7, 7), (2, 4)])
def test_a_stop_is_that_of_shorter_chains(slow, stop, steps):
    found = coefficient(callback=Calls(stop))
    assert found.stopped == "callback"
    bounded = coefficient(steps)
    check_same(found._replace(stopped=None, converged=bounded.converged), bounded)
    assert not found.converged


def test_an_interrupt(slow):
    found = coefficient(callback=Calls(BURNIN + 5, ctrl_c), on_interrupt="return")
    assert found.stopped == "interrupt"
    with pytest.raises(KeyboardInterrupt, match="interrupted with 3 steps done"):
        coefficient(callback=Calls(3, ctrl_c), on_interrupt="return")
