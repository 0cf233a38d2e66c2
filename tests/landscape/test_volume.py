"""The log-volume below a threshold, on ellipsoids whose volume is known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax import parallel
from flatjax.landscape import log_volume


def quadratic(w, h):
    return 0.5 * jnp.sum(h * w**2)


def ellipsoid(h, threshold):
    """The exact log-volume of w'Hw / 2 <= threshold."""
    d = len(h)
    ball = d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)
    return ball + d / 2 * math.log(2 * threshold) - 0.5 * float(np.log(np.asarray(h)).sum())


def run(h, **options):
    h = jnp.asarray(h)
    options = {"key": jax.random.key(0), "threshold": 0.5, "num_directions": 64} | options
    return log_volume(lambda w, _, h: quadratic(w, h), jnp.zeros_like(h), None, h, **options)


def test_radii_are_those_of_the_quadratic(dtype):
    """A sphere: all radii are sqrt(2 c / h), and both numbers are exact."""
    h = jnp.full(20, 3.0, dtype)
    found = run(h, tol=1e-4, num_directions=3)
    np.testing.assert_allclose(found.radii, math.sqrt(1 / 3), rtol=1e-4)  # the bracket's width
    np.testing.assert_allclose(found.value, ellipsoid(h, 0.5), atol=20 * 1e-4)
    assert found.lower_bound <= ellipsoid(h, 0.5)
    assert 0 < found.standard_error <= 20 * 1e-4
    np.testing.assert_allclose(found.effective_samples, 3, rtol=1e-3)
    assert found.value.dtype == dtype
    assert not found.truncated


def test_a_preconditioner_gives_the_ellipsoid_exactly():
    h = np.geomspace(1e-3, 1e3, 30).astype(np.float32)
    found = run(h, preconditioner=jnp.asarray(h), num_directions=3, tol=1e-4)
    np.testing.assert_allclose(found.value, ellipsoid(h, 0.5), atol=30 * 1e-4)
    # With its half axes of 1e-3 to 1e3 unseen, one direction in 64 decides.
    blind = run(h)
    assert blind.dominated
    assert np.isinf(blind.standard_error)
    assert blind.lower_bound < blind.value < ellipsoid(h, 0.5) - 5


def test_a_mild_ellipsoid_lies_within_the_error(seed):
    """Of three dimensions the estimate is unbiased, up to a variance over n, and has an error."""
    h = np.array([1.0, 2.0, 4.0], np.float32)
    found = run(h, key=jax.random.key(seed), num_directions=200, tol=1e-3)
    exact = ellipsoid(h, 0.5)
    bias = float(found.standard_error) ** 2 / 2  # of the logarithm of a mean
    assert abs(float(found.value) - exact) < 4 * float(found.standard_error) + bias
    assert found.lower_bound < exact
    assert found.effective_samples > 100
    assert not found.dominated


def test_frozen_entries_do_not_count():
    h = np.array([1.0, 2.0, 4.0, 8.0], np.float32)
    found = run(h, preconditioner=jnp.where(jnp.arange(4) < 3, jnp.asarray(h), jnp.inf), tol=1e-4)
    np.testing.assert_allclose(found.value, ellipsoid(h[:3], 0.5), atol=3e-4)


def test_a_loss_that_stays_below_is_said(key):
    found = log_volume(
        lambda w, _: jnp.tanh(w[0] ** 2) + 0 * w[1], jnp.zeros(2), None, key=key, threshold=2.0,
        num_directions=2, max_trials=6,
    )  # fmt: skip
    assert int(found.truncated) == 2
    assert np.isinf(found.standard_error)
    assert np.isfinite(found.value)
    # A loss that is no number is above.
    cliff = log_volume(
        lambda w, _: jnp.where(w**2 > 4, jnp.nan, 0.0).sum(), jnp.zeros(1), None, key=key,
        threshold=1.0, num_directions=1,
    )  # fmt: skip
    np.testing.assert_allclose(cliff.radii, 2, rtol=1e-3)


def test_devices_and_jit_give_the_same():
    h = jnp.asarray([1.0, 2.0, 4.0])
    here = run(h, num_directions=5)
    there = run(parallel.replicate(h, parallel.make_mesh(4)), num_directions=5)
    traced = jax.jit(lambda h: run(h, num_directions=5))(h)
    for other in (there, traced):
        np.testing.assert_allclose(other.radii, here.radii, rtol=1e-5)
        np.testing.assert_allclose(other.value, here.value, rtol=1e-4)
        np.testing.assert_allclose(other.standard_error, here.standard_error, rtol=1e-3)


def test_bad_input():
    h = jnp.ones(3)
    with pytest.raises(
        ValueError, match="is an absolute loss and must be above that of the params"
    ):
        run(h, threshold=0.0)
    with pytest.raises(ValueError, match="must be positive everywhere"):
        run(h, preconditioner=-h)
    with pytest.raises(ValueError, match="num_directions must be at least 1"):
        run(h, num_directions=0)
    with pytest.raises(ValueError, match="needs one loss"):
        log_volume(
            lambda w, _: (w.sum(), w.sum()), h, None, key=jax.random.key(0), threshold=9.0,
            num_directions=1,
        )  # fmt: skip
