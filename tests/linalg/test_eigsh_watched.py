"""`eigsh` under a watch: the same pairs, told as they come, or the best so far."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.linalg import eigsh
from tests.problems import zoo
from tests.watched import Calls, check_same, ctrl_c, interrupt

PROBLEM = zoo("network")
K = 4


def solve(**options):
    named = {"key": jax.random.key(0), "structure": PROBLEM.structure} | options
    return eigsh(PROBLEM.op, K, **named)


@pytest.fixture(scope="module")
def silent():
    return solve()


def test_it_is_the_same_and_tells_every_step(slow, silent):
    calls = Calls()
    found = solve(callback=calls)
    check_same(found, silent)
    assert found.stopped is None
    # All but the certificate, before the search for missed ones or after.
    assert {*range(1, silent.num_products + 1)} - {*calls.steps} <= {15, silent.num_products}
    assert (np.diff(calls.steps) > 0).all()
    assert [len(values) for _, values, _ in calls[: K + 1]] == [1, 2, 3, 4, 4]
    _, values, residuals = calls[-1]
    assert isinstance(values, np.ndarray)
    assert values.dtype == residuals.dtype == np.float64
    np.testing.assert_allclose(values, silent.values, rtol=1e-5)
    assert (residuals <= 1e-3 * np.abs(values)).all()
    worst = [np.max(errors / np.abs(values)) for _, values, errors in calls[K : K + 12 : 4]]
    assert (np.diff(worst) < 0).all()


def test_fast_steps_are_told_when_the_run_looks(still, silent):
    calls = Calls()
    check_same(solve(callback=calls), silent)
    assert len(calls) < calls.steps[-1]


@pytest.mark.parametrize("stop", [7, 11])
def test_a_stop_is_a_run_of_as_many_products(slow, stop):
    found = solve(callback=Calls(stop), verify=False)
    bounded = solve(max_products=stop + 1, verify=False)
    assert found.stopped == "callback"
    assert found.num_products == stop + 1
    assert not np.asarray(found.converged).any()
    check_same(found._replace(stopped=None, converged=bounded.converged), bounded)


def test_a_stop_waits_for_as_many_products_as_pairs(slow):
    assert solve(callback=Calls(1)).num_products == K + 1


def test_a_stop_during_the_search_for_missed_ones(slow, silent):
    calls = Calls()
    alone = solve(verify=False, callback=calls)
    found = solve(callback=Calls(calls.steps[-1] + 2))
    assert alone.num_products < found.num_products < silent.num_products
    assert found.complete is None
    assert not np.asarray(found.converged).any()  # although all residuals are small
    assert (found.residual_norms <= 1e-3 * np.abs(found.values)).all()
    np.testing.assert_allclose(found.values, silent.values, rtol=1e-4)


def test_a_time_limit(still):
    def tick(step, *_):
        still.now = float(step)

    found = solve(max_seconds=6.5, callback=tick)
    assert found.stopped == "max_seconds"
    assert 7 <= found.num_products - 1 <= 15
    assert solve(max_seconds=1e6, callback=tick).stopped is None


@pytest.mark.parametrize("how", [ctrl_c, interrupt])
def test_an_interrupt_gives_the_best_so_far(slow, how):
    found = solve(callback=Calls(7, how), on_interrupt="return")
    assert found.stopped == "interrupt"
    assert found.num_products == 8
    with pytest.raises(KeyboardInterrupt, match="eigsh was interrupted with 2 products done"):
        solve(callback=Calls(2, how), on_interrupt="return")
    with pytest.raises(KeyboardInterrupt):
        solve(callback=Calls(7, how))


def test_in_blocks(slow):
    calls = Calls()
    silent = solve(block_size=2)
    check_same(solve(block_size=2, callback=calls), silent)
    assert calls.steps[:3] == [2, 4, 6]
    np.testing.assert_allclose(calls[-1][1], silent.values, rtol=1e-5)
    found = solve(block_size=2, callback=Calls(6))
    bounded = solve(block_size=2, max_products=8)
    assert found.stopped == "callback"
    check_same(found._replace(stopped=None, converged=bounded.converged), bounded)


def test_products_that_are_not_finite_are_not_told(slow):
    calls = Calls()
    found = eigsh(
        lambda v: jnp.nan * v, 2, key=jax.random.key(0), structure=jnp.zeros(9), callback=calls
    )
    assert not calls
    assert np.isnan(found.values).all()


def test_progress_is_shown(slow, capsys, silent):
    check_same(solve(progress=True), silent)
    text = capsys.readouterr().err.splitlines()[-1]
    assert text.startswith("eigsh: ")
    assert " products, worst residual " in text


def test_traced_it_cannot_be_watched():
    def values(scale):
        return eigsh(
            lambda v: scale * v, 1, key=jax.random.key(0), structure=jnp.zeros(9), progress=True
        ).values

    for transform in (jax.jit, jax.vmap):  # under vmap only the product shows it
        with pytest.raises(TypeError, match="eigsh cannot be watched while it is traced"):
            transform(values)(jnp.ones(2) if transform is jax.vmap else 1.0)
