"""What a Lanczos run leaves to its probes, against dense algebra: P A P to rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.probing import _complement as complement
from flatjax.operators._base import as_operator

N, STEPS, PROBES = 40, 8, 3
GROUPS = ("first", "second", "first")
SIZES = (15, 20, 5)


def cut(rows, dtype):
    """Rows of N numbers as a tree of three leaves with their leading axes."""
    parts = np.split(rows, np.cumsum(SIZES)[:-1], axis=-1)
    return {str(i): jnp.asarray(part, dtype) for i, part in enumerate(parts)}


def glued(tree):
    return np.concatenate([np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)], axis=-1)


def product(matrix, v):
    flat = jnp.matmul(matrix, jnp.concatenate(jax.tree.leaves(v)), precision="highest")
    parts = jnp.split(flat, np.cumsum(SIZES)[:-1])
    return dict(zip(v, parts, strict=True))


@pytest.fixture
def case(dtype):
    """A dense A, a run of 8 steps in buffers of 12, probes and their products; the truth."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((N, N))
    a = np.asarray(jnp.asarray(a + a.T, dtype), np.float64)
    op = as_operator(jax.tree_util.Partial(product, jnp.asarray(a, dtype)), cut(a[0], dtype))
    start = cut(rng.standard_normal(N), dtype)
    state = krylov.start(krylov.unit(start), STEPS + 4, jax.random.key(0))
    state = krylov.run(op, state, STEPS)
    run = complement.known(state)
    z = np.asarray(jnp.asarray(rng.standard_normal((PROBES, N)), dtype), np.float64)
    q = glued(run.basis)[:STEPS]
    p = np.eye(N) - q.T @ q
    # A few units of rounding of sums over 8 and 40 terms, relative to the norm of A.
    slack = 20 * float(jnp.finfo(dtype).eps) * np.linalg.norm(a, 2)
    return run, a, q, p, z, dtype, slack


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


def test_the_known_trace_and_squares(case):
    run, a, q, _, _, _, slack = case
    np.testing.assert_allclose(run.trace, np.trace(q @ a @ q.T), atol=slack * STEPS)
    squares = np.square(q @ a).sum()  # |A Q|^2, of which the residual is a part
    np.testing.assert_allclose(run.squares, squares, atol=slack * STEPS * np.linalg.norm(a, 2))
    unit = float(run.unit)
    assert 0.25 < unit / np.abs(np.asarray(run.alphas)).max() <= 4
    within = run.within(run.unit).squares
    np.testing.assert_allclose(within, squares / unit**2, rtol=slack)
    # Beyond the last step nothing is known, whatever the buffers are.
    np.testing.assert_array_equal(run.alphas[STEPS:], 0)
    np.testing.assert_array_equal(run.betas[STEPS:], 0)


def test_the_known_diagonal_is_that_of_a_less_p_a_p(case):
    run, a, _, p, _, _, slack = case
    known = np.diag(a - p @ a @ p)
    np.testing.assert_allclose(glued(complement.known_diagonal(run)), known, atol=slack)


def test_known_traces_of_blocks(case):
    run, a, _, p, _, _, slack = case
    known = np.split(np.diag(a - p @ a @ p), np.cumsum(SIZES)[:-1])
    found = complement.block_known(None, run, GROUPS)
    assert set(found) == set(GROUPS)
    first, second = known[0].sum() + known[2].sum(), known[1].sum()
    np.testing.assert_allclose(found["first"], first, atol=slack * STEPS)
    np.testing.assert_allclose(found["second"], second, atol=slack * STEPS)


def test_moments_of_blocks(case):
    run, a, q, p, z, dtype, slack = case
    rest = z[0] @ p @ a @ p
    found = complement.block_moments(None, run.basis, cut(z[0], dtype), cut(rest, dtype), GROUPS)
    forms = np.split(z[0] * rest, np.cumsum(SIZES)[:-1])
    rows = np.split(q * z[0], np.cumsum(SIZES)[:-1], axis=1)
    size = np.square(z[0]).sum()
    for name, parts in {"first": (0, 2), "second": (1,)}.items():
        form = sum(forms[i].sum() for i in parts)
        np.testing.assert_allclose(found[0][name], form, atol=slack * size)
        row = sum(rows[i].sum(axis=1) for i in parts)
        np.testing.assert_allclose(found[1][name][:STEPS], row, atol=slack * size**0.5)


def test_deflated_products_have_nothing_along_the_vectors(case):
    run, a, _, p, z, dtype, slack = case
    size = np.linalg.norm(z[0])
    op = as_operator(jax.tree_util.Partial(product, jnp.asarray(a, dtype)), cut(a[0], dtype))
    found = glued(complement.Deflated(op, run.basis).mv(cut(z[0], dtype)))
    q_next = glued(run.residual)  # row 8 of the buffers is the next vector
    both = p - np.outer(q_next, q_next)
    np.testing.assert_allclose(found, z[0] @ a @ both, atol=slack * size)
    plain = glued(complement.Deflated(op, None).mv(cut(z[0], dtype)))
    np.testing.assert_allclose(plain, z[0] @ a, atol=slack * size)
