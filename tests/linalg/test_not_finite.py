"""A product that is not finite shows in the result of every estimator, eager and traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax

KEY, D = jax.random.key(0), jnp.ones(50)


def bad(v):
    return v * jnp.nan


EAGER = {
    **{
        method: lambda method=method: flatjax.trace(bad, key=KEY, method=method, structure=D)
        for method in ("hutchinson", "deflated", "hutch++", "xtrace", "xnystrace")
    },
    "frobenius_norm": lambda: flatjax.frobenius_norm(bad, key=KEY, structure=D),
    "logdet": lambda: flatjax.logdet(bad, key=KEY, structure=D),
    "spectrum": lambda: flatjax.spectrum(bad, key=KEY, k=2, structure=D).trace,
}


@pytest.mark.parametrize("name", list(EAGER))
def test_estimates_are_nan_and_not_converged(name):
    found = EAGER[name]()
    assert np.isnan(float(found.value))
    assert not bool(found.converged)


def test_traced_pairs_are_not_converged():
    found = jax.jit(lambda: flatjax.eigsh(bad, 2, key=KEY, structure=D))()
    assert not np.isfinite(found.values).any()
    assert not np.asarray(found.converged).any()


def test_spectra_are_nan():
    found = flatjax.spectrum(bad, key=KEY, k=2, structure=D)
    assert np.isnan(found.top.values).all()
    assert not np.asarray(found.top.converged).any()
    assert np.isnan(found.density.density).all()
