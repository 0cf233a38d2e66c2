"""Traces: right within their own error bars, on operators of any rank and scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.linalg import trace
from flatjax.linalg._trace import LEAST, METHODS
from tests.compilations import count_compilations
from tests.problems import SIZE, dense, spectra, structure_of, times, trace_spectra, zoo

KEY = jax.random.key(0)
EPS = float(jnp.finfo(jnp.float32).eps)


def estimate(p, method, **options):
    return trace(p.op, key=KEY, method=method, structure=p.structure, **options)


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["network", "rank 3", "zero", "one"])
def test_every_method_on_every_kind_of_spectrum(name, method, scale):
    p = zoo(name, scale)
    if method == "xnystrace" and p.spectrum[-1] < 0:
        pytest.skip("for positive semi-definite operators")
    found = estimate(p, method)
    exact = p.spectrum.sum()
    numbers = [*found[:2], *found.interval]
    assert np.isfinite(np.asarray(numbers, float)).all()
    # 5 standard errors: 1 in 30,000 for 40 probes, and none of the keys here is that one.
    assert abs(float(found.value) - exact) <= 5 * float(found.standard_error)
    assert found.num_products <= 40
    low, high = found.interval
    assert low <= found.value <= high


@pytest.mark.parametrize("method", [m for m in METHODS if m != "hutchinson"])
def test_low_rank_is_exact(method):
    found = estimate(zoo("rank 3"), method)
    np.testing.assert_allclose(found.value, 29, rtol=20 * EPS)
    assert float(found.standard_error) < 1e-4
    assert bool(found.converged)


@pytest.mark.parametrize("method", METHODS)
def test_zero_is_zero_and_no_nan(method):
    found = estimate(zoo("zero"), method)
    np.testing.assert_array_equal(np.asarray(found[:2]), 0)
    np.testing.assert_array_equal(found.interval, 0)


@pytest.mark.parametrize("method", METHODS)
def test_the_fewest_products(method):
    found = estimate(zoo("one"), method, num_products=LEAST[method])
    assert found.num_products == LEAST[method]
    assert np.isfinite(np.asarray(found.interval)).all()


@pytest.mark.parametrize("method", METHODS)
def test_more_products_than_dimensions(method):
    d = jnp.array([3.0, 2.0, 1.0])
    found = trace(lambda v: d * v, key=KEY, method=method, num_products=30, structure=d)
    np.testing.assert_allclose(found.value, 6, rtol=1e-4)


def test_a_goal_stops_early():
    a, _ = dense(trace_spectra()["power"])
    op, structure = jax.tree_util.Partial(times, a), jnp.zeros(len(a))
    loose, tight = (trace(op, key=KEY, rtol=rtol, structure=structure) for rtol in (0.5, 0.1))
    for found, rtol in ((loose, 0.5), (tight, 0.1)):
        assert bool(found.converged)
        assert float(found.standard_error) <= rtol * abs(float(found.value))
    # Never from so few samples that agreement is luck: of 8 the error must be half of the goal.
    for count, goal, stops in ((8, 2.1, 8), (8, 1.9, 16), (16, 1.1, 16)):
        given = trace(op, key=KEY, num_products=count, structure=structure)
        rtol = goal * float(given.standard_error / given.value)
        assert trace(op, key=KEY, rtol=rtol, structure=structure).num_products == stops
    assert 8 <= loose.num_products < tight.num_products < 1000


def test_a_goal_out_of_reach_spends_the_most():
    found = estimate(zoo("pairs"), "hutchinson", rtol=1e-6, max_products=30)
    assert found.num_products == 30
    assert not bool(found.converged)


@pytest.mark.parametrize("block", [3, 8])
def test_probes_in_blocks_are_the_same_probes(block):
    p = zoo("network")
    for method in ("hutchinson", "deflated"):
        one, many = (estimate(p, method, num_products=20, probe_block=b) for b in (1, block))
        np.testing.assert_allclose(many.value, one.value, rtol=1e-5)
        assert many.num_products == one.num_products


def test_traced():
    p = zoo("network")
    given = {"key": KEY, "structure": p.structure}
    found, goal = jax.jit(
        lambda op: (
            trace(op, num_products=24, **given),
            trace(op, rtol=1.0, max_products=24, **given),
        )
    )(p.op)
    eager = trace(p.op, num_products=24, **given)
    # Sums of float32 products in another order.
    np.testing.assert_allclose(found.value, eager.value, rtol=1e-5)
    np.testing.assert_allclose(found.standard_error, eager.standard_error, rtol=1e-4)
    # A goal cannot stop what is traced; it says whether it was reached.
    np.testing.assert_array_equal(goal.value, found.value)
    assert bool(goal.converged) == (float(goal.standard_error) <= abs(float(goal.value)))


@pytest.mark.parametrize("method", [m for m in METHODS if m != "hutchinson"])
def test_what_decides_on_the_host_is_not_for_jit(method):
    p = zoo("network")
    given = {"key": KEY, "method": method, "structure": p.structure}
    with pytest.raises(TypeError, match=f"method='{method.replace('+', '.')}'.*outside jit"):
        jax.jit(lambda op: trace(op, **given).value)(p.op)


def test_traced_by_a_closure_and_in_blocks():
    d = jnp.asarray(spectra()["network"], jnp.float32)

    def value(scale):
        def op(v):
            return scale * d * v

        return trace(op, key=KEY, num_products=7, probe_block=3, structure=d).value

    scales = jnp.array([1.0, 2.0, -1.0])
    # A diagonal matrix has no variance under Rademacher probes.
    np.testing.assert_allclose(jax.vmap(value)(scales), scales * d.sum(), rtol=1e-5)


def test_hutchinson_is_exact_for_a_diagonal_matrix():
    found = trace(lambda v: 3 * v, key=KEY, structure=jnp.ones(50), num_products=2)
    np.testing.assert_allclose(found.value, 150, rtol=4 * EPS)


def test_indefinite_operators_are_no_case_for_xnystrace():
    p = zoo("pairs")
    with pytest.raises(ValueError, match=r"positive semi-definite.*xtrace"):
        estimate(p, "xnystrace")


def test_new_values_compile_nothing():
    p = zoo("network")
    estimate(p, "hutchinson")
    with count_compilations() as count:
        estimate(zoo("clustered"), "hutchinson")
    assert count.value == 0


def error(method, name, seeds, num_products=40):
    """The root mean square error over seeds, called eagerly, and the products spent."""
    spectrum = trace_spectra()[name]
    a, exact = dense(spectrum)
    op, structure = jax.tree_util.Partial(times, a), jnp.zeros(spectrum.size)
    found = [
        trace(op, key=key, method=method, num_products=num_products, structure=structure)
        for key in jax.random.split(jax.random.key(1), seeds)
    ]
    assert all(f.num_products == num_products for f in found)
    return np.sqrt(np.mean([(float(f.value) - exact) ** 2 for f in found]))


@pytest.mark.parametrize(("name", "ratio"), [("strong", 50), ("mild", 3), ("power", 3)])
def test_deflation_pays_at_equal_products(name, ratio):
    # Measured over 300 seeds: 5000, 7 and 17 times lower.
    assert error("hutchinson", name, 24) > ratio * error("deflated", name, 24)


def test_deflation_notices_a_flat_spectrum():
    # At most 1.5 times the error of Hutchinson, with 50 seeds' uncertainty of 10 % in each of the
    # two; it deflates with 8 of 40 products before it notices.
    assert error("deflated", "flat", 50) < 1.5 * 1.2 * error("hutchinson", "flat", 50)


@pytest.mark.parametrize(
    ("arguments", "error_", "text"),
    [
        ({"method": "lanczos"}, ValueError, "method must be one of 'hutchinson', 'hutch"),
        ({"num_products": 1}, ValueError, "method='hutchinson' needs at least 2"),
        ({"method": "hutch++", "num_products": 5}, ValueError, "needs at least 6"),
        ({"method": "xtrace", "num_products": 3}, ValueError, "needs at least 4"),
        ({"method": "deflated", "num_products": 3}, ValueError, "needs at least 4"),
        ({"num_products": 2.0}, TypeError, "num_products must be an integer"),
        ({"probe_block": 0}, ValueError, "probe_block must be at least 1"),
        ({"rtol": -0.1}, ValueError, "rtol must not be negative"),
        ({"rtol": 0.1, "max_products": 1}, ValueError, "max_products=1 is too small"),
        ({"rtol": 0.1, "num_products": 9}, ValueError, "either num_products .* or rtol"),
        ({"max_products": 9}, ValueError, "max_products is the ceiling of rtol="),
        ({"rtol": 0.1, "method": "xtrace"}, ValueError, "'xtrace' cannot stop .* num_products"),
        ({"key": None}, ValueError, "key is missing"),
        ({"key": jax.random.split(KEY)}, TypeError, "key must be one PRNG key"),
        ({"structure": None}, ValueError, "a callable needs structure="),
    ],
)
def test_bad_input(arguments, error_, text):
    given = {"key": KEY, "structure": structure_of(SIZE)} | arguments
    with pytest.raises(error_, match=text):
        trace(zoo("network").op, **given)
