"""The jackknife: of a mean it is the textbook's standard error."""

import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.measures._jackknife import jackknife_variance


@pytest.mark.parametrize("junk", [[], [np.inf, np.nan]])
def test_of_a_mean(junk, x64):
    samples = np.array([1.0, 4.0, 2.0, 9.0])
    left_out = [*(np.delete(samples, i).mean() for i in range(4)), *junk]
    counted = jnp.arange(len(left_out)) < 4 if junk else None
    found = jackknife_variance(jnp.asarray(left_out), counted)
    np.testing.assert_allclose(found, samples.var(ddof=1) / 4, rtol=1e-14)
