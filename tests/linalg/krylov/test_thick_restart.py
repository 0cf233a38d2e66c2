"""Thick restart: sweeps go on until the Chebyshev bound says that nothing is missing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.linalg import eigsh
from flatjax.linalg.krylov import _thick_restart as thick_restart
from tests.problems import problem

SIZE = 200


def copies(x):
    """10 twice, above a wide and dense rest: 8 steps from a random vector show nothing of it."""
    return problem(np.concatenate([[10.0, 10.0], np.linspace(-9.9, 9.9, SIZE - 2)]), dtype=x)


@pytest.mark.parametrize("which", ["LA", "SA"])
def test_a_copy_that_the_first_steps_of_a_sweep_do_not_show(x64, which):
    p = copies(jnp.float64)
    sign = 1.0 if which == "LA" else -1.0
    op = jax.tree_util.Partial(lambda d, u, w, v: p.op.func(sign * d, u, w, v), *p.op.args)
    for seed in range(3):
        found = eigsh(op, 2, which=which, key=jax.random.key(seed), structure=p.structure)
        # The next eigenvalue is 0.1 away; the error of a value is its residual squared over that.
        np.testing.assert_allclose(found.values, [sign * 10] * 2, atol=1e-2)
        assert found.complete is True


def test_who_has_not_looked_says_so():
    p = copies(jnp.float32)

    def solve(**options):
        key = jax.random.key(0)
        return eigsh(p.op, options.pop("k", 2), key=key, structure=p.structure, **options)

    assert solve(verify=False).complete is None
    assert solve(k=1).complete is None
    assert solve(block_size=2).complete is None
    assert solve(max_products=12).complete is None
    traced = jax.jit(lambda op: eigsh(op, 2, key=jax.random.key(0), structure=p.structure))(p.op)
    assert traced.complete is None


def test_all_dimensions_are_complete():
    d = jnp.array([3.0, 2.0, 2.0])
    found = eigsh(lambda v: d * v, 2, key=jax.random.key(0), structure=d)
    assert found.complete is True


@pytest.mark.parametrize(("gap", "spread", "size"), [(0.1, 2.0, 100), (1.0, 1.0, 10**6)])
def test_the_bound_is_that_of_chebyshev(gap, spread, size):
    # T_s(x) = cosh(s arccosh x) exceeds 100 sqrt(n) first at this s, up to e^-s beside e^s.
    needed = math.acosh(100 * math.sqrt(size)) / math.acosh(1 + 2 * gap / spread)
    least = next(s for s in range(2, 1000) if thick_restart._would_show(gap, spread, s, size))
    assert least == math.ceil(needed) + 1  # s steps are polynomials of degree s - 1


def test_nothing_shows_without_a_gap_or_a_step():
    assert not thick_restart._would_show(0.0, 1.0, 100, 10)
    assert not thick_restart._would_show(-1.0, 1.0, 100, 10)
    assert not thick_restart._would_show(1.0, 1.0, 1, 10)
    assert thick_restart._would_show(1.0, 0.0, 2, 10)
