"""What a finished run knows without a probe, against dense algebra."""

import numpy as np
import pytest

from flatjax.linalg.krylov import _relations as relations
from flatjax.linalg.vectors import _basis as bases
from tests.linalg.dense_run import STEPS, glued, make


@pytest.fixture
def case(dtype):
    return make(dtype)


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
    np.testing.assert_allclose(glued(relations.diagonal(run)), known, atol=slack)
    # In parts, of which the first is full to the last row, it is the same.
    for size in (3, STEPS):
        rows = [slice(0, size), slice(size, None)]
        parts = tuple({k: a[r] for k, a in run.basis.items()} for r in rows)
        found = relations.diagonal(run._replace(basis=bases.Basis(parts)))
        np.testing.assert_allclose(glued(found), known, atol=slack)
