"""95 % intervals cover the truth in 92 % to 99 % of all seeds.

300 seeds know a coverage of 94 % only to 1.4 %, so that of many cases one in ten would fail by
chance. The sweep therefore takes 1500, which know it to 0.6 %.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.linalg import trace
from tests.problems import dense, times, trace_spectra

SIZE = 200


@functools.lru_cache
def covered(method, num_products):
    """A compiled function of the matrix: the estimates of all seeds."""
    structure = jnp.zeros(SIZE)

    def one(a, key):
        op = jax.tree_util.Partial(times, a)
        return trace(op, key=key, method=method, num_products=num_products, structure=structure)

    return jax.jit(jax.vmap(one, (None, 0)))


def _cases():
    fast = {("hutchinson", "power", 20), ("deflated", "mild", 40), ("xtrace", "power", 40)}
    for method in ("hutchinson", "deflated", "hutch++", "xtrace", "xnystrace"):
        for name in trace_spectra():
            # At least 20 probes each: deflated samples half of its products, Hutch++ a third.
            least = {"hutchinson": 20, "xnystrace": 20, "deflated": 40, "xtrace": 40}
            for num_products in (least.get(method, 60), 2 * least.get(method, 60)):
                case = (method, name, num_products)
                if case in fast:
                    yield pytest.param(*case, 300)
                yield pytest.param(*case, 1500, marks=pytest.mark.slow)


@pytest.mark.parametrize(("method", "name", "num_products", "seeds"), list(_cases()))
def test_intervals_cover_the_truth(method, name, num_products, seeds):
    a, exact = dense(trace_spectra(SIZE)[name])
    keys = jax.random.split(jax.random.key(2), seeds)
    found = covered(method, num_products)(a, keys)
    value, error = np.asarray(found.value, float), np.asarray(found.standard_error, float)
    low, high = np.asarray(found.interval, float).T
    inside = np.mean((low <= exact) & (exact <= high))
    # One factor for shared probes serves all spectra, and with strong outliers it makes XNysTrace's
    # intervals too wide: 99.6 % with 40 products.
    most = 1.0 if (method, name) == ("xnystrace", "strong") else 0.99
    assert 0.92 <= inside <= most
    # Unbiased: the mean of all seeds is right within 4 of its own standard errors.
    spread = value.std(ddof=1)
    assert abs(value.mean() - exact) <= 4 * spread / np.sqrt(seeds)
    # The standard error reported is the spread that the seeds have.
    assert 0.75 < np.sqrt(np.mean(error**2)) / spread < 1.4
