"""Errors over probes and over data: each against the spread that it claims to be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax.linalg import eigsh, forms_over_batches, trace_over_batches
from flatjax.linalg._over_batches import _split
from tests.problems import dense, times, trace_spectra

SIZE = 30


def simulated(rng, probes, batches, spreads):
    """Tables of the two-way model, with known standard deviations of probe, batch and rest."""
    of_probe, of_batch, of_rest = spreads
    return (
        10.0
        + of_probe * rng.standard_normal((probes, 1))
        + of_batch * rng.standard_normal((1, batches))
        + of_rest * rng.standard_normal((probes, batches))
    )


@pytest.mark.parametrize("spreads", [(2.0, 1.0, 0.5), (0.2, 1.0, 2.0), (1.0, 0.0, 1.0)])
def test_the_split_of_known_variances(spreads):
    rng, probes, batches, count = np.random.default_rng(0), 12, 16, 2000
    found = [_split(simulated(rng, probes, batches, spreads), jnp.float32) for _ in range(count)]
    mean_square = {
        name: np.mean([float(getattr(f, name)) ** 2 for f in found])
        for name in ("probe_error", "data_error")
    }
    of_probe, of_batch, of_rest = spreads
    probe = of_probe**2 / probes + of_rest**2 / (probes * batches)
    data = of_batch**2 / batches
    # 2000 tables know a variance of 11 degrees of freedom to 1 %; cut off at zero, that of the data
    # is too large by up to the spread of its estimate, sqrt(2/15) of the rest's share.
    cut = 0.5 * of_rest**2 / (probes * batches)
    assert abs(mean_square["probe_error"] - probe) < 0.04 * probe
    assert -0.04 * data <= mean_square["data_error"] - data < 0.04 * data + cut
    inside = np.mean([float(f.interval[0]) <= 10 <= float(f.interval[1]) for f in found])
    assert 0.92 <= inside <= 0.99


@functools.cache
def _matrices(batches):
    """A fixed mean and random symmetric departures from it, one a batch."""
    a, _ = dense(trace_spectra(SIZE)["power"])
    noise = np.random.default_rng(1).standard_normal((batches, SIZE, SIZE)) / SIZE
    return [a + jnp.asarray((n + n.T) / 2, a.dtype) for n in noise]


def _ops(matrices):
    return (jax.tree_util.Partial(times, m) for m in matrices)


def test_the_trace_is_that_of_the_mean_of_the_batches():
    matrices = _matrices(6)
    exact = float(np.mean([np.trace(np.asarray(m, np.float64)) for m in matrices]))
    keys = jax.random.split(jax.random.key(0), 40)
    found = [
        trace_over_batches(_ops(matrices), key=k, num_probes=4, structure=matrices[0][0])
        for k in keys
    ]
    values = np.array([float(f.value) for f in found])
    spread = values.std(ddof=1)
    # Unbiased: within 4 of its own standard errors.
    assert abs(values.mean() - exact) < 4 * spread / np.sqrt(len(keys))
    # The probe error is the spread over keys on the same data; 40 keys know one to 11 %, and the
    # mean of 40 errors of 3 degrees of freedom to 13 %: three of both.
    claimed = np.sqrt(np.mean([float(f.probe_error) ** 2 for f in found]))
    assert 0.5 < claimed / spread < 1.5
    assert found[0].num_products == 24


def test_the_data_error_of_diagonal_batches_is_exact():
    scales = np.array([1.0, 2.0, 4.0, 5.0])
    ops = [jax.tree_util.Partial(jnp.multiply, s) for s in scales]
    found = trace_over_batches(ops, key=jax.random.key(0), structure=jnp.zeros(10))
    assert float(found.value) == pytest.approx(30.0)
    # Rademacher probes are exact on diagonals: rounding is all that they add.
    assert float(found.probe_error) < 1e-5
    expected = 10 * scales.std(ddof=1) / 2
    assert float(found.data_error) == pytest.approx(expected, rel=1e-5)
    assert float(found.standard_error) == pytest.approx(expected, rel=1e-5)


def test_a_generator_of_operators_on_batches():
    x = jax.random.normal(jax.random.key(1), (5, 8, 3))
    params = {"w": jnp.ones(3)}

    def losses_fn(params, x):
        return (x @ params["w"]) ** 2 / 2

    ops = (flatjax.hessian(losses_fn, params, batch) for batch in x)
    found = trace_over_batches(ops, key=jax.random.key(0), num_probes=64)
    exact = float(jnp.square(x).sum(axis=(1, 2)).mean() / 8)
    assert abs(float(found.value) - exact) < 4 * float(found.probe_error)
    assert float(found.data_error) > 0


def test_eigenvalues_with_errors_over_data():
    matrices = _matrices(12)
    mean = jax.tree_util.Partial(times, sum(matrices) / 12)
    pairs = eigsh(mean, 3, key=jax.random.key(0), structure=matrices[0][0])
    found = forms_over_batches(_ops(matrices), pairs.vectors, structure=matrices[0][0])
    np.testing.assert_allclose(found.value, pairs.values, rtol=1e-3)  # eigsh's tolerance
    vectors = np.asarray(pairs.vectors, np.float64)
    forms = np.array([np.einsum("ki,ij,kj->k", vectors, m, vectors) for m in matrices])
    expected = forms.std(axis=0, ddof=1) / np.sqrt(12)
    np.testing.assert_allclose(found.data_error, expected, rtol=1e-3)  # float32 forms
    np.testing.assert_array_equal(found.probe_error, np.zeros(3))
    assert found.num_products == 36


def test_bad_arguments_say_what_to_do():
    one, structure = jax.tree_util.Partial(jnp.multiply, 1.0), jnp.zeros(3)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="Split the data into more batches"):
        trace_over_batches([one], key=key, structure=structure)
    with pytest.raises(ValueError, match="Split the data into more batches"):
        forms_over_batches([], jnp.eye(3), structure=structure)
    with pytest.raises(ValueError, match="num_probes must be at least 2"):
        trace_over_batches([one, one], key=key, num_probes=1, structure=structure)
    with pytest.raises(ValueError, match="vectors"):
        forms_over_batches([one, one], jnp.eye(4), structure=structure)
    sizes = (flatjax.hessian(lambda w, x: x @ w**2, jnp.zeros(n), jnp.ones((1, n))) for n in (4, 5))
    with pytest.raises(ValueError, match="operator 1"):
        trace_over_batches(sizes, key=key)
