"""Estimates of traces, norms and densities under a watch: the same, told as they come, or cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax import linalg
from tests.problems import problem, trace_spectra
from tests.watched import Calls, check_same, ctrl_c

PROBLEM = problem(trace_spectra()["mild"])
TRUE = float(PROBLEM.spectrum.sum())


def estimate(name="trace", **options):
    named = {"key": jax.random.key(0), "structure": PROBLEM.structure} | options
    args = (jnp.exp,) if name == "trace_of_function" else ()
    return getattr(linalg, name)(PROBLEM.op, *args, **named)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"rtol": 1e-3, "max_products": 30}, id="goal"),
        pytest.param({"probe_block": 4}, id="blocks"),
        pytest.param({"method": "deflated"}, id="deflated"),
    ],
)
def test_a_trace_is_the_same_and_told(slow, options):
    silent, calls = estimate(**options), Calls()
    found = estimate(callback=calls, **options)
    check_same(found, silent)
    width = options.get("probe_block", 1)
    assert calls.steps == list(range(width, silent.num_products + 1, width))
    step, value, error = calls[-1]
    assert step == silent.num_products
    assert value.dtype == np.float64
    np.testing.assert_allclose(value, silent.value, rtol=1e-5)
    np.testing.assert_allclose(error, silent.standard_error, rtol=1e-3)
    assert np.isinf(calls[0][2]) or width > 1  # of one probe


@pytest.mark.parametrize("options", [{}, {"rtol": 1e-9}])
def test_a_stop_is_an_estimate_of_as_many_probes(slow, options):
    found = estimate(callback=Calls(21), **options)
    assert found.stopped == "callback"
    assert not found.converged
    bounded = estimate(num_products=21)
    check_same(found._replace(stopped=None, converged=bounded.converged), bounded)


def test_a_stop_waits_for_two_probes(slow):
    assert estimate(callback=Calls(1)).num_products == 2
    with pytest.raises(KeyboardInterrupt, match="trace was interrupted with 1 products"):
        estimate(callback=Calls(1, ctrl_c), on_interrupt="return")
    found = estimate(callback=Calls(5, ctrl_c), on_interrupt="return")
    assert (found.stopped, found.num_products) == ("interrupt", 5)


def test_a_stop_while_deflating_leaves_two_probes(slow):
    calls = Calls(6)
    found = estimate(method="deflated", callback=calls)
    assert np.isinf(calls[-1][2])
    assert found.num_products == 6 + 2
    assert abs(float(found.value) - TRUE) < 0.5 * TRUE


def test_other_methods_show_their_progress_only(slow, capsys):
    check_same(estimate(method="xtrace", progress=True), estimate(method="xtrace"))
    assert "trace: 40 products" in capsys.readouterr().err
    for options in ({"max_seconds": 1.0}, {"on_interrupt": "return"}, {"callback": Calls()}):
        with pytest.raises(ValueError, match="'xtrace' cannot stop between two probes"):
            estimate(method="xtrace", **options)


def test_of_few_dimensions_nothing_stops(slow):
    calls, d = Calls(1), jnp.arange(9.0)
    found = linalg.trace(
        lambda v: d * v, key=jax.random.key(0), structure=d, callback=calls, max_seconds=1.0
    )
    assert not calls
    assert (float(found.value), found.stopped) == (36.0, None)


def test_a_frobenius_norm(slow):
    silent, calls = estimate("frobenius_norm"), Calls()
    check_same(estimate("frobenius_norm", callback=calls), silent)
    assert calls.steps == list(range(1, 41))
    _, value, error = calls[-1]
    np.testing.assert_allclose(value, silent.value, rtol=1e-5)
    np.testing.assert_allclose(error, silent.standard_error, rtol=1e-3)
    # The run knows the norm on its span, which only grows.
    known = [value for step, value, _ in calls if step <= 20]
    assert (np.diff(known) > 0).all()
    assert known[-1] <= np.linalg.norm(PROBLEM.spectrum) * (1 + 1e-5)
    for stop, spent in ((4, 6), (25, 25)):
        found = estimate("frobenius_norm", callback=Calls(stop))
        assert (found.stopped, found.num_products) == ("callback", spent)
        assert not found.converged


SHORT = {"num_probes": 3, "num_steps": 8, "deflation_steps": 10}


def test_a_density_is_the_same_and_told(slow):
    silent, calls = estimate("spectral_density", **SHORT), Calls()
    found = estimate("spectral_density", callback=calls, **SHORT)
    check_same(found, silent)
    assert calls.steps == list(range(2, 35))  # the first product is a part of the second step
    top = [float(values[0]) for step, values, _ in calls if step <= 10]
    assert (np.diff(top) > -1e-5).all()  # the largest Ritz value
    assert calls[8][1].shape == calls[8][2].shape == (1,)


@pytest.mark.parametrize(
    ("stop", "depth", "probes", "steps"),
    [
        pytest.param(5, 5, 1, 4, id="first run"),  # four steps of one probe
        pytest.param(15, 10, 1, 5, id="first probe"),
        pytest.param(21, 10, 1, 8, id="second probe"),
        pytest.param(26, 10, 2, 8, id="after the second"),
    ],
)
def test_a_stop_is_a_density_of_fewer_probes_or_steps(slow, stop, depth, probes, steps):
    found = estimate("spectral_density", callback=Calls(stop), **SHORT)
    assert found.stopped == "callback"
    short = {"num_probes": probes, "num_steps": steps, "deflation_steps": depth}
    check_same(found._replace(stopped=None), estimate("spectral_density", **short))


def test_a_stopped_trace_of_a_function_has_two_probes(slow):
    found = estimate("trace_of_function", callback=Calls(15), **SHORT)
    short = {"num_probes": 2, "num_steps": 5, "deflation_steps": 10}
    bounded = estimate("trace_of_function", **short)
    assert (found.stopped, found.num_products) == ("callback", 20)
    assert not found.converged
    check_same(found._replace(stopped=None, converged=bounded.converged), bounded)


def test_a_trace_of_a_function_is_told(slow):
    silent, calls = estimate("trace_of_function", **SHORT), Calls()
    check_same(estimate("trace_of_function", callback=calls, **SHORT), silent)
    assert len(calls) == 33
