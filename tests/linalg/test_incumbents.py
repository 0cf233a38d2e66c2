"""Wrong answers that other packages give, each with the right one.

Every case is one that was run on the package named.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.linalg import eigsh, lanczos, power_iteration, spectral_density, trace
from tests.problems import SIZE, problem, zoo

KEY = jax.random.key(0)


def diagonal(values):
    d = jnp.asarray(values, jnp.float32)
    return (lambda v: d * v), d


def test_clustered_values_in_order():
    # PyHessian: 9.95, 9.625, 9.80, 5.0. hessian-eigenthings: 10.0009, 10.0007, 10.0005, 10.0004.
    p = zoo("clustered")
    found = eigsh(p.op, 4, key=KEY, structure=p.structure)
    np.testing.assert_allclose(found.values, [10, 9.8, 9.6, 5], rtol=1e-5)
    assert np.asarray(found.converged).all()


@pytest.mark.parametrize("solve", [eigsh, power_iteration])
def test_plus_and_minus_ten(solve):
    # PyHessian: 8.17 and 9.6, silently. Power iteration with momentum: 8.0, converged.
    p = zoo("pairs")
    options = {"k": 2, "which": "LM"} if solve is eigsh else {}
    found = solve(p.op, **options, key=KEY, structure=p.structure)
    np.testing.assert_allclose(np.abs(found.values), 10, rtol=1e-3)
    assert np.asarray(found.converged).all()


def test_no_spurious_values_of_a_rank_three_operator():
    # hessian-eigenthings: 2.69 and 2.25 beside the three. laplax: a basis with errors of 0.89.
    # CoLA: zeros that fill up the tridiagonal matrix.
    p = problem(np.concatenate([[10.0, 6.0, 4.0], np.zeros(SIZE - 3)]))
    found = eigsh(p.op, 8, key=KEY, structure=p.structure)
    np.testing.assert_allclose(found.values, [10, 6, 4, 0, 0, 0, 0, 0], atol=2e-5)
    np.testing.assert_array_equal(found.resolved, [True] * 3 + [False] * 5)


def test_a_hundred_steps_have_one_copy_of_the_top():
    # curvlinops: 13 copies.
    p = problem(np.concatenate([[20.0, 8.0], np.linspace(0, 0.3, 2000)]))
    v0 = jax.tree.map(jnp.ones_like, p.structure)
    run = lanczos(p.op, v0, 100, structure=p.structure)
    a, b = np.asarray(run.alphas, float), np.asarray(run.betas, float)[:-1]
    ritz = np.linalg.eigvalsh(np.diag(a) + np.diag(b, 1) + np.diag(b, -1))
    assert np.sum(ritz > 10) == 1
    assert np.sum(ritz > 1) == 2
    # laplax, without reorthogonalisation: 44 % beyond the spectrum.
    assert ritz.min() > -1e-4
    assert ritz.max() < 20 * (1 + 1e-6)


def test_tiny_operators():
    # laplax: 8.5e-8 in place of 6.0e-6 on A * 1e-8, and a trace of 4 %, without a warning.
    op, d = diagonal(1e-8 * np.concatenate([[600.0, 200.0], np.linspace(0, 10, 98)]))
    np.testing.assert_allclose(eigsh(op, 2, key=KEY, structure=d).values, d[:2], rtol=1e-5)
    found = trace(op, key=KEY, structure=d, method="deflated")
    assert abs(float(found.value - d.sum())) <= 5 * float(found.standard_error)
    assert float(found.standard_error) < 0.01 * float(found.value)


@pytest.mark.parametrize("values", [[3.0, 2, 1, 0, 0, 0, 0, 0], [0.0] * 8])
@pytest.mark.parametrize("method", ["xtrace", "xnystrace", "hutch++"])
def test_traces_of_singular_operators_are_numbers(method, values):
    # traceax: NaN.
    op, d = diagonal(values)
    found = trace(op, key=KEY, method=method, structure=d, num_products=12)
    assert np.isfinite([float(found.value), float(found.standard_error)]).all()
    assert abs(float(found.value) - sum(values)) <= 5 * float(found.standard_error)
    assert float(found.standard_error) < 0.1


def test_a_start_in_an_invariant_subspace():
    # matfree and google/spectral-density: 0/0.
    op, d = diagonal([5.0, 4, 3, 2, 1])
    run = lanczos(op, jnp.eye(5)[1], 3, structure=d)
    assert np.isfinite(np.asarray(run.basis)).all()
    found = eigsh(op, 2, v0=jnp.eye(5)[1], structure=d)
    np.testing.assert_allclose(found.values, [5, 4], rtol=1e-6)


def test_the_trace_of_two_lucky_samples_is_not_called_converged():
    # PyHessian stops where two running means agree.
    p = zoo("pairs")  # the trace is near zero: nothing relative converges
    found = trace(p.op, key=KEY, structure=p.structure, rtol=1e-3, max_products=40)
    assert found.num_products == 40
    assert not bool(found.converged)


def test_densities_have_real_non_negative_weights():
    # PyHessian: complex weights of the symmetric tridiagonal matrix.
    p = zoo("network")
    found = spectral_density(p.op, key=KEY, structure=p.structure, num_probes=2, num_steps=12)
    weights = np.asarray(found.weights)
    assert np.isrealobj(weights)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
