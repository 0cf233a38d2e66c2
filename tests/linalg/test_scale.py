"""Operators of 1e-24 and 1e+30, and what leaves the range of float32: NaN or right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax import linalg
from tests.problems import dense, times

N, KEY = 64, jax.random.key(0)
SPECTRUM = np.append(np.linspace(0, 1, N - 4), [5.0, 6.0, 7.0, 9.0])
MATRIX = np.asarray(dense(SPECTRUM)[0], np.float64)
FEW = {"key": KEY, "structure": jnp.zeros(N)}
ESTIMATORS = {
    **{
        f"trace {m}": lambda op, m=m: flatjax.trace(op, method=m, **FEW)
        for m in ("hutchinson", "hutch++", "xtrace", "xnystrace", "deflated")
    },
    **{
        f"diagonal {m}": lambda op, m=m: flatjax.diagonal(op, method=m, **FEW)
        for m in ("hutchinson", "deflated", "xdiag")
    },
    "frobenius_norm": lambda op: flatjax.frobenius_norm(op, **FEW),
    "trace_of_function": lambda op: flatjax.trace_of_function(
        op, lambda x: x, num_probes=2, num_steps=10, **FEW
    ),
}
HOST = {
    "spectrum's trace": lambda found: found.trace,
    "spectrum's norm": lambda found: found.frobenius_norm,
    "spectrum's function": lambda found: found.trace_of_function(lambda x: x),
}


def operator(scale, matrix=MATRIX):
    return jax.tree_util.Partial(times, jnp.asarray(scale * matrix, jnp.float32))


def truth(name):
    if "diagonal" in name:
        return MATRIX.diagonal()
    return np.linalg.norm(SPECTRUM) if "norm" in name else SPECTRUM.sum()


def whole(op):
    # One step fewer than decides that all unit vectors are cheaper.
    return flatjax.spectrum(op, k=2, num_bottom=1, num_steps=20, num_probes=2, probe_steps=5, **FEW)


def check(found, name, scale):
    value, error = (np.asarray(a, np.float64) / scale for a in found[:2])
    away = np.linalg.norm(value - truth(name))
    # 6 standard errors of all entries together.
    assert np.linalg.norm(error) > 0
    assert away <= 6 * np.linalg.norm(error) + 1e-4 * np.linalg.norm(truth(name))


@pytest.mark.parametrize("scale", [1e-24, pytest.param(1e-30, marks=pytest.mark.slow), 1e30])
@pytest.mark.parametrize("name", [*ESTIMATORS, *HOST])
def test_estimates_at_any_scale(name, scale):
    op = operator(scale)
    check(ESTIMATORS[name](op) if name in ESTIMATORS else HOST[name](whole(op)), name, scale)


def test_traced_estimates_at_any_scale():
    for name in ("trace hutchinson", "diagonal hutchinson"):
        solve = jax.jit(ESTIMATORS[name])
        for scale in (1e-24, 1e30):
            check(solve(operator(scale)), name, scale)


@pytest.mark.parametrize("scale", [1e-24, 1e-30, 1e30])
def test_pairs_and_densities_at_any_scale(scale):
    op, structure = operator(scale), FEW["structure"]
    pairs = flatjax.eigsh(op, 2, **FEW)
    np.testing.assert_allclose(np.asarray(pairs.values, float) / scale, [9, 7], rtol=1e-4)
    assert pairs.converged.all()
    power = flatjax.power_iteration(op, **FEW)
    np.testing.assert_allclose(np.asarray(power.values, float) / scale, [9], rtol=1e-2)
    run = linalg.lanczos(op, jnp.ones(N), 12, structure=structure)
    t = np.diag(np.asarray(run.alphas, float)) + sum(
        np.diag(np.asarray(run.betas, float)[:-1], i) for i in (1, -1)
    )
    assert np.linalg.eigvalsh(t)[-1] / scale == pytest.approx(9, rel=1e-3)
    density = flatjax.spectral_density(op, num_probes=2, num_steps=10, **FEW)
    mean = float((density.weights * density.atoms).sum()) / scale
    assert mean == pytest.approx(SPECTRUM.mean(), rel=0.2)
    found = whole(op)
    np.testing.assert_allclose(np.asarray(found.top.values, float) / scale, [9, 7], rtol=1e-3)


@pytest.mark.parametrize("name", [*ESTIMATORS, *HOST])
@pytest.mark.parametrize("which", ["an infinite entry", "nothing but underflow"])
def test_what_is_out_of_range_has_not_converged(name, which):
    matrix = MATRIX.copy()
    if which == "an infinite entry":
        matrix[3, 3], scale = np.inf, 1.0
    else:
        scale = 1e-36  # products of 1e-38 are lost
    op = operator(scale, matrix)
    found = ESTIMATORS[name](op) if name in ESTIMATORS else HOST[name](whole(op))
    assert not bool(found.converged)


def test_pairs_out_of_range_have_not_converged():
    op = operator(1e-36)
    for found in (flatjax.eigsh(op, 2, **FEW), flatjax.power_iteration(op, **FEW), whole(op).top):
        assert not np.asarray(found.converged).any()
        assert not np.asarray(found.resolved).any()
        assert np.isnan(float(found.noise_floor))


def test_zero_is_zero():
    for name in ("trace hutchinson", "frobenius_norm", "diagonal hutchinson"):
        found = ESTIMATORS[name](operator(0.0))
        assert bool(found.converged)
        np.testing.assert_array_equal(found.value, 0)


def test_a_norm_that_does_not_fit_has_not_converged():
    found = flatjax.frobenius_norm(lambda v: 1e38 * v, **FEW)  # 8e38
    assert not np.isfinite(float(found.value))
    assert not bool(found.converged)
