"""Shares of groups of leaves, against dense algebra."""

import numpy as np
import pytest

from flatjax.linalg.probing import _layers as layers
from tests.linalg.dense_run import GROUPS, SIZES, STEPS, cut, make


@pytest.fixture
def case(dtype):
    return make(dtype)


def test_known_traces_of_blocks(case):
    run, a, _, p, _, _, slack = case
    known = np.split(np.diag(a - p @ a @ p), np.cumsum(SIZES)[:-1])
    found = layers.known_traces(None, run, GROUPS)
    assert set(found) == set(GROUPS)
    first, second = known[0].sum() + known[2].sum(), known[1].sum()
    np.testing.assert_allclose(found["first"], first, atol=slack * STEPS)
    np.testing.assert_allclose(found["second"], second, atol=slack * STEPS)


def test_moments_of_blocks(case):
    run, a, q, p, z, dtype, slack = case
    rest = z[0] @ p @ a @ p
    found = layers.moments(None, run.basis, cut(z[0], dtype), cut(rest, dtype), GROUPS)
    forms = np.split(z[0] * rest, np.cumsum(SIZES)[:-1])
    rows = np.split(q * z[0], np.cumsum(SIZES)[:-1], axis=1)
    size = np.square(z[0]).sum()
    for name, parts in {"first": (0, 2), "second": (1,)}.items():
        form = sum(forms[i].sum() for i in parts)
        np.testing.assert_allclose(found[0][name], form, atol=slack * size)
        row = sum(rows[i].sum(axis=1) for i in parts)
        np.testing.assert_allclose(found[1][name][:STEPS], row, atol=slack * size**0.5)


def test_squared_norms_of_vectors(case):
    _, _, q, _, _, dtype, slack = case
    found = layers.squared_norms(None, cut(q, dtype), GROUPS)
    first, second, third = np.split(np.square(q), np.cumsum(SIZES)[:-1], axis=1)
    np.testing.assert_allclose(found["first"], (first.sum(1) + third.sum(1)), atol=slack)
    np.testing.assert_allclose(found["second"], second.sum(1), atol=slack)


def test_local_weights_are_those_of_f_in_the_group(x64):
    # The quadrature of z^T P f(A) z over the run from z is exact for f of a low degree.
    rng = np.random.default_rng(0)
    a, z, size = np.diag(np.arange(6.0)), rng.standard_normal(6), 2
    q, _ = np.linalg.qr(np.stack([z, a @ z, a @ a @ z], axis=1))
    q[:, 0] *= np.sign(q[:, 0] @ z)
    nodes, s = np.linalg.eigh(q.T @ a @ q)
    rows = [q[:size].T @ z[:size]]
    weights = layers.local_weights(rows, s[None], np.array([np.linalg.norm(z)]), size)
    for power in range(3):
        exact = z[:size] @ (np.linalg.matrix_power(a, power) @ z)[:size] / size
        np.testing.assert_allclose(weights[0] @ nodes**power, exact, rtol=1e-10)
