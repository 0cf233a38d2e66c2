"""Runs without a basis: the recurrence, its end, and the vectors that it holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax import _trees as trees
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.krylov import _three_terms as three_terms
from flatjax.operators._base import as_operator

V0 = trees.normalized(jnp.asarray(np.random.default_rng(0).standard_normal(60), jnp.float32))[0]


def operator(values):
    d = jnp.asarray(values, jnp.float32)
    return as_operator(jax.tree_util.Partial(jnp.multiply, d), d)


@pytest.mark.parametrize("unit", [1.0, 1e-25, 1e25])
def test_the_first_steps_are_those_of_a_run_with_a_basis(unit):
    op = operator(unit * np.linspace(-1, 3, 60))
    full = krylov.run(op, krylov.start(V0, 8, jax.random.key(0)), 8)
    short = three_terms.run(op, three_terms.start(V0, 8), 5)
    short = three_terms.run(op, short, 3)
    assert int(short.step) == 8
    assert float(short.scale) == float(full.scale)
    for name in ("alphas", "betas", "vector", "norm"):
        np.testing.assert_allclose(getattr(short, name), getattr(full, name), atol=1e-5)
    np.testing.assert_allclose(short.previous, full.basis[7], atol=1e-5)


def test_an_exhausted_space_leaves_steps_without_weight():
    # Three distinct values: three nodes, and nothing but rounding after them.
    run = three_terms.run(operator(np.repeat([1.0, 2.0, 4.0], 20)), three_terms.start(V0, 6), 6)
    a, b = (np.asarray(x, np.float64) * float(run.scale) for x in (run.alphas, run.betas))
    assert b[2] == 0
    assert not np.any(a[3:])
    assert not np.any(run.vector)
    values, s = np.linalg.eigh(np.diag(a[:3]) + np.diag(b[:2], 1) + np.diag(b[:2], -1))
    np.testing.assert_allclose(values, [1, 2, 4], atol=1e-5)
    weights = np.square(np.asarray(V0, np.float64)).reshape(3, 20).sum(axis=1)
    np.testing.assert_allclose(np.square(s[0]), weights, atol=1e-5)


def test_a_large_multiple_of_the_identity_leaves_nothing_of_itself():
    # Rounding of the product, 1e4 units of it, beside couplings of about one half.
    op = operator(1e4 + np.linspace(-1, 1, 60))
    run = three_terms.run(op, three_terms.start(V0, 4), 1)
    assert abs(float(trees.vdot(run.vector, run.previous))) < 1e-5


def test_three_vectors_and_a_temporary_one():
    n = 1 << 16
    v = jax.ShapeDtypeStruct((n,), jnp.float32)
    numbers = jax.eval_shape(lambda: three_terms.start(jnp.zeros(n), 9))
    numbers = numbers._replace(previous=None, vector=None)
    memory = three_terms._step.lower(v, v, v, numbers).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= 4 * n  # the next vector, in the place of an old one
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert memory.temp_size_in_bytes + fresh < 4.1 * n
