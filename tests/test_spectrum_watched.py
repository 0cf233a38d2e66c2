"""`spectrum` under a watch: the same, told as it comes, or cut and gone on with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from tests.watched import Calls, check_same, ctrl_c

D = {
    "a": jnp.concatenate([jnp.array([9.0, 7.0, 5.0]), jnp.linspace(0.1, 1.0, 117)]),
    "b": jnp.linspace(-1.0, 1.0, 80),
}
TRUE = sum(float(leaf.sum()) for leaf in jax.tree.leaves(D))
PAIRS = 4
STEPS, PROBE_STEPS = 24, 5


def times(d, v):
    return jax.tree.map(jnp.multiply, d, v)


def solve(d=D, **options):
    named = {
        "key": jax.random.key(0), "k": 3, "num_bottom": 1, "num_steps": STEPS, "num_probes": 3,
        "probe_steps": PROBE_STEPS, "trace_rtol": None, "by": "leaf", "structure": D,
    }  # fmt: skip
    return flatjax.spectrum(jax.tree_util.Partial(times, d), **(named | options))


@pytest.fixture(scope="module")
def silent():
    return solve()


def test_it_is_the_same_and_told(slow, silent):
    calls = Calls()
    found = solve(callback=calls)
    check_same(found, silent)
    assert found.stopped is found.top.stopped is found.density.stopped is None
    # The first step is part of the start; three probes, then four steps more of each.
    assert calls.steps == list(range(2, STEPS + 3 * PROBE_STEPS + 1))
    assert [len(values) for _, values, _ in calls[:4]] == [2, 3, 4, 4]
    _, values, residuals = calls[-1]
    np.testing.assert_allclose(values[:3], silent.top.values, rtol=1e-5)
    assert values.dtype == residuals.dtype == np.float64
    assert residuals.shape == (PAIRS,)


def check_stopped(found):
    assert found.stopped == found.trace.stopped == found.layers["a"].trace.stopped == "callback"
    assert found.density.stopped == found.bottom.stopped == "callback"
    for part in (found.top, found.bottom, found.trace, found.frobenius_norm):
        assert not np.asarray(part.converged).any()
    assert found.complete is not True
    np.testing.assert_allclose(found.density.weights.sum(), 1, rtol=1e-4)
    assert abs(float(found.trace.value) - TRUE) < 4 * float(found.trace.standard_error)
    parts = sum(float(layer.trace.value) for layer in found.layers.values())
    np.testing.assert_allclose(parts, found.trace.value, rtol=1e-4)


@pytest.mark.parametrize(
    ("stop", "spent", "rows"),
    [
        pytest.param(3, PAIRS + 2, 2, id="before there are pairs"),
        pytest.param(20, 20 + 2, 2, id="first run"),
        pytest.param(STEPS + 2, STEPS + 2, 1, id="first products"),
        pytest.param(STEPS + 5, STEPS + 5, 1, id="first probe"),
        pytest.param(STEPS + 9, STEPS + 9, 1, id="second probe"),
        pytest.param(STEPS + 11, STEPS + 11, 2, id="after the second"),
    ],
)
def test_a_stop_keeps_what_is_finished(slow, stop, spent, rows):
    found = solve(callback=Calls(stop))
    check_stopped(found)
    assert found.num_products == spent
    assert found.density.nodes.shape[0] - rows in (0, 1)


def test_a_stop_within_bytes_waits_for_two_probes(slow):
    # There they come one by one: the first product of the first is not enough for an error.
    room = {"num_steps": None, "max_steps": STEPS, "basis_bytes": 10**9, "tol": 1e-9}
    found = solve(callback=Calls(STEPS + 2), **room)
    check_stopped(found)
    assert int(found.state.run.step) == STEPS
    assert found.num_products == STEPS + PROBE_STEPS + 1


def test_a_stopped_run_goes_on(slow, silent):
    found = solve(callback=Calls(10))
    assert int(found.state.run.step) == 10
    again = solve(resume=found.state)
    np.testing.assert_allclose(again.top.values, silent.top.values, rtol=1e-5)


def test_an_interrupt(slow):
    found = solve(callback=Calls(10, ctrl_c), on_interrupt="return")
    assert found.stopped == "interrupt"
    with pytest.raises(KeyboardInterrupt, match="spectrum was interrupted with 2 products"):
        solve(callback=Calls(2, ctrl_c), on_interrupt="return")


def test_progress_names_the_trace(slow, capsys):
    solve(progress=True, trace_rtol=1e-9, max_trace_products=8)
    text = capsys.readouterr().err.splitlines()[-1]
    assert text.startswith("spectrum: ")
    assert "trace" in text


def test_a_stop_while_missing_pairs_are_filled_in(slow):
    several = D | {"a": D["a"].at[:3].set(9.0)}
    options, calls = {"num_steps": None, "max_steps": STEPS}, Calls()
    silent = solve(several, **options)
    check_same(solve(several, callback=calls, **options), silent)
    assert silent.complete
    np.testing.assert_allclose(silent.top.values, 9.0, rtol=1e-5)
    filled = [step for step, values, _ in calls if len(values) > 2 and values[2] > 8.9]
    found = solve(several, callback=Calls(filled[0]), **options)
    assert found.stopped == "callback"
    assert found.complete is not True
    assert filled[0] <= found.num_products < silent.num_products
