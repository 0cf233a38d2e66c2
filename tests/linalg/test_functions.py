"""Traces of functions where nodes carry no weight, and where the function is not defined."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax.linalg.krylov import _ritz as ritz

KEY, N = jax.random.key(0), 400
POWERS = np.arange(1, N + 1) ** -0.5


def estimates(values, f):
    """From two places: deflated quadratures, and a whole spectrum."""
    d = jnp.asarray(values, jnp.float32)
    op, few = jax.tree_util.Partial(jnp.multiply, d), {"key": KEY, "structure": d}
    yield flatjax.trace_of_function(op, f, **few)
    found = flatjax.spectrum(op, k=3, num_bottom=2, trace_rtol=None, **few)
    yield found.trace_of_function(f)


def semidefinite():
    return np.where(np.arange(N) < 150, 0, np.linspace(0.5, 2, N))


@pytest.mark.parametrize(
    ("values", "f"),
    [(POWERS, jnp.log), (POWERS, jnp.reciprocal), (semidefinite(), jnp.sqrt)],
    ids=["log", "inverse", "root of semi-definite"],
)
def test_what_is_defined_on_the_spectrum_is_finite_and_right(values, f):
    exact = float(np.asarray(f(jnp.asarray(values, jnp.float32)), np.float64).sum())
    for found in estimates(values, f):
        assert np.isfinite(np.asarray(found.interval)).all()
        # 5 standard errors: 1 in 30,000 for 8 probes would be more, and no key here is that one.
        assert abs(float(found.value) - exact) <= 5 * float(found.standard_error)
        assert float(found.standard_error) < 0.2 * abs(exact)


@pytest.mark.parametrize("seed", [9, 25, 34])
def test_a_null_space_is_at_zero_and_its_certificates_hold(seed):
    """Exact eigenvectors taken out must not come back: nodes of -5e-5 did, certified to 5e-7."""
    exact = semidefinite()
    d = jnp.asarray(exact, jnp.float32)
    op = jax.tree_util.Partial(jnp.multiply, d)
    found = flatjax.spectrum(
        op, k=3, num_bottom=2, trace_rtol=None, key=jax.random.key(seed), structure=d
    )
    floor = float(found.noise_floor)
    for pairs in (found.top, found.bottom):
        vectors, values = (np.asarray(a, np.float64) for a in (pairs.vectors, pairs.values))
        true = np.linalg.norm(exact * vectors - values[:, None] * vectors, axis=1)
        # An estimate by Lanczos is good to a factor, and nothing is known below the noise.
        assert (true <= 2 * np.asarray(pairs.residual_norms) + floor).all()
    assert float(np.min(found.density.atoms)) >= -floor
    assert not np.asarray(found.bottom.resolved).any()
    assert np.isfinite(found.trace_of_function(jnp.sqrt).interval).all()


@pytest.mark.parametrize(
    ("values", "f"),
    [
        (np.append(POWERS[:-1], -0.5), jnp.log),
        (np.append(POWERS[:-1], -0.5), jnp.sqrt),
        (semidefinite(), jnp.log),
        (semidefinite(), jnp.reciprocal),
    ],
    ids=["log of indefinite", "root of indefinite", "log of semi-definite", "pole"],
)
def test_what_is_not_defined_on_the_spectrum_never_looks_fine(values, f):
    for found in estimates(values, f):
        assert not bool(found.converged)
        assert not np.isfinite(float(found.value)) or not np.isfinite(float(found.standard_error))


def test_the_logdet_of_a_power_law():
    d = jnp.arange(1, 1001, dtype=jnp.float32) ** -0.5
    found = flatjax.logdet(lambda v: d * v, key=KEY, structure=d)
    exact = np.log(np.asarray(d, np.float64)).sum()
    assert abs(float(found.value) - exact) <= 5 * float(found.standard_error)
    assert bool(found.converged)
    density = flatjax.spectral_density(lambda v: d * v, key=KEY, structure=d)
    np.testing.assert_allclose(float(density.mean_of(np.log)) * 1000, exact, rtol=0.02)


def test_weights_below_rounding_are_none():
    eps = float(jnp.finfo(jnp.float32).eps)
    s = np.array([[1.0, 255 * eps, 257 * eps]])
    np.testing.assert_array_equal(ritz.masses(s, jnp.float32) > 0, [True, False, True])
    np.testing.assert_array_equal(ritz.masses(s, jnp.float64) > 0, [True, True, True])
