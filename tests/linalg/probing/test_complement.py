"""What a Lanczos run leaves to its probes, against dense algebra: P A P to rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.linalg.probing import _complement as complement
from flatjax.linalg.vectors._span import Span
from flatjax.operators._base import as_operator
from tests.linalg.dense_run import cut, glued, make, product


@pytest.fixture
def case(dtype):
    return make(dtype)


def moments_of(case, unit=1.0):
    run, a, _, _, z, dtype, _ = case
    return complement.moments(run, cut(z, dtype), cut(z @ a, dtype), unit)


def test_the_moments_are_those_of_the_complement(case):
    _, a, _, p, z, _, slack = case
    found, x = moments_of(case), z @ p
    size = np.square(z).sum(axis=1).max()
    np.testing.assert_allclose(found.trace, np.sum(x * (x @ a), axis=1), atol=slack * size)
    np.testing.assert_allclose(glued(found.image), x @ a, atol=slack * size**0.5)
    squares = np.square(x @ a).sum(axis=1)
    np.testing.assert_allclose(found.square, squares, atol=slack * size * np.linalg.norm(a, 2))
    in_units = moments_of(case, 4.0).square
    np.testing.assert_allclose(in_units, squares / 16, atol=slack * size * np.linalg.norm(a, 2))


def test_what_is_left_of_the_images_is_p_a_p(case):
    run, a, _, p, z, dtype, slack = case
    size = np.linalg.norm(z, axis=1).max()
    found = glued(complement.rest(run, moments_of(case).image))
    np.testing.assert_allclose(found, z @ p @ a @ p, atol=slack * size)
    one = complement.rest_of_one(run, cut(z[0], dtype), cut(z[0] @ a, dtype))
    np.testing.assert_allclose(glued(one), z[0] @ p @ a @ p, atol=slack * size)


def test_without_a_run_nothing_is_known(case):
    _, a, _, _, z, dtype, slack = case
    found = complement.moments(None, cut(z, dtype), cut(z @ a, dtype))
    size = np.square(z).sum(axis=1).max()
    np.testing.assert_allclose(found.trace, np.sum(z * (z @ a), axis=1), atol=slack * size)
    squares = np.square(z @ a).sum(axis=1)
    np.testing.assert_allclose(found.square, squares, rtol=slack)
    np.testing.assert_array_equal(glued(complement.rest(None, found.image)), glued(found.image))


def test_deflated_products_have_the_vectors_at_one_eigenvalue(case):
    run, a, _, p, z, dtype, slack = case
    size = np.linalg.norm(z[0])
    op = as_operator(jax.tree_util.Partial(product, jnp.asarray(a, dtype)), cut(a[0], dtype))
    found = glued(complement.Deflated(op, Span(run.basis), 1.5).mv(cut(z[0], dtype)))
    q_next = glued(run.residual)  # row 8 of the buffers is the next vector
    both = p - np.outer(q_next, q_next)
    expected = z[0] @ a @ both + 1.5 * (z[0] - z[0] @ both)
    np.testing.assert_allclose(found, expected, atol=slack * size)
    plain = glued(complement.Deflated(op, None, 0.0).mv(cut(z[0], dtype)))
    np.testing.assert_allclose(plain, z[0] @ a, atol=slack * size)
